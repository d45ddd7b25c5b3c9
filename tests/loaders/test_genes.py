import re
import threading
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from dist_scvi.loaders import open_store, read_limits
from dist_scvi.loaders.genes import gene_moments, highly_variable_genes

scanpy = pytest.importorskip("scanpy")

REAL = Path(__file__).parents[3] / "shared" / "data"
COLUMNS = ("means", "variances", "variances_norm", "highly_variable_rank", "highly_variable")


def simulated(n_cells: int = 1200, n_genes: int = 700, seed: int = 0) -> AnnData:
    """Four batches of different depth; among the genes some without counts, of equal counts, and of a few ones."""
    rng = np.random.default_rng(seed)
    batch = rng.choice(["b10", "b2", "b1", "few"], n_cells, p=[0.5, 0.3, 0.17, 0.03])
    depth_n = np.where(batch == "b2", 3.0, 1.0) * rng.lognormal(0, 0.4, n_cells)
    mean_g, shape_g = rng.lognormal(-1, 1.5, n_genes), rng.lognormal(0.5, 1, n_genes)
    counts_ng = rng.poisson(depth_n[:, None] * mean_g * rng.gamma(shape_g, 1 / shape_g, (n_cells, n_genes)))
    counts_ng[:, :20] = 0
    counts_ng[:, 20:23] = 3
    counts_ng[:, 23:60] = np.eye(37)[rng.integers(0, 37, n_cells)] * (rng.random(n_cells) < 0.05)[:, None]
    counts_ng[5, 100] = 70_000
    obs = pd.DataFrame({"batch": batch}, index=[f"c{row}" for row in range(n_cells)])
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)])
    return AnnData(sparse.csr_matrix(counts_ng.astype(np.float64)), obs=obs, var=var)


def assert_equal_to_scanpy(
    adata: AnnData, store, batch_key: str | None, n_top_genes: int, *, span: float = 0.3
) -> None:
    wanted = scanpy.pp.highly_variable_genes(
        adata, flavor="seurat_v3", batch_key=batch_key, n_top_genes=n_top_genes, span=span, inplace=False
    )
    found = highly_variable_genes(store, batch_key=batch_key, n_top_genes=n_top_genes, span=span)
    assert_array_equal(found.highly_variable, wanted["highly_variable"])
    assert_array_equal(found.highly_variable_rank, wanted["highly_variable_rank"])
    for name in ("means", "variances", "variances_norm"):
        assert_allclose(getattr(found, name), wanted[name], rtol=1e-9, atol=1e-12)
    if batch_key:
        assert_array_equal(found.highly_variable_nbatches, wanted["highly_variable_nbatches"])


@pytest.fixture(params=[1 << 22, 9_000])
def read_entries(monkeypatch, request):
    """Read all at once, and some rows at a time."""
    monkeypatch.setattr(read_limits, "READ_ENTRIES", request.param)


@pytest.mark.parametrize("batch_key", [None, "batch"])
@pytest.mark.parametrize("n_top_genes", [1, 100, 650, 5_000])
def test_genes_ranks_and_values_are_those_of_scanpy(read_entries, batch_key, n_top_genes):
    adata = simulated()
    assert_equal_to_scanpy(adata, open_store(adata), batch_key, n_top_genes)


@pytest.mark.parametrize("seed", range(1, 6))
def test_any_cells_give_the_ranks_of_scanpy(seed):
    adata = simulated(700, 400, seed)
    assert_equal_to_scanpy(adata, open_store(adata), "batch", 60, span=0.5)


@pytest.mark.parametrize("kind", ["zarr3", "h5ad"])
def test_a_store_on_disk_gives_what_memory_gives(save, read_entries, kind):
    adata = simulated(500, 200)
    assert_equal_to_scanpy(adata, open_store(save(adata, kind)), "batch", 50)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "batch_key"),
    [
        ("kang_ctrl_stim_2000x9015", "batch"),
        ("onek1k_7811x1000", None),
        ("pbmc_1k_3chem_2902x12661", "batch"),
        ("pbmc_pooled_21199x1208", None),
        ("pbmc_pooled_21199x1208", "batch"),
        ("zheng_sorted_ref_plus_donorA_5036x8845", "batch"),
    ],
)
@pytest.mark.skipif(not REAL.exists(), reason="the data sets beside the checkout are absent")
def test_real_counts_give_the_genes_of_scanpy(file, batch_key):
    adata = anndata.read_h5ad(REAL / f"{file}.h5ad")
    assert_equal_to_scanpy(adata, open_store(REAL / f"{file}.h5ad"), batch_key, 2_000)


def test_moments_are_exact(read_entries):
    adata = simulated()
    found = gene_moments(open_store(adata), batch_key="batch")
    assert (found.batches, found.cells_b.sum()) == (("b1", "b10", "b2", "few"), 1200)
    for batch, name in enumerate(found.batches):
        counts_ng = adata.X[(adata.obs["batch"] == name).to_numpy()].toarray().astype(np.int64)
        assert_array_equal(found.sum_bg[batch], counts_ng.sum(axis=0))
        assert_array_equal(found.square_bg[batch], (counts_ng**2).sum(axis=0))
        assert_allclose(found.variance_bg()[batch], counts_ng.var(axis=0, ddof=1), rtol=1e-9, atol=1e-12)
    assert_array_equal(found.joined().mean_bg()[0], adata.X.toarray().mean(axis=0))


def test_a_category_without_cells_changes_nothing():
    adata = simulated()
    plain = highly_variable_genes(open_store(adata), batch_key="batch", n_top_genes=100)
    adata.obs["batch"] = adata.obs["batch"].astype("category").cat.add_categories(["a", "z"])
    wider = highly_variable_genes(open_store(adata), batch_key="batch", n_top_genes=100)
    for name in (*COLUMNS, "highly_variable_nbatches"):
        assert_array_equal(getattr(wider, name), getattr(plain, name))


@pytest.mark.parametrize(
    ("counts_ng", "found"),
    [
        (np.arange(30)[None], "cells: 1, genes that vary: 0, their means: 0; span takes less than the 3 that"),
        (np.ones((4, 30)), "cells: 4, genes that vary: 0, their means: 0; span takes less than the 3 that"),
        (np.eye(9), "cells: 9, genes that vary: 9, their means: 1; span takes less than the 3 that"),
        (np.eye(50), "cells: 50, genes that vary: 50, their means: 1; svddc failed in l2fit)"),
    ],
)
def test_genes_too_alike_for_a_trend_are_refused(counts_ng, found):
    found = re.escape(f"cannot be fitted to their means in 1 of 1 batches: 'all' ({found}")
    with pytest.raises(ValueError, match=found):
        highly_variable_genes(open_store(AnnData(sparse.csr_matrix(counts_ng))))


def test_all_batches_too_small_for_a_trend_are_named_at_once():
    adata = simulated()
    adata.obs.loc[["c7", "c8", "c9"], "batch"] = ["pair", "pair", "alone"]
    found = (
        r"in 2 of 6 batches: 'alone' \(cells: 1, .*\), 'pair' \(cells: 2, .*\): join small batches to others or remove "
        r"them, or raise span \(0.3\)$"
    )
    with pytest.raises(ValueError, match=found):
        highly_variable_genes(open_store(adata), batch_key="batch")


@pytest.mark.parametrize("wrong", [{"n_top_genes": 0}, {"span": 0.0}, {"span": 1.5}, {"span": float("nan")}])
def test_impossible_choices_are_refused(wrong):
    with pytest.raises(ValueError, match=r"n_top_genes=.* must be at least 1, and span=.* above 0 and at most 1"):
        highly_variable_genes(open_store(simulated(60, 120)), **wrong)


def test_cells_without_a_batch_are_refused(cells):
    with pytest.raises(ValueError, match="obs column 'gap' has no value at row 3"):
        gene_moments(open_store(cells), batch_key="gap")


def test_progress_counts_the_cells_of_both_passes(monkeypatch):
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(read_limits, "READ_CELLS", 500)
    highly_variable_genes(open_store(simulated()), progress=lambda done, of_both: told.append((done, of_both)))
    assert told == [(done, 2400) for done in (500, 1000, 1200, 1700, 2200, 2400)]


@pytest.mark.parametrize("find", [gene_moments, highly_variable_genes])
def test_a_store_that_hangs_is_not_waited_for(find):
    store, hung = open_store(simulated(60, 120)), threading.Event()
    store.read = lambda start, stop: hung.wait(30)
    with pytest.raises(TimeoutError, match="has not delivered its next rows in 0 s"):
        find(store, timeout_s=0.1)
    hung.set()
