import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import stats

from dist_scvi.loaders import open_store
from dist_scvi.loaders import simulate as simulation
from dist_scvi.loaders.simulate import simulate
from tests.loaders.store_contract import dense


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    return open_store(simulate(tmp_path_factory.mktemp("atlas") / "a.zarr", n_cells=9000, n_genes=300, seed=3))


def all_files(path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(("mean", "theta"), [(0.05, 0.3), (3.0, 0.2), (4.0, 8.0), (60.0, 1.0)])
def test_counts_are_negative_binomial(mean, theta):
    odds_ng = np.full((400, 500), mean / theta, dtype=np.float32)
    rows = simulation._draw_counts(odds_ng, np.full(500, theta, dtype=np.float32), np.random.default_rng(1))
    counts = np.bincount(rows.counts_e)
    counts[0] += odds_ng.size - len(rows.counts_e)
    expected = stats.nbinom.cdf(np.arange(len(counts)), theta, theta / (theta + mean))
    # Kolmogorov's bound for p = 1e-4; it is wider still for discrete values.
    assert np.abs(np.cumsum(counts) / odds_ng.size - expected).max() < 2.23 / np.sqrt(odds_ng.size)


def test_names_and_columns_are_there(atlas):
    assert (atlas.n_cells, list(atlas.var_names[:2]), atlas.var_names[-1]) == (
        9000,
        ["gene0001", "gene0002"],
        "gene0300",
    )
    assert list(atlas.obs_names(0, 2)) == ["cell00000001", "cell00000002"]
    assert [len(atlas.categorical(key).vocabulary) for key in ("batch", "cell_type", "donor")] == [4, 8, 12]


def test_cells_lie_sorted_by_donor_and_donors_by_batch(atlas):
    donor_n = atlas.categorical("donor").required_codes(0, 9000)
    assert (np.diff(donor_n) >= 0).all()
    assert set(donor_n) == set(range(12))
    assert_array_equal(atlas.categorical("batch").required_codes(0, 9000), donor_n // 3)


def test_types_have_markers_and_batches_shift_genes(atlas):
    counts_ng = dense(atlas.read(0, 9000), 300)
    share_ng = counts_ng / counts_ng.sum(axis=1, keepdims=True)
    type_n, batch_n = (atlas.categorical(key).required_codes(0, 9000) for key in ("cell_type", "batch"))
    by_type = np.array([share_ng[type_n == at].mean(axis=0) for at in range(8)])
    assert ((by_type[0] / (by_type[1:].max(axis=0) + 1e-9)) > 2).sum() >= 3
    shift_g = np.log(share_ng[(batch_n == 0) & (type_n == 0)].mean(axis=0) + 1e-6)
    shift_g -= np.log(share_ng[(batch_n == 3) & (type_n == 0)].mean(axis=0) + 1e-6)
    assert 0.25 < shift_g[by_type[0] > 1e-3].std() < 0.7


def test_most_counts_are_zero_and_libraries_are_log_normal(atlas):
    rows = atlas.read(0, 9000)
    log_n = np.log(rows.library_n())
    assert atlas.n_entries < 0.6 * 9000 * 300
    assert 0.3 < log_n.std() < 0.8
    assert abs(stats.skew(log_n)) < 0.5


def test_the_number_of_processes_changes_no_byte(tmp_path):
    for n_processes in (1, 2):
        simulate(tmp_path / f"{n_processes}.zarr", n_cells=8500, n_genes=40, n_processes=n_processes)
    assert all_files(tmp_path / "1.zarr") == all_files(tmp_path / "2.zarr")


def test_a_block_is_a_function_of_seed_and_number_alone():
    atlas = simulation._Atlas(10_000, 30, 3, 2, 2, 500.0, 0.3, seed=5)
    simulation._draw_block(atlas, 0)
    late = simulation._draw_block(atlas, 2)
    simulation._parameters.cache_clear()
    again = simulation._draw_block(atlas, 2)
    assert len(late.batch_n) == 10_000 - 2 * 4096
    for name in ("counts_e", "genes_e", "indptr"):
        assert_array_equal(getattr(late.rows, name), getattr(again.rows, name))


def test_another_seed_gives_another_atlas(tmp_path):
    paths = [simulate(tmp_path / f"{seed}.zarr", n_cells=50, n_genes=40, seed=seed) for seed in (0, 1)]
    first, second = (dense(open_store(path).read(0, 50), 40) for path in paths)
    assert not np.array_equal(first, second)


def test_progress_is_told_after_every_block(tmp_path):
    told: list[tuple[int, int]] = []
    simulate(
        tmp_path / "a.zarr", n_cells=5000, n_genes=10, progress=lambda done, all_cells: told.append((done, all_cells))
    )
    assert told == [(4096, 5000), (5000, 5000)]


@pytest.mark.parametrize("sizes", [{"n_types": 1}, {"n_batches": 1, "donors_per_batch": 1}, {"n_genes": 3}])
def test_the_smallest_atlas_can_be_made(tmp_path, sizes):
    assert open_store(simulate(tmp_path / "a.zarr", n_cells=3, **({"n_genes": 5} | sizes))).n_cells == 3


@pytest.mark.parametrize("name", ["n_cells", "n_genes", "n_types", "n_batches", "donors_per_batch", "n_processes"])
def test_a_size_below_one_is_refused_and_nothing_written(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is 0: at least 1 is needed"):
        simulate(tmp_path / "a.zarr", **({"n_cells": 5} | {name: 0}))
    assert list(tmp_path.iterdir()) == []
