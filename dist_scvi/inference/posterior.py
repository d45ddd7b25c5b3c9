"""The posterior of cells in the latent space, and that of many cells taken together.

Shape letters in this file
    n   cells
    k   latent dimensions
    s   points
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal, StudentT

from dist_scvi.inference.cell_selection import Selection
from dist_scvi.loaders.arrays.obs_columns import Categorical as Column
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.network.vae import VAE
from dist_scvi.world import World

_BLOCK_VALUES = 1 << 22
_PAGE_ROWS = 1 << 16


@torch.no_grad()
def posterior_of(module: VAE, minibatch: MiniBatch) -> tuple[Tensor, Tensor]:
    """Give mean and variance of the posterior of cells, before any softmax, on the device of the model."""
    return module.encode(minibatch.to(module.device))


def logistic_normal_mean(qzm_nk: Tensor, qzv_nk: Tensor, mc_samples: int, *, seed: int = 0) -> Tensor:
    """Average the softmax over `mc_samples` points that fill the posterior evenly, some at a time.

    Notes
    -----
    The points are a scrambled Halton sequence (Owen 2017, arXiv:1706.02808), the same for all cells. Draws for each
    cell would be several times as far from the mean, and making them would take longer than all the rest.
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
    """Give mean and variance of the posterior of all cells asked for, shape (n, k), on the device of the model."""

    def moments(minibatch: MiniBatch) -> tuple[NDArray[np.float32], ...]:
        return tuple(moment_nk.cpu().numpy() for moment_nk in posterior_of(module, minibatch))

    qzm_nk, qzv_nk = selection.answer(moments, world, chunk_cells=chunk_cells)
    return torch.from_numpy(qzm_nk).to(module.device), torch.from_numpy(qzv_nk).to(module.device)


class AggregatedPosterior(MixtureSameFamily):
    """The equal mixture of the posteriors of some cells. Memory does not grow with cells times points.

    Parameters
    ----------
    qzm_nk, qzv_nk
        Mean and variance of each posterior.
    dof
        Degrees of freedom of Student's t in place of each normal; None for normals.
    variance_as_scale
        Take the variance for the standard deviation, as scvi-tools 1.4.2, model/base/_vaemixin.py, does.

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
        """Give the log-density at points in the latent space, shape (..., k); a block of cells and points at a time."""
        n, k = self._loc_nk.shape
        width = max(1, min(n, _BLOCK_VALUES // k))
        blocks = zip(torch.split(self._loc_nk, width), torch.split(self._scale_nk, width), strict=True)
        components = [self._components(*block) for block in blocks]
        parts = [
            torch.stack([mixed.log_prob(part[:, None]).logsumexp(dim=1) for mixed in components]).logsumexp(dim=0)
            for part in torch.split(value.reshape(-1, k), max(1, _BLOCK_VALUES // (width * k)))
        ]
        return (torch.cat(parts) - math.log(n)).reshape(value.shape[:-1])

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draw from the mixture, with torch's own generator."""
        chosen = torch.randint(len(self._loc_nk), tuple(sample_shape), device=self._loc_nk.device)
        return self._components(self._loc_nk[chosen], self._scale_nk[chosen]).sample()


def rows_by_category(
    column: Column, n_cells: int, *, most: int | None = None, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """List the rows of each category that occurs, or `most` of them chosen at random.

    Parameters
    ----------
    column
        obs column.
    most
        Rows of a category at most.
    """
    pages = range(0, n_cells, _PAGE_ROWS)
    code_n = np.concatenate([column.codes(at, min(at + _PAGE_ROWS, n_cells)) for at in pages])
    chosen = {}
    for code, name in enumerate(column.vocabulary):
        row_n = np.flatnonzero(code_n == code)
        if most is not None and most < len(row_n):
            row_n = np.sort(np.random.default_rng((seed, code)).choice(row_n, most, replace=False))
        if len(row_n):
            chosen[name] = row_n
    return chosen
