"""Rows are decoded, narrowed and checked in one go; what calls for a closer look gives None."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import sparse

from dist_scvi.loaders.arrays.chunked_array import ChunkedArray, decoder_of
from dist_scvi.loaders.arrays.csr import Buffers, keep_rows, read_chosen, read_rows
from dist_scvi.loaders.arrays.csr_rows import CsrRows, GeneChoice
from dist_scvi.loaders.arrays.objects import LocalObjects

N_ROWS, N_GENES = 60, 40


def matrix(kind, gene_kind, *, reverse=False):
    rng = np.random.default_rng(0)
    genes = [np.flatnonzero(rng.random(N_GENES) < 0.3) for _ in range(N_ROWS)]
    genes = [gene_e[::-1] for gene_e in genes] if reverse else genes
    indptr = np.cumsum([0, *map(len, genes)])
    gene_e = np.concatenate(genes)
    return (gene_e * 3 % 100 + 1).astype(kind), gene_e.astype(gene_kind), indptr


def opened(path, data_e, indices_e, chunk):
    group = zarr.create_group(path)
    arrays = []
    for name, values_e in {"data": data_e, "indices": indices_e}.items():
        array = group.create_array(
            name, shape=values_e.shape, chunks=(chunk,), dtype=values_e.dtype, config={"write_empty_chunks": True}
        )
        array[:] = values_e
        arrays.append(ChunkedArray(array, LocalObjects(path), decoder_of(array)))
    return arrays


@pytest.mark.parametrize(("kind", "gene_kind"), [("u1", "u2"), ("f4", "i4"), ("i8", "i8"), ("u2", "i4"), ("f8", "u1")])
@pytest.mark.parametrize("reverse", [False, True])
def test_rows_of_any_ranges_are_those_stored_in_any_type(tmp_path, kind, gene_kind, reverse):
    data_e, indices_e, indptr = matrix(kind, gene_kind, reverse=reverse)
    arrays = opened(tmp_path / "a.zarr", data_e, indices_e, 37)
    buffers = Buffers()

    @given(st.lists(st.integers(0, N_ROWS), min_size=2, max_size=8, unique=True), st.randoms())
    @settings(deadline=None, max_examples=20)
    def check(cuts, random):
        cuts = sorted(cuts)
        ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
        row_n = np.concatenate([np.arange(low, high) for low, high in ranges])
        order = np.array(random.sample(range(len(row_n)), random.randint(0, len(row_n))), dtype=np.int64)
        wanted_n = row_n[order]
        starts = [indptr[low : high + 1] for low, high in ranges]
        rows = read_rows(*arrays, starts, order, N_GENES, buffers)
        entries = np.concatenate([np.arange(0), *(np.arange(indptr[row], indptr[row + 1]) for row in wanted_n)])
        assert_array_equal(rows.counts_e, data_e[entries])
        assert_array_equal(rows.genes_e, indices_e[entries])
        assert_array_equal(np.diff(rows.indptr), np.diff(indptr)[wanted_n])
        assert rows.genes_e.dtype == np.uint16
        assert rows.counts_e.dtype == (np.uint8 if kind == "u1" else np.uint16)

    check()


@pytest.mark.parametrize("bad", [0.5, -1.0, np.nan, 70_000.0])
@pytest.mark.parametrize("at", [0, 36, 37, 200])
def test_a_count_that_is_none_or_large_calls_for_a_closer_look(tmp_path, bad, at):
    data_e, indices_e, indptr = matrix("f4", "i4")
    data_e[at] = bad
    assert read_rows(*opened(tmp_path / "a.zarr", data_e, indices_e, 37), [indptr], None, N_GENES, Buffers()) is None


@pytest.mark.parametrize("bad", [-1, N_GENES, 1 << 30])
def test_a_gene_that_does_not_exist_calls_for_a_closer_look(tmp_path, bad):
    data_e, indices_e, indptr = matrix("f4", "i4")
    indices_e[100] = bad
    assert read_rows(*opened(tmp_path / "a.zarr", data_e, indices_e, 37), [indptr], None, N_GENES, Buffers()) is None


def test_a_gene_that_stands_twice_in_a_row_calls_for_a_closer_look_in_every_row(tmp_path):
    data_e, indices_e, indptr = matrix("f4", "i4")
    for row in range(N_ROWS):
        again_e = indices_e.copy()
        again_e[indptr[row + 1] - 1] = again_e[indptr[row]]
        arrays = opened(tmp_path / f"{row}.zarr", data_e, again_e, 37)
        assert read_rows(*arrays, [indptr], None, N_GENES, Buffers()) is None, row


@pytest.mark.parametrize("n_rows", [0, 1, 2500])
def test_chosen_genes_are_kept_renumbered_row_by_row(n_rows):
    rng = np.random.default_rng(0)
    counts_ng = rng.poisson(0.5, (n_rows, 50))
    stored = sparse.csr_matrix(counts_ng)
    rows = CsrRows(stored.data.astype(np.uint8), stored.indices.astype(np.uint16), stored.indptr.astype(np.int64))
    place_g = np.full(50, -1, dtype=np.int32)
    chosen = rng.permutation(50)[:12]
    place_g[chosen] = np.arange(12)
    kept = keep_rows(rows, GeneChoice(place_g, 12))
    dense_ng = sparse.csr_matrix((kept.counts_e, kept.genes_e.astype(np.int32), kept.indptr), (n_rows, 12)).toarray()
    assert_array_equal(dense_ng, counts_ng[:, chosen])


def choice_of(chosen):
    place_g = np.full(N_GENES, -1, dtype=np.int32)
    place_g[chosen] = np.arange(len(chosen))
    return GeneChoice(place_g, len(chosen))


@pytest.mark.parametrize(("kind", "gene_kind"), [("u1", "u2"), ("f4", "i4"), ("i8", "i8"), ("u2", "u1")])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n_chosen", [0, 1, 12, N_GENES])
def test_chosen_genes_alone_are_read_from_any_ranges(tmp_path, kind, gene_kind, reverse, n_chosen):
    data_e, indices_e, indptr = matrix(kind, gene_kind, reverse=reverse)
    arrays = opened(tmp_path / "a.zarr", data_e, indices_e, 37)
    chosen = np.random.default_rng(1).permutation(N_GENES)[:n_chosen]
    counts_ng = sparse.csr_matrix((data_e.astype(int), indices_e.astype(int), indptr), (N_ROWS, N_GENES)).toarray()

    @given(st.lists(st.integers(0, N_ROWS), min_size=2, max_size=8, unique=True).map(sorted))
    @settings(deadline=None, max_examples=20)
    def check(cuts):
        ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
        rows = read_chosen(*arrays, [indptr[low : high + 1] for low, high in ranges], choice_of(chosen))
        dense_ng = sparse.csr_matrix(
            (rows.counts_e, rows.genes_e.astype(np.int32), rows.indptr), (rows.n_cells, n_chosen)
        ).toarray()
        row_n = np.concatenate([np.arange(low, high) for low, high in ranges])
        assert_array_equal(dense_ng, counts_ng[row_n][:, chosen])
        assert rows.genes_e.dtype == np.uint16
        assert rows.counts_e.dtype == (np.uint8 if kind == "u1" else np.uint16)

    check()


@pytest.mark.parametrize("bad", [0.5, -1.0, np.nan, 70_000.0])
def test_a_count_of_a_chosen_gene_that_is_none_or_large_calls_for_a_closer_look(tmp_path, bad):
    data_e, indices_e, indptr = matrix("f4", "i4")
    data_e[100] = bad
    arrays, chosen = opened(tmp_path / "a.zarr", data_e, indices_e, 37), indices_e[100:101]
    assert read_chosen(*arrays, [indptr], choice_of(chosen)) is None
    assert read_chosen(*arrays, [indptr], choice_of(np.setdiff1d(np.arange(N_GENES), chosen))) is not None


@pytest.mark.parametrize("bad", [-1, N_GENES, 1 << 30])
def test_a_gene_that_does_not_exist_is_none_to_drop(tmp_path, bad):
    data_e, indices_e, indptr = matrix("f4", "i4")
    indices_e[100] = bad
    assert read_chosen(*opened(tmp_path / "a.zarr", data_e, indices_e, 37), [indptr], choice_of([3])) is None


def test_a_chosen_gene_that_stands_twice_in_a_row_calls_for_a_closer_look(tmp_path):
    data_e, indices_e, indptr = matrix("f4", "i4")
    indices_e[indptr[8] - 1] = indices_e[indptr[7]]
    arrays = opened(tmp_path / "a.zarr", data_e, indices_e, 37)
    assert read_chosen(*arrays, [indptr], choice_of(indices_e[indptr[7] : indptr[7] + 1])) is None
