"""The bounds are sums of the loss terms, and importance sampling finds the integral that a grid finds."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_scvi.config.schema import ModelConfig
from dist_scvi.inference.cell_selection import select
from dist_scvi.inference.likelihood_estimates import (
    elbo,
    marginal_log_likelihood,
    mean_over_cells,
    reconstruction_error,
)
from dist_scvi.loaders import CellData, open_data
from dist_scvi.loaders.minibatch import Covariates
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.network.model_spec import spec_of
from dist_scvi.network.noise import RowNoise
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.network.vae import VAE
from tests.dist_scvi.workers import together

CELLS = np.array([3, 8, 200])


@pytest.fixture(scope="module")
def cells(adata: Any) -> CellData:
    return open_data(adata, batch_key="batch", labels_key="label")


def network(cells: CellData, **options: Any) -> VAE:
    """Make a small network of wide posteriors that are not the prior, so that few draws find an integral."""
    config = ModelConfig(**({"n_hidden": 8, "n_latent": 1} | options))
    module = spec_of(config, 3, cells).build().eval()
    encoders = {"z_encoder": (0.3, 0.2), "l_encoder": (4.3, -1.2), "encoder_z2_z1": (0.2, 0.2)}
    with torch.no_grad():
        for name, (mean, log_var) in encoders.items():
            if (encoder := getattr(module, name, None)) is not None:
                for layer, value in ((encoder.mean_encoder, mean), (encoder.var_encoder, log_var)):
                    layer.weight.mul_(0.1)
                    layer.bias.fill_(value)
        if config.gene_likelihood == "normal" and module.px_r is not None:
            module.px_r.fill_(3.0)
        if module.latent_library:
            module.library_log_means.fill_(4.5)
            module.library_log_vars.fill_(0.2)
    return module


def grid(n: int, low: float = -7, high: float = 7) -> Tensor:
    return torch.linspace(low, high, n)


def log_normal(x: Tensor, mean: Tensor | float, var: Tensor | float) -> Tensor:
    var = torch.as_tensor(var)
    return -0.5 * ((x - mean) ** 2 / var + torch.log(2 * math.pi * var))


@torch.no_grad()
def log_likelihood(module: VAE, cells: CellData, row: int, z_pk: Tensor, library: Tensor | None = None) -> Tensor:
    """Give log p(x | z) of one cell at some points of the latent space, by the plain formula of the likelihood."""
    one = rows_minibatch(cells, np.array([row])).to("cpu")
    n = len(z_pk)
    covariates = Covariates(
        one.covariates.batch_n.expand(n),
        one.covariates.label_n.expand(n),
        one.covariates.categorical_nc.expand(n, -1),
        one.covariates.continuous_nc.expand(n, -1),
    )
    px = module.decode(module.latent(z_pk), one.library_n.expand(n) if library is None else library, covariates)
    entries = len(one.count_e) * torch.arange(n + 1)
    repeated = type(one)(one.n_genes, entries, one.gene_e.repeat(n), one.count_e.repeat(n), one.library_n, covariates)
    return -module.reconstruction(repeated, px, reference=True).double()


def integral(log_values: Tensor, points: Tensor) -> float:
    step = float(points[1] - points[0])
    return float(torch.logsumexp(log_values.double().flatten(), 0)) + math.log(step) * log_values.dim()


def estimate(module: VAE, cells: CellData, **options: Any) -> np.ndarray:
    settings = {"n_samples": 3000, "n_samples_per_pass": 200} | options
    return marginal_log_likelihood(module, rows_minibatch(cells, CELLS), **settings)


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "zinb"},
        {"gene_likelihood": "nb", "dispersion": "gene-batch"},
        {"gene_likelihood": "poisson", "encode_covariates": True},
        {"gene_likelihood": "normal"},
        {"dispersion": "gene-cell"},
        {"dispersion": "gene-label", "batch_representation": "embedding"},
    ],
)
def test_the_marginal_likelihood_is_the_integral_over_the_latent_space(cells: CellData, options: Any) -> None:
    module, z = network(cells, **options), grid(3001)
    expected = [integral(log_normal(z, 0.0, 1.0) + log_likelihood(module, cells, row, z[:, None]), z) for row in CELLS]
    np.testing.assert_allclose(estimate(module, cells), expected, atol=0.05)


def test_the_marginal_likelihood_integrates_a_latent_library_size_too(cells: CellData) -> None:
    module, z, unit = network(cells, use_observed_lib_size=False, gene_likelihood="nb"), grid(101), grid(101, -5, 5)
    sigma = math.sqrt(0.2)
    log_library = 4.5 + sigma * unit
    pairs = torch.cartesian_prod(z, log_library)
    prior = torch.cartesian_prod(log_normal(z, 0.0, 1.0), log_normal(unit, 0.0, 1.0)).sum(1)
    step = math.log(float(z[1] - z[0])) + math.log(float(unit[1] - unit[0]))
    expected = [
        float(torch.logsumexp(prior + log_likelihood(module, cells, row, pairs[:, :1], pairs[:, 1].exp()), 0)) + step
        for row in CELLS
    ]
    np.testing.assert_allclose(estimate(module, cells, n_samples=6000), expected, atol=0.1)


def test_a_logistic_normal_is_integrated_before_its_softmax(cells: CellData) -> None:
    module, z = network(cells, latent_distribution="ln", n_latent=2), grid(101)
    pairs = torch.cartesian_prod(z, z)
    prior = log_normal(pairs, 0.0, 1.0).sum(1)
    expected = [integral((prior + log_likelihood(module, cells, row, pairs)).view(101, 101), z) for row in CELLS]
    np.testing.assert_allclose(estimate(module, cells), expected, atol=0.05)


@torch.no_grad()
def test_the_marginal_likelihood_of_scanvi_sums_over_labels_and_integrates_both_latent_spaces(cells: CellData) -> None:
    module, z1, z2 = network(cells, model_name="SCANVI", y_prior=(0.5, 0.3, 0.2)), grid(801), grid(401)
    assert isinstance(module, SCANVAE)
    module.decoder_z1_z2.var_decoder.bias.sub_(1.0)
    module.decoder_z1_z2.mean_decoder.weight.mul_(4.0)
    module.encoder_z2_z1.mean_encoder.bias.fill_(1.0)
    module.encoder_z2_z1.var_encoder.bias.fill_(0.7)
    label = torch.arange(3)[:, None]
    mean_lpk, var_lpk = module.decoder_z1_z2(z2[:, None], [label], (401,))
    log_joint_lpo = log_normal(z1, mean_lpk, var_lpk) + log_normal(z2, 0.0, 1.0)[:, None]
    log_joint_lpo += torch.tensor([0.5, 0.3, 0.2]).log()[:, None, None]
    log_prior_o = torch.logsumexp(log_joint_lpo.flatten(0, 1), 0) + math.log(float(z2[1] - z2[0]))
    assert abs(integral(log_prior_o, z1)) < 0.01
    expected = [integral(log_prior_o + log_likelihood(module, cells, row, z1[:, None]), z1) for row in CELLS]
    np.testing.assert_allclose(estimate(module, cells), expected, atol=0.1)
    parity = estimate(module, cells, include_latent_terms=True)
    assert np.abs(parity - expected).max() > 0.1


def test_a_logistic_normal_scanvi_has_no_marginal_likelihood(cells: CellData) -> None:
    module = network(cells, model_name="SCANVI", latent_distribution="ln")
    with pytest.raises(ValueError, match=r"has no marginal likelihood: .* use get_elbo"):
        estimate(module, cells)


@pytest.mark.parametrize("model_name", ["SCVI", "SCANVI"])
def test_the_marginal_likelihood_does_not_depend_on_passes_or_company(cells: CellData, model_name: str) -> None:
    module = network(cells, model_name=model_name, n_latent=3, use_observed_lib_size=False)
    whole = estimate(module, cells, n_samples=20, n_samples_per_pass=20)
    for per_pass in (1, 7, 100):
        found = estimate(module, cells, n_samples=20, n_samples_per_pass=per_pass)
        np.testing.assert_allclose(found, whole, rtol=1e-5)
    alone = marginal_log_likelihood(module, rows_minibatch(cells, CELLS[1:2]), n_samples=20)
    np.testing.assert_allclose(alone, whole[1:2], rtol=1e-5)
    assert np.abs(estimate(module, cells, n_samples=20, seed=1) - whole).max() > 1e-3


@pytest.mark.parametrize("model_name", ["SCVI", "SCANVI", "LinearSCVI"])
def test_the_bound_is_below_the_marginal_likelihood_and_the_sum_of_all_terms(cells: CellData, model_name: str) -> None:
    module, minibatch = network(cells, model_name=model_name), rows_minibatch(cells, CELLS)
    with torch.no_grad():
        terms = module(minibatch.to("cpu"), (), RowNoise(4, CELLS), reference=True)
    latent, kl = terms.latent_n, terms.kl_n + terms.kl_library_n
    np.testing.assert_allclose(elbo(module, minibatch, seed=4), -(terms.reconstruction_n + latent + kl), rtol=1e-5)
    np.testing.assert_allclose(reconstruction_error(module, minibatch, seed=4), terms.reconstruction_n, rtol=1e-5)
    np.testing.assert_allclose(
        reconstruction_error(module, minibatch, include_latent_terms=True, seed=4),
        terms.reconstruction_n + latent,
        rtol=1e-5,
    )
    assert (latent != 0).all() == (model_name == "SCANVI")
    bound = np.mean([elbo(module, minibatch, seed=seed) for seed in range(60)], axis=0)
    assert (bound < estimate(module, cells, n_samples=500) + 0.2).all()


def test_the_mean_is_over_the_cells_asked_for_as_often_as_they_are(cells: CellData) -> None:
    asked = np.array([5, 5, 5, 2, 300, 17, 17])

    def compute(minibatch: Any) -> np.ndarray:
        return minibatch.row_n.astype(np.float32)

    for chosen, expected in ((select(cells, asked), asked.mean()), (select(cells), 201.0)):
        for chunk_cells in (2, 1000):
            assert mean_over_cells(chosen, compute, chunk_cells=chunk_cells) == expected

            def work(world: Any, chosen: Any = chosen, chunk_cells: int = chunk_cells) -> float:
                return mean_over_cells(chosen, compute, world, chunk_cells=chunk_cells)

            np.testing.assert_allclose(together(2, work), expected, rtol=1e-12)
