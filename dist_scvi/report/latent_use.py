"""How much each latent dimension is used.

Shape letters in this file
    n   cells
    k   latent dimensions
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEAST_VARIANCE = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class LatentUse:
    """Averages over a sample of cells, by dimension."""

    kl_k: NDArray[np.float64]
    """Divergence of the posterior from a standard normal, in nats."""
    variance_k: NDArray[np.float64]
    """Variance of the means of the posterior over cells; 1 is what the prior expects."""

    @property
    def collapsed(self) -> list[int]:
        """Dimensions whose posterior hardly depends on the cell.

        Notes
        -----
        The rule of active units of Burda et al. 2016, arXiv:1509.00519: a variance below 0.01.
        """
        return np.flatnonzero(self.variance_k < _LEAST_VARIANCE).tolist()


def latent_use(qzm_nk: NDArray[np.float32], qzv_nk: NDArray[np.float32], weight_n: NDArray[np.float64]) -> LatentUse:
    """Measure the use of each dimension over cells that stand for `weight_n` cells each."""
    mean_nk, variance_nk = qzm_nk.astype(np.float64), qzv_nk.astype(np.float64)
    kl_nk = 0.5 * (mean_nk**2 + variance_nk - 1 - np.log(variance_nk))
    center_k = np.average(mean_nk, axis=0, weights=weight_n)
    spread_k = np.average((mean_nk - center_k) ** 2, axis=0, weights=weight_n)
    return LatentUse(np.average(kl_nk, axis=0, weights=weight_n), spread_k)
