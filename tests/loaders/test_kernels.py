"""The compiled loops give what plain numpy gives."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from dist_scvi.loaders.kernels import (
    REFUSED,
    descents,
    descents_at,
    keep_genes,
    repeated_gene,
    settle,
    sum_rows,
    take_rows,
)

KINDS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.float32, np.float64]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_within_the_limit_are_settled_as_they_are(kind):
    value_e = np.array([0, 1, 100, 127], dtype=kind)
    out_e = np.zeros(4, dtype=np.uint8)
    assert settle(value_e, out_e, 127)
    assert_array_equal(out_e, value_e)


@pytest.mark.parametrize("bad", [0.5, -1.0, 128.0, np.nan, np.inf, -np.inf, 1e300])
def test_what_is_no_count_is_refused_wherever_it_stands(bad):
    for at in (0, 17, 40):
        value_e = np.arange(41, dtype=np.float64)
        value_e[at] = bad
        assert not settle(value_e, np.zeros(41, dtype=np.uint16), 127)


@pytest.mark.parametrize("bad", [-1, 65_536, 1 << 40])
def test_an_integer_that_does_not_fit_is_refused_and_not_wrapped(bad):
    value_e = np.array([3, bad, 4], dtype=np.int64)
    assert not settle(value_e, np.zeros(3, dtype=np.uint16), 65_535)


@settings(deadline=None)
@given(hnp.arrays(np.uint16, st.integers(0, 70), elements=st.integers(0, 30)))
def test_descents_are_counted(gene_e):
    assert descents(gene_e, 31) == (np.diff(gene_e.astype(int)) <= 0).sum()


@pytest.mark.parametrize("gene_e", [np.array([1, 40], np.uint16), np.array([5, -1], np.int32)])
def test_a_gene_that_does_not_exist_is_refused(gene_e):
    assert descents(gene_e, 40) == REFUSED


def test_borders_are_counted_once_and_only_inside():
    gene_e = np.array([5, 3, 9, 2], dtype=np.uint16)
    assert descents_at(gene_e, np.array([0, 1, 1, 2, 3, 4])) == 2


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=1, max_size=6))
def test_a_gene_that_stands_twice_in_a_row_is_found(rows):
    gene_e = np.array([gene for row in rows for gene in row], dtype=np.uint16)
    indptr = np.cumsum([0, *map(len, rows)])
    repeated = any(len(set(row)) < len(row) for row in rows)
    found = repeated_gene(gene_e, indptr, 7)
    assert (found >= 0) == repeated
    if repeated:
        row = np.searchsorted(indptr, found, side="right") - 1
        assert gene_e[found] in gene_e[indptr[row] : found]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.data())
def test_rows_are_taken_summed_and_thinned_as_by_hand(lengths, draw):
    indptr = np.cumsum([0, *lengths])
    count_e = np.arange(indptr[-1], dtype=np.uint8) % 7
    gene_e = (np.arange(indptr[-1], dtype=np.uint16) * 3) % 5
    rows = [list(zip(count_e[a:b], gene_e[a:b], strict=True)) for a, b in itertools.pairwise(indptr)]

    index_n = np.array(draw.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=12)), dtype=np.int64)
    taken_indptr = np.cumsum([0, *(lengths[n] for n in index_n)])
    out_count_e, out_gene_e = np.zeros(taken_indptr[-1], np.uint8), np.zeros(taken_indptr[-1], np.uint16)
    take_rows(count_e, gene_e, indptr[index_n], taken_indptr, out_count_e, out_gene_e)
    assert list(zip(out_count_e, out_gene_e, strict=True)) == [entry for n in index_n for entry in rows[n]]

    total_n = np.zeros(len(lengths), dtype=np.int64)
    sum_rows(count_e, indptr, total_n)
    assert total_n.tolist() == [sum(int(count) for count, _ in row) for row in rows]

    place_g = np.array([2, -1, 0, -1, 1], dtype=np.int32)
    kept_count_e, kept_gene_e, kept_indptr = np.empty_like(count_e), np.empty_like(gene_e), np.empty_like(indptr)
    keep_genes(count_e, gene_e, indptr, place_g, kept_count_e, kept_gene_e, kept_indptr)
    for n, row in enumerate(rows):
        part = slice(kept_indptr[n], kept_indptr[n + 1])
        expected = [(count, place_g[gene]) for count, gene in row if place_g[gene] >= 0]
        assert list(zip(kept_count_e[part], kept_gene_e[part], strict=True)) == expected
