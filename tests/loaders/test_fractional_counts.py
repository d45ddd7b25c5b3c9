"""Counts that are not whole: refused from files unless allowed, taken from an AnnData with a warning, float32 then."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from dist_scvi.loaders import CellStore, open_data, open_store
from dist_scvi.loaders.arrays.pack_manifest import read_manifest
from dist_scvi.loaders.checks.scan import inspect_store
from dist_scvi.loaders.checks.verify import verify_store
from dist_scvi.loaders.genes import gene_moments
from dist_scvi.loaders.library_prior import library_prior
from dist_scvi.loaders.pack.pack import pack_store
from dist_scvi.loaders.stream import rows_minibatch

N, G = 120, 30


@pytest.fixture
def adata() -> AnnData:
    rng = np.random.default_rng(3)
    counts_ng = rng.poisson(0.6, (N, G)) * np.where(rng.random((N, G)) < 0.5, 1.0, rng.random((N, G)))
    obs = pd.DataFrame({"batch": rng.choice(["a", "b"], N)}, index=[f"c{row}" for row in range(N)])
    return AnnData(sparse.csr_matrix(counts_ng.astype(np.float32)), obs=obs)


def dense_of(store: CellStore) -> np.ndarray:
    rows = store.read_ranges([(0, 50), (50, N)], np.arange(N))
    return sparse.csr_matrix((rows.counts_e, rows.genes_e.astype(np.int32), rows.indptr), (N, G)).toarray()


@pytest.fixture(params=["zarr3", "zarr2", "h5ad"])
def path(request: pytest.FixtureRequest, adata: AnnData, save: Callable[..., Path]) -> Path:
    return save(adata, request.param)


def test_a_file_is_refused_with_the_key_that_allows_it_and_then_read_as_it_is(path: Path, adata: AnnData) -> None:
    with pytest.raises(ValueError, match=r"SCVI needs raw counts.* set data\.allow_fractional: true"):
        open_data(path)
    store = open_store(path, allow_fractional=True)
    assert store.read(0, 9).counts_e.dtype == np.float32
    assert_array_equal(dense_of(store), adata.X.toarray())


@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf])
def test_what_is_negative_or_not_finite_stays_refused(adata: AnnData, value: float, save: Callable[..., Path]) -> None:
    adata.X.data[adata.X.indptr[7]] = value
    refused = rf"holds {np.float32(value)} at row 7, .*: SCVI needs raw counts, .* or fractional ones that are finite"
    with pytest.raises(ValueError, match=refused):
        open_store(save(adata), allow_fractional=True).read(0, N)
    with pytest.warns(UserWarning, match="not whole"):
        store = open_store(adata)
    with pytest.raises(ValueError, match=refused):
        store.read(5, 9)


def test_an_anndata_in_memory_is_taken_with_one_warning(adata: AnnData) -> None:
    with pytest.warns(UserWarning, match="X of the AnnData holds values that are not whole") as caught:
        data = open_data(adata, batch_key="batch")
    part = rows_minibatch(data, np.arange(N))
    assert len(caught) == 1
    dense_ng = adata.X.toarray()
    tensors = part.to("cpu")
    assert_array_equal(tensors.counts_ng, dense_ng)
    assert_allclose(tensors.library_n, dense_ng.sum(1), rtol=1e-6)


def test_whole_counts_in_floating_point_are_no_fractions(adata: AnnData) -> None:
    adata.X.data[:] = np.ceil(adata.X.data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not open_store(adata).fractional


def test_stores_of_whole_and_of_fractional_counts_join_as_float32(adata: AnnData, save: Callable[..., Path]) -> None:
    whole = adata.copy()
    whole.X.data[:] = 70_000.0
    store = open_store([save(adata), save(whole)], allow_fractional=True)
    assert store.read(N - 5, N + 5).counts_e.dtype == np.float32


def test_moments_and_the_library_prior_keep_the_fractions(adata: AnnData, save: Callable[..., Path]) -> None:
    path, dense_ng = save(adata), adata.X.toarray().astype(np.float64)
    store = open_store(path, allow_fractional=True)
    assert_allclose(gene_moments(store).sum_bg[0], dense_ng.sum(0), rtol=1e-5)
    mean_b, variance_b = library_prior(open_data(store))
    assert_allclose(mean_b, np.log(dense_ng.sum(1)).mean(), rtol=1e-5)
    assert_allclose(variance_b, np.log(dense_ng.sum(1)).var(), rtol=1e-4)
    found = inspect_store(store)
    assert_allclose(found.library.mean, dense_ng.sum(1).mean(), rtol=1e-5)


def test_a_packed_store_holds_them_as_float32_and_finds_a_changed_one(
    adata: AnnData, save: Callable[..., Path], tmp_path: Path, rewrite: Callable[..., None]
) -> None:
    source, packed = save(adata), tmp_path / "packed.zarr"
    pack_store(partial(open_store, source, allow_fractional=True), packed, seed=None)
    manifest = read_manifest(packed)
    assert manifest is not None
    assert manifest.counts_dtype == "float32"
    with pytest.raises(ValueError, match="allow_fractional: true"):
        open_store(packed).read(0, N)
    assert_array_equal(dense_of(open_store(packed, allow_fractional=True)), adata.X.toarray())
    assert verify_store(packed, allow_fractional=True).ok
    values = np.sort(adata.X.data) + np.float32(1)
    rewrite(packed, "X/data", values)
    assert not verify_store(packed, allow_fractional=True).ok
