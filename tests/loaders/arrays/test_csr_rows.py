import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from dist_scvi.loaders.arrays.csr_rows import CsrRows, concatenate, from_arrays, row_runs
from tests.loaders.store_contract import dense


def rows_of(counts_ng, n_genes=None, data_type=np.float64) -> CsrRows:
    counts_ng = np.atleast_2d(counts_ng)
    row_e, gene_e = np.nonzero(counts_ng)
    indptr = np.searchsorted(row_e, np.arange(len(counts_ng) + 1)).astype(np.int64)
    data_e = counts_ng[row_e, gene_e].astype(data_type)
    return from_arrays(data_e, gene_e, indptr, n_genes=n_genes or counts_ng.shape[1], first_row=0, where="X")


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=9), st.data())
def test_taken_rows_are_those_of_the_matrix(counts, data):
    index_n = np.array(data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=12)), dtype=np.int64)
    taken = rows_of(counts).take(index_n)
    assert_array_equal(dense(taken, 4), np.array(counts)[index_n])
    assert taken.n_cells == len(index_n)


def test_joined_rows_lie_one_below_the_other():
    counts_ng = np.array([[0, 300], [2, 0], [0, 0], [70_000, 1]])
    joined = concatenate([rows_of(counts_ng[:1]), rows_of(counts_ng[1:2]), rows_of(counts_ng[2:])])
    assert_array_equal(dense(joined, 2), counts_ng)
    assert joined.counts_e.dtype == np.uint32


def test_library_is_the_sum_of_each_row_without_overflow():
    rows = rows_of([[4_000_000_000, 4_000_000_000], [0, 0], [0, 7]])
    assert_array_equal(rows.library_n(), [8_000_000_000, 0, 7])
    assert rows.nbytes == 3 * 4 + 3 * 2 + 4 * 8


@pytest.mark.parametrize(("largest", "kind"), [(255, "u1"), (256, "u2"), (65_535, "u2"), (65_536, "u4")])
@pytest.mark.parametrize("data_type", [np.float32, np.int64, np.uint32])
def test_counts_are_narrowed_without_loss(largest, kind, data_type):
    counts_e = rows_of([[1, largest]], data_type=data_type).counts_e
    assert (counts_e.dtype, counts_e.max()) == (np.dtype(kind), largest)


def test_genes_are_narrowed_where_they_fit():
    assert rows_of([[1, 1]], n_genes=65_536).genes_e.dtype == np.uint16
    assert rows_of([[1, 1]], n_genes=65_537).genes_e.dtype == np.int32


def test_a_bad_value_is_placed_past_empty_rows():
    with pytest.raises(ValueError, match=r"X holds 1.5 at row 13, gene 1: SCVI needs raw counts"):
        from_arrays(
            np.array([1, 1.5]), np.array([0, 1]), np.array([0, 1, 1, 1, 2, 2]), n_genes=2, first_row=10, where="X"
        )


def test_the_last_gene_of_a_row_may_open_the_next():
    rows = from_arrays(np.ones(3), np.array([1, 1, 0]), np.array([0, 1, 1, 3]), n_genes=2, first_row=0, where="X")
    assert_array_equal(dense(rows, 2), [[0, 1], [0, 0], [1, 1]])


def test_text_and_truth_are_no_counts():
    for values in (np.array([True]), np.array(["1"])):
        with pytest.raises(ValueError, match=r"X is of type .*: SCVI needs raw counts"):
            from_arrays(values, np.array([0]), np.array([0, 1]), n_genes=1, first_row=0, where="X")


@given(st.sets(st.integers(0, 60_000), min_size=1, max_size=60))
def test_runs_hold_every_wanted_row_once_and_span_no_wide_gap(wanted):
    row_n = np.array(sorted(wanted), dtype=np.int64)
    parts = [(low, high, row_n[(row_n >= low) & (row_n < high)]) for low, high in row_runs(row_n)]
    assert_array_equal(np.concatenate([part for _, _, part in parts]), row_n)
    for low, high, part in parts:
        assert (low, high - 1) == (part[0], part[-1])
        assert len(part) == 1 or np.diff(part).max() <= 64
