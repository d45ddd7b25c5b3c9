"""Silhouettes: how much closer a cell is to its own category than to others.

Shape letters in this file
    n   cells
    k   latent dimensions
    c   categories
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 256

Between = Literal["nearest", "mean_other"]
"""The nearest other category, or the mean over all other cells (BRAS)."""


def silhouettes(
    z_nk: NDArray[np.floating],
    code_n: NDArray[np.integer],
    weight_n: NDArray[np.float64],
    *,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    between: Between = "nearest",
) -> NDArray[np.float64]:
    """Return the silhouette of each cell, from -1 to 1, shape (n,); 0 where its category has no other cell.

    Parameters
    ----------
    code_n
        Category of each cell, from 0, each with at least one cell.
    weight_n
        Number of cells that each cell of a sample stands for; ones give the usual silhouette.

    Notes
    -----
    Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7; scib-metrics 0.5.10, utils/_silhouette.py.
    """
    from sklearn.metrics import pairwise_distances

    n_categories = int(code_n.max()) + 1
    member_nc = np.zeros((len(code_n), n_categories))
    member_nc[np.arange(len(code_n)), code_n] = weight_n
    size_c = member_nc.sum(axis=0)
    found_n = np.zeros(len(code_n))
    for start in range(0, len(code_n), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        total_nc = pairwise_distances(z_nk[rows], z_nk, metric=metric) @ member_nc
        own_n = code_n[rows]
        at_n = np.arange(len(own_n))
        alone_n = size_c[own_n] - weight_n[rows]
        within_n = total_nc[at_n, own_n] / np.where(alone_n > 0, alone_n, np.inf)
        total_nc[at_n, own_n] = 0 if between == "mean_other" else np.inf
        if between == "mean_other":
            other_n = total_nc.sum(axis=1) / (size_c.sum() - size_c[own_n])
        else:
            other_n = (total_nc / size_c).min(axis=1)
        largest_n = np.maximum(within_n, other_n)
        found_n[rows] = np.where((alone_n > 0) & (largest_n > 0), other_n - within_n, 0) / np.where(
            largest_n > 0, largest_n, 1
        )
    return found_n
