"""Memory is used again when, and only when, nobody holds a part of it."""

import numpy as np

from dist_scvi.loaders.arrays.csr import Buffers


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_of_which_a_part_is_held_is_not_given_out_again():
    buffers = Buffers()
    first = buffers.empty(1000, np.uint16)
    part = first[10:20]
    part[:] = 7
    held = address(first)
    del first
    second = buffers.empty(1000, np.uint16)
    second[:] = 1
    assert address(second) != held
    assert (part == 7).all()


def test_memory_that_nobody_holds_is_given_out_again():
    buffers = Buffers()
    first = buffers.empty(1000, np.uint16)
    freed = address(first)
    del first
    assert address(buffers.empty(900, np.uint16)) == freed


def test_no_more_is_kept_than_was_in_use_at_one_time():
    buffers = Buffers()
    for length in (10, 10_000, 50, 70_000, 10):
        held = [buffers.empty(length, np.uint8), buffers.empty(length, np.uint16)]
        del held
    assert [len(blocks) for blocks in buffers._blocks.values()] == [1, 1]


def test_arrays_have_the_type_and_length_asked_for():
    array = Buffers().empty(5, np.int32)
    assert (array.dtype, array.shape) == (np.int32, (5,))
