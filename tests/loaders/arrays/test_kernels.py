"""The compiled loops give what plain numpy gives."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from dist_scvi.loaders.arrays.kernels import (
    REFUSED,
    falls_at,
    find_genes,
    keep_genes,
    place_rows,
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
@given(st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=1, max_size=6), st.randoms(), st.data())
def test_values_are_placed_where_their_rows_belong_in_any_pieces(rows, random, draw):
    value_e = np.array([value for row in rows for value in row], dtype=np.float32)
    indptr = np.cumsum([0, *map(len, rows)])
    order = random.sample(range(len(rows)), random.randint(1, len(rows)))
    to_n = np.full(len(rows), -1)
    to_n[order] = np.cumsum([0, *(len(rows[n]) for n in order)])[:-1]
    out_e = np.zeros(sum(len(rows[n]) for n in order), dtype=np.uint8)
    edges = [0, *sorted(draw.draw(st.sets(st.integers(0, len(value_e)), max_size=4))), len(value_e)]
    rises = [place_rows(value_e[a:b], a, indptr, to_n, out_e, 6) for a, b in itertools.pairwise(edges) if a < b]
    assert out_e.tolist() == [value for n in order for value in rows[n]]
    rising = all(rises) and falls_at(out_e, np.unique(edges), indptr, to_n) == 0
    assert rising == all((np.diff(rows[n]) > 0).all() for n in order)


@pytest.mark.parametrize("bad", [0.5, -1.0, 128.0, np.nan, np.inf])
def test_what_is_no_count_is_refused_in_rows_that_are_wanted_and_only_there(bad):
    value_e = np.array([1, 2, bad, 4], dtype=np.float64)
    indptr, out_e = np.array([0, 2, 4]), np.zeros(4, dtype=np.uint8)
    assert place_rows(value_e, 0, indptr, np.array([0, 2]), out_e, 127) == REFUSED
    assert place_rows(value_e, 0, indptr, np.array([0, -1]), out_e, 127) == 1


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


@given(st.lists(st.integers(-1, 5), max_size=20), st.sampled_from(["u2", "i4", "i8"]))
@settings(deadline=None)
def test_chosen_genes_are_found_and_those_out_of_range_refused(genes, kind):
    gene_e, place_g = (
        np.array([gene % 65536 if kind == "u2" else gene for gene in genes], kind),
        np.array([1, -1, -1, 0, -1]),
    )
    entry_e, found_e = np.empty(len(genes), np.int64), np.empty(len(genes), np.uint16)
    n = find_genes(gene_e, 100, np.array([0b01001], np.uint64), place_g.astype(np.int32), entry_e, found_e)
    if any(gene not in range(5) for gene in genes):
        assert n == REFUSED
    else:
        expected = [(100 + e, place_g[gene]) for e, gene in enumerate(genes) if place_g[gene] >= 0]
        assert list(zip(entry_e[:n], found_e[:n], strict=True)) == expected
