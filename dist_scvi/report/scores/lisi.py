"""Local inverse Simpson's index: the effective number of categories among the neighbours of a cell.

Shape letters in this file
    n   cells
    j   neighbours of a cell
"""

import math

import numpy as np
from numpy.typing import NDArray

from dist_scvi.report.scores.neighbours import Neighbours

_TOLERANCE, _STEPS = 1e-5, 50


def local_simpson(neighbours: Neighbours, code_nj: NDArray[np.integer], n_categories: int) -> NDArray[np.float64]:
    """Return the LISI of each cell, from 1 to `n_categories`, shape (n,).

    Parameters
    ----------
    neighbours
        Distances to the nearest cells, and which of them is the cell itself.
    code_nj
        Category of each neighbour.

    Notes
    -----
    Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0; scib-metrics 0.5.10, utils/_lisi.py: the perplexity is a third
    of the number of neighbours, and a cell whose neighbours have no weight has -1.
    """
    distance_nj, other_nj = neighbours.distance_nj, ~neighbours.is_self_nj
    target = math.log(distance_nj.shape[1] // 3)
    n = len(distance_nj)
    beta_n, least_n, most_n = np.ones(n), np.full(n, -np.inf), np.full(n, np.inf)
    entropy_n, weight_nj = _entropy(distance_nj, other_nj, beta_n)
    for _ in range(_STEPS):
        excess_n = entropy_n - target
        open_n = np.abs(excess_n) >= _TOLERANCE
        if not open_n.any():
            break
        wide_n = excess_n > 0
        least_n, most_n = np.where(wide_n & open_n, beta_n, least_n), np.where(~wide_n & open_n, beta_n, most_n)
        up_n = np.where(np.isinf(most_n), beta_n * 2, (beta_n + most_n) / 2)
        down_n = np.where(np.isinf(least_n), beta_n / 2, (beta_n + least_n) / 2)
        beta_n = np.where(open_n, np.where(wide_n, up_n, down_n), beta_n)
        entropy_n[open_n], weight_nj[open_n] = _entropy(distance_nj[open_n], other_nj[open_n], beta_n[open_n])
    simpson_n = np.zeros(n)
    for category in range(n_categories):
        simpson_n += (weight_nj * (code_nj == category)).sum(axis=1) ** 2
    return np.where(entropy_n == 0, -1.0, 1 / np.where(simpson_n > 0, simpson_n, 1))


def _entropy(
    distance_nj: NDArray[np.float64], other_nj: NDArray[np.bool_], beta_n: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the entropy of the weights ``exp(-beta distance)`` of the neighbours, and the weights."""
    weight_nj = np.exp(-distance_nj * beta_n[:, None]) * other_nj
    total_n = weight_nj.sum(axis=1)
    safe_n = np.where(total_n > 0, total_n, 1)
    mean_n = (distance_nj * weight_nj).sum(axis=1) / safe_n
    return np.where(total_n > 0, np.log(safe_n) + beta_n * mean_n, 0), weight_nj / safe_n[:, None]
