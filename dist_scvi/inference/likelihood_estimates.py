"""Evidence lower bound, reconstruction error and marginal likelihood of each cell.

Shape letters in this file
    n   cells
    d   draws times cells: all cells of the first draw, then all of the second, and so on
    g   genes
    k   latent dimensions
    l   labels
    e   stored entries of the cells
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_scvi.inference.cell_selection import Selection
from dist_scvi.loaders.minibatch import Covariates, MiniBatch, Tensors
from dist_scvi.network.likelihood import log_normal, sparse_log_likelihood
from dist_scvi.network.loss_terms import LossTerms
from dist_scvi.network.noise import RowNoise
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.network.vae import VAE
from dist_scvi.world import World

_ROWS_AT_ONCE = 1 << 14
"""Draws times labels in a forward pass of SCANVI's networks."""

Normals = tuple[Tensor, Tensor]
"""Mean and variance of independent normals."""


def elbo(module: VAE, minibatch: MiniBatch, *, seed: int = 0) -> NDArray[np.float32]:
    """Return the evidence lower bound of each cell at one draw, shape (n,); higher is better."""
    terms = _loss_terms(module, minibatch, seed)
    return _array(-(terms.reconstruction_n + terms.latent_n + terms.kl_n + terms.kl_library_n))


def reconstruction_error(
    module: VAE, minibatch: MiniBatch, *, include_latent_terms: bool = False, seed: int = 0
) -> NDArray[np.float32]:
    """Return the negative log-probability of the counts of each cell at one draw, shape (n,).

    Parameters
    ----------
    include_latent_terms
        SCANVI: add ``log q(z | x) - log p(z | z2, y)``, as scvi-tools 1.4.2 does.
    """
    terms = _loss_terms(module, minibatch, seed)
    return _array(terms.reconstruction_n + terms.latent_n if include_latent_terms else terms.reconstruction_n)


def mean_over_cells(
    selection: Selection,
    compute: Callable[[MiniBatch], NDArray[np.float32]],
    world: World | None = None,
    *,
    chunk_cells: int,
) -> float:
    """Average one number of each cell over the requested cells, on all workers together."""
    world = world or World()
    # The selection has each cell once; one that is requested twice counts twice in the mean.
    times_n = None if isinstance(selection.order, slice) else np.bincount(selection.order)
    total = np.zeros(2)
    for minibatch in selection.minibatches(world, chunk_cells=chunk_cells):
        span = slice(minibatch.step, minibatch.step + minibatch.n_cells)
        weight_n = np.ones(minibatch.n_cells) if times_n is None else times_n[span]
        total += weight_n @ compute(minibatch).astype(np.float64), weight_n.sum()
    value, n_cells = np.sum(world.from_all(total), axis=0)
    return np.float64(value / n_cells)  # a float with .item(), which scripts written for scvi-tools call


@torch.no_grad()
def _loss_terms(module: VAE, minibatch: MiniBatch, seed: int) -> LossTerms:
    terms: LossTerms = module(minibatch.to(module.device), (), RowNoise(seed, minibatch.row_n))
    return terms


@torch.no_grad()
def marginal_log_likelihood(
    module: VAE,
    minibatch: MiniBatch,
    *,
    n_samples: int,
    n_samples_per_pass: int = 1,
    include_latent_terms: bool = False,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Estimate the logarithm of p(x) of each cell by importance sampling from its posterior, shape (n,).

    Parameters
    ----------
    n_samples
        Draws for each cell.
    n_samples_per_pass
        Draws in memory at a time; the result does not depend on it.
    include_latent_terms
        SCANVI: use the p(x | z) of scvi-tools 1.4.2, module/_vae.py, which contains latent terms.

    Raises
    ------
    ValueError
        If the model is a logistic-normal SCANVI: p(z | z2, y) is then a density on another space than q(z | x).

    Notes
    -----
    The mean of the weights ``p(x | z, l) p(z) p(l) / (q(z | x) q(l | x))`` has the expectation p(x). For SCANVI
    ``p(z)`` is a sum over labels and an integral over z2: the expectation of
    ``sum_y p(y) p(z | z2, y) p(z2) / q(z2 | z, y)`` at a draw of z2 for each label. For a logistic normal, the
    densities are those of z before the softmax; scvi-tools uses z after the softmax.
    """
    if isinstance(module, SCANVAE) and module.config.latent_distribution == "ln":
        raise ValueError(
            "SCANVI with latent_distribution='ln' has no marginal likelihood: its p(z | z2, y) is that of z after the "
            "softmax, q(z | x) that before it; use get_elbo"
        )
    cells, row_n = minibatch.to(module.device), minibatch.row_n
    posterior = module.encode(cells)
    library = module.encode_library(cells) if module.latent_library else None
    # A running sum of weights on the log scale: memory follows n_samples_per_pass, not n_samples.
    total_n = torch.full((len(row_n),), -math.inf, dtype=torch.float64, device=module.device)
    for first in range(0, n_samples, n_samples_per_pass):
        draws = range(first, min(first + n_samples_per_pass, n_samples))
        noises = [RowNoise(seed, row_n, draw) for draw in draws]
        log_weight_d = _log_weights(
            module, cells, posterior, library, noises, include_latent_terms=include_latent_terms
        )
        log_weights = log_weight_d.double().view(len(draws), len(row_n))
        total_n = torch.logaddexp(total_n, torch.logsumexp(log_weights, dim=0))
    return _array(total_n - math.log(n_samples))


def _log_weights(
    module: VAE,
    cells: Tensors,
    posterior: Normals,
    library: Normals | None,
    noises: Sequence[RowNoise],
    *,
    include_latent_terms: bool,
) -> Tensor:
    """Return the logarithm of the weight of a draw for each of `noises` and each cell, shape (d,)."""
    n_draws = len(noises)
    covariates = _repeated(cells.covariates, n_draws)
    z_dk, log_q_d = _draw(posterior, noises)
    log_weight_d = -log_q_d
    library_d = cells.library_n.repeat(n_draws)
    if library is not None:
        log_library_d1, log_q_library_d = _draw(library, noises)
        mean_d, var_d = module.library_prior(covariates.batch_n)
        log_weight_d += log_normal(log_library_d1[:, 0], mean_d, var_d.sqrt()) - log_q_library_d
        library_d = log_library_d1[:, 0].exp()
    log_weight_d += _log_likelihood(module, cells, covariates, z_dk, library_d)
    if not isinstance(module, SCANVAE):
        return log_weight_d + _log_standard_normal(z_dk)
    log_p_dl, log_ratio_dl = _given_labels(module, z_dk, torch.cat([noise.normal(posterior[0]) for noise in noises]))
    if include_latent_terms:
        expected_d = (module.probabilities(z_dk) * log_p_dl).sum(-1)
        return log_weight_d + _log_standard_normal(z_dk) + expected_d - log_q_d
    return log_weight_d + torch.logsumexp(module.y_prior.log() + log_p_dl + log_ratio_dl, dim=-1)


def _log_likelihood(module: VAE, cells: Tensors, covariates: Covariates, z_dk: Tensor, library_d: Tensor) -> Tensor:
    """Return log p(x | z, l), shape (d,)."""
    px = module.decode(module.latent(z_dk), library_d, covariates)
    n_draws = len(z_dk) // len(cells.library_n)
    first_s1 = torch.arange(n_draws, device=z_dk.device)[:, None] * cells.counts_ng.numel()
    return sparse_log_likelihood(
        module.config.gene_likelihood,
        (first_s1 + cells.place_e).flatten(),
        cells.count_e.repeat(n_draws),
        px.rate_ng,
        px.theta_ng,
        px.zi_logits_ng,
    )


def _given_labels(module: SCANVAE, z1_dk: Tensor, noise_dk: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(z1 | z2, y) and log p(z2) / q(z2 | z1, y) at one draw of z2 for each label, each of shape (d, l)."""
    label_l1 = torch.arange(module.n_labels, device=z1_dk.device)[:, None]
    width = max(1, _ROWS_AT_ONCE // module.n_labels)
    log_p, log_ratio = [], []
    for part_dk, part_noise_dk in zip(torch.split(z1_dk, width), torch.split(noise_dk, width), strict=True):
        mean_ldk, var_ldk = module.encoder_z2_z1(part_dk, [label_l1], (len(part_dk),), None)
        z2_ldk = mean_ldk + var_ldk.sqrt() * part_noise_dk
        log_q_ld = log_normal(z2_ldk, mean_ldk, var_ldk.sqrt()).sum(-1)
        log_ratio.append((_log_standard_normal(z2_ldk) - log_q_ld).t())
        mean_ldk, var_ldk = module.decoder_z1_z2(z2_ldk, [label_l1], (len(part_dk),))
        log_p.append(log_normal(part_dk, mean_ldk, var_ldk.sqrt()).sum(-1).t())
    return torch.cat(log_p), torch.cat(log_ratio)


def _draw(normals: Normals, noises: Sequence[RowNoise]) -> tuple[Tensor, Tensor]:
    """Draw once for each of `noises`; return the draws and their log-densities, shapes (d, k) and (d,)."""
    mean_dk, sigma_dk = normals[0].repeat(len(noises), 1), normals[1].sqrt().repeat(len(noises), 1)
    value_dk = mean_dk + sigma_dk * torch.cat([noise.normal(normals[0]) for noise in noises])
    return value_dk, log_normal(value_dk, mean_dk, sigma_dk).sum(-1)


def _log_standard_normal(value_dk: Tensor) -> Tensor:
    return -0.5 * (value_dk.square() + math.log(2 * math.pi)).sum(-1)


def _repeated(covariates: Covariates, n_draws: int) -> Covariates:
    return Covariates(
        covariates.batch_n.repeat(n_draws),
        covariates.label_n.repeat(n_draws),
        covariates.categorical_nc.repeat(n_draws, 1),
        covariates.continuous_nc.repeat(n_draws, 1),
    )


def _array(value_n: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = value_n.float().cpu().numpy()
    return values
