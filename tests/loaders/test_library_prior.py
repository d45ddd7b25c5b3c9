"""The prior of the library size is that of scvi-tools, however the cells are divided among reads and workers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from dist_scvi.loaders import CellData, open_data, read_limits
from dist_scvi.loaders.library_prior import library_prior, library_sums, prior_from

GOLDEN = Path(__file__).parents[3] / "shared" / "parity" / "golden"
LATENT = ("scvi_latent_library", "scvi_latent_library_cov", "scanvi_latent_library", "ldvae_default", "ldvae_zinb")


def open_cells(total_n: np.ndarray, batch_n: np.ndarray, names: tuple[str, ...] = ("a", "b", "c")) -> CellData:
    """Cells of given total counts, spread over two genes."""
    counts = sparse.csr_matrix(np.stack([total_n // 3, total_n - total_n // 3], axis=1).astype(np.float32))
    obs = pd.DataFrame({"batch": pd.Categorical.from_codes(batch_n, names)}, index=np.arange(len(total_n)).astype(str))
    return open_data(AnnData(counts, obs=obs), batch_key="batch")


@pytest.fixture
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_limits, "READ_CELLS", 7)


@pytest.mark.real_data
@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden cases are not beside the checkout ({GOLDEN})")
@pytest.mark.parametrize("case", LATENT)
def test_the_prior_is_that_of_scvi_tools(case: str) -> None:
    means_b, vars_b = library_prior(open_data(read_h5ad(GOLDEN / case / "adata.h5ad"), batch_key="batch"))
    init = np.load(GOLDEN / case / "init.npz")
    np.testing.assert_allclose(means_b, init["weight.library_log_means"].ravel(), rtol=1e-6)
    np.testing.assert_allclose(vars_b, init["weight.library_log_vars"].ravel(), rtol=1e-6)
    assert means_b.dtype == vars_b.dtype == np.float32


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 2)), min_size=1, max_size=80), st.integers(1, 30))
@settings(max_examples=50)
def test_it_is_mean_and_variance_of_the_logs_for_any_length_of_reads(cells, read_cells) -> None:
    total_n, batch_n = np.array(cells).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_limits, "READ_CELLS", read_cells)
        means_b, vars_b = library_prior(open_cells(total_n, batch_n))
    for batch in range(3):
        log_n = np.log(total_n[batch_n == batch])
        assert means_b[batch] == pytest.approx(log_n.mean() if len(log_n) else 0, rel=1e-6)
        assert vars_b[batch] == pytest.approx(log_n.var() if len(log_n) else 1, rel=1e-6, abs=1e-12)


def test_a_batch_without_cells_has_mean_0_and_variance_1() -> None:
    means_b, vars_b = library_prior(open_cells(np.array([5, 9]), np.array([2, 2])))
    assert (means_b[:2].tolist(), vars_b[:2].tolist()) == ([0, 0], [1, 1])
    assert means_b[2] == pytest.approx(np.log([5, 9]).mean())


def test_without_a_batch_column_all_cells_are_of_one_batch() -> None:
    data = open_data(AnnData(np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)))
    log_n = np.log([3, 7, 11])
    means_b, vars_b = library_prior(data)
    np.testing.assert_allclose([means_b, vars_b], [[log_n.mean()], [log_n.var()]], rtol=1e-6)


def test_a_cell_without_counts_counts_as_a_log_of_0_and_is_told() -> None:
    data = open_cells(np.array([100, 0, 50, 0]), np.array([0, 0, 1, 1]))
    with pytest.warns(UserWarning, match="2 cells have no counts, .* filter them") as told:
        means_b, vars_b = library_prior(data)
    assert means_b[:2] == pytest.approx([np.log(100) / 2, np.log(50) / 2])
    assert vars_b[:2] == pytest.approx([(np.log(100) / 2) ** 2, (np.log(50) / 2) ** 2])
    assert told[0].filename == __file__


@pytest.mark.usefixtures("small_reads")
def test_the_sums_of_several_workers_add_up_to_those_of_one() -> None:
    random = np.random.default_rng(0)
    data = open_cells(random.integers(1, 10**5, 100), random.integers(0, 3, 100))
    alone = library_sums(data)
    shares = [library_sums(data, rank=rank, world_size=3) for rank in range(3)]
    assert all(share[:, 0].sum() < 50 for share in shares)
    np.testing.assert_allclose(sum(shares), alone, rtol=1e-12)
    for one, several in zip(prior_from(alone), prior_from(sum(shares)), strict=True):
        np.testing.assert_array_equal(one, several)


def test_equal_totals_have_no_variance_even_where_they_are_large() -> None:
    means_b, vars_b = library_prior(open_cells(np.full(5000, 4_000_000), np.zeros(5000, dtype=int)))
    assert means_b[0] == pytest.approx(np.log(4e6))
    assert 0 <= vars_b[0] < 1e-12


@pytest.mark.usefixtures("small_reads")
def test_progress_is_told_read_by_read() -> None:
    told: list[tuple[int, int]] = []
    library_prior(open_cells(np.ones(20, int), np.zeros(20, int)), on_progress=lambda done, of: told.append((done, of)))
    assert told == [(7, 20), (14, 20), (20, 20)]


@pytest.mark.usefixtures("small_reads")
def test_a_read_begins_and_ends_with_a_chunk_of_the_store() -> None:
    data = open_cells(np.ones(30, dtype=int), np.zeros(30, dtype=int))
    read = data.store.read
    spans: list[tuple[int, int]] = []
    data.store.chunk_cells = 3
    data.store.read = lambda start, stop: spans.append((start, stop)) or read(start, stop)
    library_prior(data)
    assert spans == [(0, 6), (6, 12), (12, 18), (18, 24), (24, 30)]
