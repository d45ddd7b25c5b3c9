"""The cost of a report follows its samples, and a sample does not depend on how cells are stored."""

from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np
import pytest

from dist_scvi.loaders import CellData, open_data
from dist_scvi.model import SCVI
from dist_scvi.report.cell_table import StoreTable
from dist_scvi.report.measure import SampleSizes, measure
from dist_scvi.report.scores.atlas_neighbours import nearest_in_atlas
from dist_scvi.report.scores.neighbours import nearest_within
from dist_scvi.report.stratified_sample import stratified_sample
from dist_scvi.report.subject import subject_of_model
from tests.dist_scvi.report.scib_reference import cells

SMALL = SampleSizes(cells=120, mapped=60, held_out=50, counted=20, draws=2, bootstrap=3, fast=True)


def _repeated(adata: ad.AnnData, times: int) -> CellData:
    joined = ad.concat([adata] * times, index_unique="-")
    keys = {"batch_key": "batch", "labels_key": "label"}
    return open_data(joined, **keys, categorical_covariate_keys=["site"], continuous_covariate_keys=["age"])


def _rows_read(model: SCVI, data: CellData, monkeypatch: pytest.MonkeyPatch) -> int:
    read: list[int] = []
    original = type(data.store).read_ranges

    def count(self: Any, ranges: Any, *arguments: Any) -> Any:
        read.append(sum(stop - start for start, stop in ranges))
        return original(self, ranges, *arguments)

    monkeypatch.setattr("dist_scvi.report.measure.umap_coordinates", lambda z_nk, _: z_nk[:, :2])
    with monkeypatch.context() as patch:
        patch.setattr(type(data.store), "read_ranges", count)
        subject = replace(subject_of_model(model, {}), data=data, sample_split=None)
        measure(subject, SMALL)
    return sum(read)


def test_the_counts_that_are_read_follow_the_samples_not_the_store(model, adata, monkeypatch) -> None:
    once = _rows_read(model, _repeated(adata, 20), monkeypatch)
    often = _rows_read(model, _repeated(adata, 200), monkeypatch)
    assert 0 < often <= 1.2 * once
    assert often < 403 * 200 / 20


@pytest.fixture(scope="module")
def table(model: SCVI, adata: ad.AnnData) -> StoreTable:
    return StoreTable(_repeated(adata, 20), model.module)


def test_a_sample_has_cells_of_every_stratum_and_stands_for_all(table: StoreTable) -> None:
    found = stratified_sample(table, ["label", "batch"], 300, seed=0)
    assert 280 <= len(found.row_m) <= 320
    assert (np.diff(found.row_m) > 0).all()
    strata, sizes = np.unique(found.code_mc, axis=0, return_counts=True)
    assert (len(strata), found.n_strata) == (6, 6)
    assert sizes.min() >= 20
    assert found.weight_m.sum() == pytest.approx(20 * 403)
    np.testing.assert_array_equal(found.code_mc[:, 0], table.codes_of("label", found.row_m))


def test_a_sample_depends_on_its_seed_alone(table: StoreTable) -> None:
    first, again, other = (stratified_sample(table, ["label"], 100, seed=seed).row_m for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 20


def test_small_data_are_used_whole(table: StoreTable) -> None:
    found = stratified_sample(table, [], 10_000, seed=0)
    assert found.is_everything
    assert (found.weight_m == 1).all()


class _Hoods:
    """Neighbourhoods of cells that are sorted by the nearest of some centroids."""

    def __init__(self, z_nk: np.ndarray, n: int) -> None:
        self.centroids = z_nk[:: len(z_nk) // n][:n]
        self.nearest = ((z_nk[:, None] - self.centroids) ** 2).sum(axis=2).argmin(axis=1)
        self.offsets = np.searchsorted(np.sort(self.nearest), np.arange(n + 1))


def test_neighbours_in_a_large_atlas_are_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_scvi.report.scores.atlas_neighbours._WHOLE", 0)
    z_nk = cells(0)[0]
    hoods = _Hoods(z_nk, 40)
    z_nk = z_nk[np.argsort(hoods.nearest, kind="stable")]

    class _Atlas:
        n_cells, neighbourhoods = len(z_nk), hoods

        def read_latent(self, rows: Any = slice(None)) -> tuple[np.ndarray, None]:
            return z_nk[rows], None

    rows = np.arange(0, 700, 5)
    found = nearest_in_atlas(_Atlas(), rows, z_nk[rows], 20)  # type: ignore[arg-type]
    expected = nearest_within(z_nk, 20)
    same = [len(np.intersect1d(a, b)) for a, b in zip(found.index_nj, expected.index_nj[rows], strict=True)]
    assert np.mean(same) > 19.8
    assert (found.is_self_nj.sum(axis=1) == 1).all()
    np.testing.assert_allclose(found.distance_nj[:, 1], expected.distance_nj[rows, 1], rtol=1e-4)
