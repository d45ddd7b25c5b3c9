"""Posterior predictive counts, parameters of the likelihood, and denoised rates of cells.

Shape letters in this file
    n   cells
    g   requested genes
    s   samples
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_scvi.expression.keyed_counts import EntryNoise, gamma, negative_binomial, poisson
from dist_scvi.inference.encode_decode import LatentCells, decode_draw, draws_of
from dist_scvi.network.vae import VAE

_COUNT_KEY, _RATE_KEY = 1, 2
_NB = {"mean": "mean_ng", "dispersions": "theta_ng"}
PARAMETERS = {
    "zinb": {"mean": "mean_ng", "dropout": "zero_ng", "dispersions": "theta_ng"},
    "nb": _NB,
    "poisson": {"mean": "mean_ng"},
    "normal": _NB,
}
"""Parameters of each likelihood by the names of scvi-tools, and the fields of `Likelihood` that hold them."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Likelihood:
    """The distribution of the counts of some cells at one draw of the posterior, each of shape (n, g)."""

    scale_ng: Array
    """Share of each gene."""
    mean_ng: Array
    """Expected count, before zero inflation."""
    theta_ng: Array
    """Inverse dispersion; standard deviation for normal."""
    zero_ng: Array | None
    """Probability of zero inflation, for zinb."""


def likelihood_at(
    module: VAE,
    cells: LatentCells,
    gene_index: NDArray[np.int64],
    *,
    seed: int,
    draw: int | None,
    batch: int | None = None,
) -> Likelihood:
    """Decode cells at a draw of the posterior; a `draw` of None is its mean, a `batch` of None the cell's own."""
    gene_g = torch.from_numpy(gene_index).to(module.device)
    with torch.no_grad():
        px = decode_draw(module, cells, seed=seed, draw=draw, batch=batch, gene_g=gene_g)
    theta_ng, zi_logits_ng = px.theta_ng.expand_as(px.rate_ng), px.zi_logits_ng
    zero_ng = None if zi_logits_ng is None else _numpy(torch.sigmoid(zi_logits_ng))
    return Likelihood(_numpy(px.scale_ng), _numpy(px.rate_ng), _numpy(theta_ng), zero_ng)


def predictive_counts(
    module: VAE,
    cells: LatentCells,
    gene_index: NDArray[np.int64],
    batches: tuple[int | None, ...],
    *,
    n_samples: int,
    seed: int,
) -> NDArray[np.float32]:
    """Draw counts from the posterior predictive distribution, shape (n, g, s), averaged over `batches`.

    Notes
    -----
    scvi-tools 1.4.2, module/_vae.py: sample. The counts are quantiles at uniform numbers keyed by cell, gene and draw:
    rejection sampling would use up a number of random values that depends on the parameters.
    """
    noise = EntryNoise(seed, cells.row_n, gene_index)
    total = np.zeros((*noise.shape, n_samples))
    for draw in range(n_samples):
        for place, batch in enumerate(batches):
            px = likelihood_at(module, cells, gene_index, seed=seed, draw=draw, batch=batch)
            total[..., draw] += _counts(module, px, noise, draw, place)
    return (total / len(batches)).astype(np.float32)


def _counts(module: VAE, px: Likelihood, noise: EntryNoise, *keys: int) -> Array | NDArray[np.int64]:
    likelihood = module.config.gene_likelihood
    if likelihood == "normal":
        return px.mean_ng + px.theta_ng * noise.normal(_COUNT_KEY, *keys)
    uniform_ng = noise.uniform(_COUNT_KEY, *keys)
    if likelihood == "poisson":
        return poisson(uniform_ng, px.mean_ng)
    if px.zero_ng is not None:  # the lowest quantiles are the inflated zeros, so one uniform number is enough
        uniform_ng = np.maximum(uniform_ng - px.zero_ng, 0) / (1 - px.zero_ng)
    return negative_binomial(uniform_ng, px.mean_ng, px.theta_ng)


def likelihood_parameters(
    module: VAE, cells: LatentCells, *, n_samples: int | None, give_mean: bool, seed: int
) -> dict[str, NDArray[np.float32]]:
    """Return the parameters of the likelihood at each draw, shape (n, s, g), or (n, g) for one draw or their mean.

    Notes
    -----
    scvi-tools 1.4.2, model/base/_rnamixin.py: get_likelihood_parameters, which fails for Poisson and normal.
    """
    every = np.arange(module.n_genes)
    sampled = [likelihood_at(module, cells, every, seed=seed, draw=draw) for draw in draws_of(n_samples)]
    found = {}
    for name, field in PARAMETERS[module.config.gene_likelihood].items():
        value_nsg = np.stack([getattr(px, field) for px in sampled], axis=1)
        value_nsg = value_nsg.mean(axis=1) if give_mean or len(sampled) == 1 else value_nsg
        found[name] = value_nsg.astype(np.float32)
    return found


def denoised_rates(
    module: VAE,
    cells: LatentCells,
    gene_index: NDArray[np.int64],
    batch: int | None,
    size_factor: float,
    n_samples: int,
    seed: int,
) -> NDArray[np.float32]:
    """Draw the rates of the Poisson distribution of the counts, at one library size, shape (n, s, g).

    Notes
    -----
    scvi-tools 1.4.2, model/base/_rnamixin.py: _get_denoised_samples: a gamma for zinb and nb. It fails for Poisson and
    normal; here the rate is then the expected count.
    """
    noise = EntryNoise(seed, cells.row_n, gene_index)
    rates = np.empty((len(cells.row_n), n_samples, len(gene_index)), dtype=np.float32)
    for draw in range(n_samples):
        px = likelihood_at(module, cells, gene_index, seed=seed, draw=draw, batch=batch)
        rates[:, draw] = size_factor * px.scale_ng
        if module.config.gene_likelihood in ("zinb", "nb"):
            rates[:, draw] *= gamma(noise, px.theta_ng, _RATE_KEY, draw) / px.theta_ng
    return rates


def _numpy(values: Tensor) -> Array:
    return values.double().cpu().numpy()
