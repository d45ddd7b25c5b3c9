"""The seeded split: fixed numbers out of every stratum, for any range of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from dist_scvi.loaders.order.seeded_split import TEST, TRAIN, VALIDATION, SeededSplit, shares_of

SPLITS = (TRAIN, VALIDATION, TEST)
SHARES = st.sampled_from([(0.9, 0.1), (0.9, 0.05), (0.75, 0.0), (0.8, 0.1), (1.0, 0.0), (0.995, 0.005)])


@given(st.integers(1, 3000), SHARES, st.integers(0, 99), st.data())
@settings(deadline=None)
def test_the_split_of_a_range_is_a_part_of_that_of_all_rows(n_cells, shares, seed, data):
    strata = SeededSplit(n_cells, *shares, seed)
    whole = strata.split_of(0, n_cells)
    start = data.draw(st.integers(0, n_cells))
    stop = data.draw(st.integers(start, n_cells))
    assert_array_equal(strata.split_of(start, stop), whole[start:stop])
    assert [np.count_nonzero(whole == split) for split in SPLITS] == [strata.split_cells(split) for split in SPLITS]


@given(st.integers(1, 3000), SHARES, st.integers(1, 4))
@settings(deadline=None)
def test_the_line_of_a_split_in_the_order_of_the_store_is_its_rows(n_cells, shares, blocks):
    strata = SeededSplit(n_cells, *shares, 3)
    for split in SPLITS:
        line = strata.line(split, 0, strata.split_cells(split), block_cells=blocks * strata.stratum_cells, epoch=None)
        assert_array_equal(line, np.flatnonzero(strata.split_of(0, n_cells) == split))


def test_every_whole_stratum_gives_its_quota():
    strata = SeededSplit(1000, 0.8, 0.15, 7)
    split_bn = strata.split_of(0, 1000).reshape(-1, 20)
    for split, cells in zip(SPLITS, (16, 3, 1), strict=True):
        assert_array_equal((split_bn == split).sum(1), np.full(50, cells))


@pytest.mark.parametrize(
    ("shares", "split_block"), [((1.0, 0.0), 1), ((0.9, 0.1), 20), ((0.99, 0.01), 100), ((0.999, 0.0), 1000)]
)
def test_a_stratum_is_the_smallest_that_the_shares_divide(shares, split_block):
    assert SeededSplit(9, *shares, 0).stratum_cells == split_block


def test_the_shares_are_filled_in_as_in_scvi_tools():
    assert shares_of(None, None) == (0.9, 0.1)
    assert shares_of(0.7, None) == (0.7, 0.3)
    assert shares_of(None, 0.02) == (0.9, 0.02)


@pytest.mark.parametrize("shares", [(0.0, None), (1.1, None), (0.9, 0.2), (0.5, -0.1)])
def test_what_are_no_shares_is_refused(shares):
    with pytest.raises(ValueError, match=rf"^train_size={shares[0]} and validation_size=.*shares of all cells"):
        shares_of(*shares)
