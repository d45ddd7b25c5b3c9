"""Correlations in chunks are those of all values at once."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from dist_scvi.expression import correlation
from dist_scvi.expression.correlation import moments_of, pearson_correlation, rank_correlation, spearman_correlation
from dist_scvi.inference.cell_selection import select
from dist_scvi.loaders import CellData
from dist_scvi.world import World
from tests.dist_scvi.workers import together

S, G = 3, 6


def values_of(data: CellData) -> np.ndarray:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(data.n_cells, S, G)) @ rng.normal(size=(G, G)) + 1e3
    return np.round(mixed, 1).astype(np.float32)


@pytest.mark.parametrize("chunk_cells", [7, 1000])
@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_chunks_and_workers_do_not_change_a_correlation(data: CellData, kind: str, chunk_cells: int) -> None:
    value_nsg = values_of(data)
    rows = np.array([400, 3, 3, *range(10, 90)])
    flat = value_nsg[rows].reshape(-1, G)
    expected = np.corrcoef(flat.astype(float), rowvar=False) if kind == "pearson" else spearmanr(flat).statistic
    correlate = pearson_correlation if kind == "pearson" else spearman_correlation
    selection = select(data, rows)

    def asked(world: World) -> np.ndarray:
        return correlate(selection, lambda cells: value_nsg[cells.row_n], G, S, world, chunk_cells=chunk_cells)

    for found in (asked(World()), *together(2, asked)):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_constant_feature_correlates_with_none() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    values[:, 1] = 2
    for found in (moments_of(values).correlation(), rank_correlation(values.copy())):
        assert np.isnan(found[1]).all()
        assert np.isfinite(found[np.ix_([0, 2], [0, 2])]).all()


def test_ranks_in_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).integers(0, 20, (60, 7)).astype(np.float32)
    expected = spearmanr(values).statistic
    monkeypatch.setattr(correlation, "_BLOCK_VALUES", 100)
    np.testing.assert_allclose(rank_correlation(values), expected, atol=1e-7)


def test_what_does_not_fit_in_memory_is_refused() -> None:
    many = SimpleNamespace(n_cells=1 << 20, order=slice(None))
    with pytest.raises(ValueError, match=r"^10 samples x 1048576 cells x 2000 genes are too many to rank .*'pearson'"):
        spearman_correlation(many, lambda _: None, 2000, 10, World(), chunk_cells=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^60000 genes make 27 GiB of pairs: choose at most 16384 in gene_list$"):
        pearson_correlation(many, lambda _: None, 60_000, 1, World(), chunk_cells=8)  # type: ignore[arg-type]
