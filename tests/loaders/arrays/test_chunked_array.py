"""Ranges of an array come from the chunks that hold them, each fetched and decoded once; what is lost is told."""

import threading
import time

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec

from dist_scvi.loaders.arrays.chunked_array import ChunkedArray, decoder_of, run_side_by_side
from dist_scvi.loaders.arrays.objects import LocalObjects
from dist_scvi.loaders.arrays.obs_columns import DamagedError

LENGTH = 1000
VALUES = (np.arange(LENGTH) * 7 % 251).astype(np.uint16)
LAYOUTS = {
    "chunks": {"chunks": (64,), "compressors": [BloscCodec(cname="lz4")]},
    "sharded": {"chunks": (16,), "shards": (128,), "compressors": [BloscCodec(cname="lz4hc"), Crc32cCodec()]},
    "plain": {"chunks": (LENGTH,), "compressors": None},
    "gzip": {"chunks": (33,), "shards": (330,), "compressors": [GzipCodec()]},
}


def written(path, layout, *, zarr_format=3):
    options = {**LAYOUTS[layout], "config": {"write_empty_chunks": True}}
    group = zarr.create_group(path, zarr_format=zarr_format)
    array = group.create_array("values", shape=(LENGTH,), dtype=VALUES.dtype, **options)
    array[:] = VALUES
    return array


class Noting(LocalObjects):
    """Files that remember what was read of them."""

    def __init__(self, root):
        super().__init__(root)
        self.reads = []

    def read(self, key, start, length):
        self.reads.append((key, start, length))
        return super().read(key, start, length)

    def read_whole(self, key):
        self.reads.append((key, 0, -1))
        return super().read_whole(key)


def opened(path, layout, **options):
    array = written(path, layout)
    return ChunkedArray(array, Noting(path), decoder_of(array), **options)


@pytest.fixture(scope="module", params=LAYOUTS)
def array(request, tmp_path_factory):
    return opened(tmp_path_factory.mktemp("array") / "a.zarr", request.param)


@given(cuts=st.lists(st.integers(0, LENGTH), min_size=2, max_size=12, unique=True))
@settings(deadline=None, max_examples=60)
def test_ranges_are_joined_in_order_whatever_chunks_they_cut(array, cuts):
    cuts = sorted(cuts)
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    out_e = np.zeros(sum(high - low for low, high in ranges), dtype=np.int32)

    def place(values_e, at):
        out_e[at : at + len(values_e)] += values_e

    run_side_by_side(array.tasks(ranges, place))
    assert_array_equal(out_e, np.concatenate([VALUES[low:high] for low, high in ranges]))


def test_a_slice_is_that_of_the_values(array):
    for low, high in ((0, LENGTH), (0, 0), (LENGTH, LENGTH), (999, 1000), (100, 471)):
        assert_array_equal(array[low:high], VALUES[low:high])


def test_ranges_that_share_a_chunk_fetch_it_once(tmp_path):
    array = opened(tmp_path / "a.zarr", "chunks")
    out_e = np.zeros(4, dtype=np.uint16)
    run_side_by_side(array.tasks([(1, 2), (5, 6), (60, 61), (63, 64)], lambda values_e, at: out_e.put(at, values_e)))
    assert array._objects.reads == [("values/c/0", 0, -1)]
    assert_array_equal(out_e, VALUES[[1, 5, 60, 63]])


def test_neighbouring_chunks_of_a_shard_are_fetched_in_one_piece_and_its_index_once(tmp_path):
    array = opened(tmp_path / "a.zarr", "sharded")
    for _ in range(3):
        assert_array_equal(array[130:200], VALUES[130:200])
    index_reads = [read for read in array._objects.reads if read[2] == 16 * 8 + 4]
    assert len(index_reads) == 1
    assert len(array._objects.reads) == 1 + 3


def test_version_2_gives_the_same_values(tmp_path):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    array = group.create_array("values", shape=(LENGTH,), chunks=(64,), dtype=VALUES.dtype)
    array[:] = VALUES
    read = ChunkedArray(array, LocalObjects(tmp_path / "a.zarr"), decoder_of(array))
    assert_array_equal(read[10:990], VALUES[10:990])


def test_a_chunk_that_is_missing_is_told_with_its_entries(tmp_path):
    array = opened(tmp_path / "a.zarr", "chunks")
    (tmp_path / "a.zarr" / "values" / "c" / "3").unlink()
    assert_array_equal(array[0:192], VALUES[:192])
    with pytest.raises(DamagedError, match=r"values of .* cannot be read at 192 to 255: values/c/3 .* is missing"):
        array[100:200]


def test_a_shard_that_is_missing_is_told_with_its_entries(tmp_path):
    array = opened(tmp_path / "a.zarr", "sharded")
    (tmp_path / "a.zarr" / "values" / "c" / "1").unlink()
    with pytest.raises(DamagedError, match=r"cannot be read at 128 to 143: values/c/1 .* is missing"):
        array[100:200]


def test_a_missing_chunk_stands_for_the_fill_value_where_that_is_said(tmp_path):
    array = opened(tmp_path / "a.zarr", "chunks", absent_is_fill=True)
    (tmp_path / "a.zarr" / "values" / "c" / "3").unlink()
    assert_array_equal(array[192:256], 0)


def test_a_truncated_shard_is_told(tmp_path):
    array = opened(tmp_path / "a.zarr", "sharded")
    file = tmp_path / "a.zarr" / "values" / "c" / "1"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DamagedError, match=r"cannot be read at 128 to 255: values/c/1 is truncated or damaged"):
        array[100:200]


def test_tasks_run_side_by_side_and_the_first_error_is_raised():
    both = threading.Barrier(2, timeout=20)
    run_side_by_side([both.wait, both.wait], remote=True)  # each waits for the other
    ran = []

    def fail():
        raise ValueError("a chunk is lost")

    with pytest.raises(ValueError, match="a chunk is lost"):
        run_side_by_side([lambda: ran.append(time.sleep(0.01)), fail])


def test_what_has_to_be_left_to_zarr_is_told(tmp_path):
    group = zarr.create_group(tmp_path / "a.zarr")
    assert decoder_of(group.create_array("wide", shape=(4, 4), dtype="u2")) is None
    assert decoder_of(group.create_array("when", shape=(4,), dtype="M8[s]")) is None
