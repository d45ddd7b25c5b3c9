"""What the likelihood says of cells follows the distribution that the decoder gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dist_scvi.config.schema import ModelConfig
from dist_scvi.expression.predictive import denoised_rates, likelihood_at, likelihood_parameters, predictive_counts
from dist_scvi.inference.encode_decode import LatentCells, latent_cells
from dist_scvi.loaders import CellData
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.network.model_spec import spec_of
from dist_scvi.network.vae import VAE

GENES = np.array([7, 0, 49])
ROWS = np.arange(60)
S = 400
Made = Callable[..., tuple[VAE, LatentCells]]


@pytest.fixture(scope="module")
def made(data: CellData) -> Made:
    def made(likelihood: str, **options: Any) -> tuple[VAE, LatentCells]:
        spec = spec_of(ModelConfig(n_hidden=8, n_latent=3, gene_likelihood=likelihood, **options), 1, data)
        module = spec.build().eval()
        return module, latent_cells(module, rows_minibatch(data, ROWS))

    return made


def loud(module: VAE, cells: LatentCells) -> np.ndarray:
    """Give the genes with the highest expected counts."""
    px = likelihood_at(module, cells, np.arange(50), seed=1, draw=None)
    return np.argsort(-px.mean_ng.mean(axis=0))[:3]


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson", "normal"])
def test_counts_have_the_mean_and_variance_of_the_likelihood(made: Made, likelihood: str) -> None:
    module, cells = made(likelihood)
    cells.qzv_nk[:] = 1e-12  # one z, so that only the likelihood varies
    genes = loud(module, cells)
    counts = predictive_counts(module, cells, genes, (None,), n_samples=S, seed=1)
    assert counts.shape == (60, 3, S)
    px = likelihood_at(module, cells, genes, seed=1, draw=0)
    zero = 0 if px.zero_ng is None else px.zero_ng
    inner = {"poisson": px.mean_ng, "normal": px.theta_ng**2}.get(likelihood, px.mean_ng + px.mean_ng**2 / px.theta_ng)
    mean, variance = (1 - zero) * px.mean_ng, (1 - zero) * (inner + zero * px.mean_ng**2)
    many = mean * S > 100  # enough for the mean of a skewed distribution to be normal
    assert many.mean() > 0.5
    assert np.abs((counts.mean(axis=2) - mean) / np.sqrt(variance / S))[many].max() < 5
    np.testing.assert_allclose(counts.var(axis=2).sum(axis=0), variance.sum(axis=0), rtol=0.15)
    if likelihood != "normal":
        np.testing.assert_array_equal(counts, np.round(counts))
        silent = {"poisson": np.exp(-px.mean_ng)}.get(likelihood, (1 + px.mean_ng / px.theta_ng) ** -px.theta_ng)
        np.testing.assert_allclose((counts == 0).mean(axis=2).mean(), (zero + (1 - zero) * silent).mean(), atol=0.01)


@pytest.mark.parametrize("likelihood", ["zinb", "poisson"])
def test_what_is_drawn_for_a_cell_and_gene_is_the_same_in_any_company(made: Made, likelihood: str) -> None:
    module, cells = made(likelihood)
    whole = predictive_counts(module, cells, np.arange(50), (None,), n_samples=2, seed=1)
    some = np.array([40, 3])
    few = predictive_counts(module, cells.take(some), GENES, (None,), n_samples=2, seed=1)
    np.testing.assert_array_equal(few, whole[np.ix_(some, GENES)])
    rates = denoised_rates(module, cells, np.arange(50), None, 1000, 2, 1)
    few_rates = denoised_rates(module, cells.take(some), GENES, None, 1000, 2, 1)
    np.testing.assert_allclose(few_rates, rates[some][:, :, GENES], rtol=1e-4)
    assert not np.array_equal(whole, predictive_counts(module, cells, np.arange(50), (None,), n_samples=2, seed=2))


def test_counts_are_averaged_over_batches_and_each_is_drawn_anew(made: Made) -> None:
    module, cells = made("nb")
    genes = loud(module, cells)
    first, second, both, twice = (
        predictive_counts(module, cells, genes, batches, n_samples=200, seed=1)
        for batches in ((0,), (1,), (0, 1), (0, 0))
    )
    np.testing.assert_allclose(both.mean(axis=2).mean(axis=0), (first + second).mean(axis=2).mean(axis=0) / 2, rtol=0.1)
    assert twice.var() < 0.8 * first.var()


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson", "normal"])
def test_rates_have_the_mean_and_spread_of_their_gamma(made: Made, likelihood: str) -> None:
    module, cells = made(likelihood)
    cells.qzv_nk[:] = 1e-12
    rates = denoised_rates(module, cells, GENES, None, 1000, S, 1)
    assert rates.shape == (60, S, 3)
    px = likelihood_at(module, cells, GENES, seed=1, draw=0)
    mean = 1000 * px.scale_ng
    if likelihood in ("poisson", "normal"):
        np.testing.assert_allclose(rates, np.broadcast_to(mean[:, None], rates.shape), rtol=1e-4)
        return
    np.testing.assert_allclose(rates.mean(axis=1).mean(axis=0), mean.mean(axis=0), rtol=0.05)
    spread = rates.std(axis=1) / mean
    np.testing.assert_allclose(np.median(spread, axis=0), 1 / np.sqrt(px.theta_ng[0]), rtol=0.1)


def test_parameters_are_those_there_are_at_each_draw_or_their_mean(made: Made) -> None:
    names = {
        "zinb": ["mean", "dropout", "dispersions"],
        "nb": ["mean", "dispersions"],
        "poisson": ["mean"],
        "normal": ["mean", "dispersions"],
    }
    for likelihood, expected in names.items():
        module, cells = made(likelihood, dispersion="gene-cell" if likelihood != "normal" else "gene")
        every, mean, one, centre = (
            likelihood_parameters(module, cells, n_samples=n_samples, give_mean=give_mean, seed=1)
            for n_samples, give_mean in ((3, False), (3, True), (1, False), (None, False))
        )
        assert list(every) == list(mean) == list(one) == list(centre) == expected
        for name in expected:
            assert every[name].shape == (60, 3, 50)
            np.testing.assert_allclose(every[name].mean(axis=1), mean[name], rtol=1e-5)
            np.testing.assert_allclose(every[name][:, 0], one[name], rtol=1e-6)
        px = likelihood_at(module, cells, np.arange(50), seed=1, draw=None)
        np.testing.assert_allclose(centre["mean"], px.mean_ng, rtol=1e-6)
