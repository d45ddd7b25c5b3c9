"""The posterior of cells in the latent space, and the aggregated posterior of many cells.

Shape letters in this file
    n   cells
    k   latent dimensions
    s   points
"""

import math
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal, StudentT

from dist_scvi.inference.cell_selection import Selection
from dist_scvi.loaders.arrays.obs_columns import Categorical as Column
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.read_limits import PAGE_ROWS
from dist_scvi.network.vae import VAE
from dist_scvi.world import World

_BLOCK_VALUES = 1 << 22
_FACTORS = 8
"""Dimensions whose factors are multiplied before a logarithm: their product stays far below the largest double."""


@torch.no_grad()
def posterior_of(module: VAE, minibatch: MiniBatch) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the posterior of cells, before a softmax, on the device of the model."""
    return module.encode(minibatch.to(module.device))


def logistic_normal_mean(qzm_nk: Tensor, qzv_nk: Tensor, mc_samples: int, *, seed: int = 0) -> Tensor:
    """Average the softmax over `mc_samples` quasi-random points of the posterior, in blocks of points.

    Notes
    -----
    The points are a scrambled Halton sequence (Owen 2017, arXiv:1706.02808), the same for all cells. The error of
    separate random draws for each cell would be several times as large, and drawing them would take most of the time.
    """
    from scipy.stats.qmc import Halton

    points = Halton(qzm_nk.shape[1], seed=np.random.default_rng(seed))
    total_nk, sigma_nk = torch.zeros_like(qzm_nk, dtype=torch.float64), qzv_nk.sqrt()
    width = max(1, _BLOCK_VALUES // qzm_nk.numel())
    for first in range(0, mc_samples, width):
        uniform_sk = points.random(min(width, mc_samples - first)).clip(2.0**-53, 1 - 2.0**-53)
        noise_sk = torch.from_numpy(ndtri(uniform_sk)).to(qzm_nk)
        total_nk += torch.softmax(qzm_nk + sigma_nk * noise_sk[:, None], dim=-1).sum(dim=0, dtype=torch.float64)
    return (total_nk / mc_samples).float()


def posterior_moments(
    module: VAE, selection: Selection, world: World | None = None, *, chunk_cells: int
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the posterior of all requested cells, shape (n, k), on the device of the model."""

    def moments(minibatch: MiniBatch) -> tuple[NDArray[np.float32], ...]:
        return tuple(moment_nk.cpu().numpy() for moment_nk in posterior_of(module, minibatch))

    qzm_nk, qzv_nk = selection.answer(moments, world, chunk_cells=chunk_cells)
    return torch.from_numpy(qzm_nk).to(module.device), torch.from_numpy(qzv_nk).to(module.device)


class AggregatedPosterior(MixtureSameFamily):
    """The equal mixture of the posteriors of some cells. Memory does not grow with cells times points.

    `log_prob` and `sample` of torch's mixture are replaced: they would allocate arrays of points times cells.

    Parameters
    ----------
    qzm_nk, qzv_nk
        Mean and variance of each posterior.
    dof
        Degrees of freedom of Student's t in place of each normal; None for normals.
    variance_as_scale
        Use the variance as the standard deviation, as scvi-tools 1.4.2, model/base/_vaemixin.py, does.

    Raises
    ------
    ValueError
        If `dof` is not above 0.
    """

    def __init__(
        self, qzm_nk: Tensor, qzv_nk: Tensor, dof: float | None = 3.0, *, variance_as_scale: bool = False
    ) -> None:
        if dof is not None and not dof > 0:
            raise ValueError(f"dof={dof!r}: a number above 0 is needed, or None for normals")
        self._dof, self._loc_nk = dof, qzm_nk
        self._scale_nk = qzv_nk if variance_as_scale else qzv_nk.sqrt()
        equal = Categorical(logits=qzm_nk.new_zeros(len(qzm_nk)))
        super().__init__(equal, self._components(self._loc_nk, self._scale_nk))

    def _components(self, loc: Tensor, scale: Tensor) -> Distribution:
        return Independent(Normal(loc, scale) if self._dof is None else StudentT(self._dof, loc, scale), 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density at points in the latent space, shape (..., k), in blocks of cells and points."""
        n, k = self._loc_nk.shape
        width = max(1, min(n, _BLOCK_VALUES // k))
        loc, scale = torch.split(self._loc_nk.double(), width), torch.split(self._scale_nk.double(), width)
        density = _normal_log_density if self._dof is None else partial(_student_log_density, self._dof)
        parts = [
            torch.stack([density(part, *block).logsumexp(dim=1) for block in zip(loc, scale, strict=True)]).logsumexp(0)
            for part in torch.split(value.reshape(-1, k).double(), max(1, _BLOCK_VALUES // width))
        ]
        return (torch.cat(parts) - math.log(n)).reshape(value.shape[:-1]).to(value.dtype)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draw from the mixture, with torch's global generator."""
        chosen = torch.randint(len(self._loc_nk), tuple(sample_shape), device=self._loc_nk.device)
        return self._components(self._loc_nk[chosen], self._scale_nk[chosen]).sample()


def _normal_log_density(value_sk: Tensor, loc_nk: Tensor, scale_nk: Tensor) -> Tensor:
    """Return log N(value; loc, scale), shape (s, n), by two matrix products in double precision, as terms cancel."""
    precision_nk = scale_nk.square().reciprocal()
    distance_sn = value_sk.square() @ precision_nk.t() - 2 * value_sk @ (loc_nk * precision_nk).t()
    constant_n = (loc_nk.square() * precision_nk + 2 * scale_nk.log() + math.log(2 * math.pi)).sum(dim=1)
    return distance_sn.add_(constant_n).mul_(-0.5)


def _student_log_density(dof: float, value_sk: Tensor, loc_nk: Tensor, scale_nk: Tensor) -> Tensor:
    """Return the log-density of independent Student's t, shape (s, n).

    The factors of several dimensions are multiplied before the logarithm. A logarithm for each dimension would take
    most of the time.
    """
    k = value_sk.shape[1]
    constant = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi)
    log_sn = (k * constant - scale_nk.log().sum(dim=1)).expand(len(value_sk), -1)
    for first in range(0, k, _FACTORS):
        product_sn = value_sk.new_ones(len(value_sk), len(loc_nk))
        for column in range(first, min(first + _FACTORS, k)):
            distance_sn = (value_sk[:, column, None] - loc_nk[:, column]) / scale_nk[:, column]
            product_sn *= distance_sn.square_().div_(dof).add_(1)
        log_sn = log_sn - product_sn.log_().mul_((dof + 1) / 2)
    return log_sn


def rows_by_category(
    column: Column, n_cells: int, *, most: int | None = None, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each category that occurs, or `most` of them chosen at random.

    Parameters
    ----------
    column
        obs column.
    most
        Largest number of rows of a category.
    """
    pages = range(0, n_cells, PAGE_ROWS)
    code_n = np.concatenate([column.codes(at, min(at + PAGE_ROWS, n_cells)) for at in pages])
    chosen = {}
    for code, name in enumerate(column.vocabulary):
        row_n = np.flatnonzero(code_n == code)
        # A generator for each category: the rows chosen from one do not depend on the size of the others.
        if most is not None and most < len(row_n):
            row_n = np.sort(np.random.default_rng((seed, code)).choice(row_n, most, replace=False))
        if len(row_n):
            chosen[name] = row_n
    return chosen
