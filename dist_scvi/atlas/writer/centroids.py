"""Centroids of neighbourhoods in the latent space: k-means on a sample, neighbours next to each other.

Shape letters in this file
    n   cells
    s   cells of the sample
    c   centroids
    k   latent dimensions
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from dist_scvi.loaders.arrays.obs_columns import Ranges
from dist_scvi.loaders.order.keyed_hash import hash_keys, hash_rows, permute

_MOST, _CELLS_EACH = 16_384, 16
"""Most centroids, and fewest cells for one: an index of 16,384 lists has 6,000 rows in each at 100 million cells."""
_SAMPLE_EACH, _SMALLEST_SAMPLE = 32, 4096
_ROUNDS = 12
_BLOCK_VALUES = 1 << 23
_SLOT_KEY, _START_KEY = 106, 107
_FEWEST_ROWS, _MOST_ROWS = 64, 1024


def n_neighbourhoods(n_cells: int) -> int:
    """Return how many neighbourhoods `n_cells` are divided into: about 4 sqrt(n), a power of two."""
    wanted = 2 ** round(math.log2(4 * math.sqrt(n_cells)))
    return int(max(1, min(wanted, n_cells // _CELLS_EACH, _MOST)))


def sample_ranges(n_cells: int, chunk_cells: int, seed: int) -> Ranges:
    """Choose short ranges of rows spread over all cells, with enough cells for k-means.

    Ranges and not single rows, because a store decompresses `chunk_cells` rows to read one.
    """
    wanted = max(_SMALLEST_SAMPLE, _SAMPLE_EACH * n_neighbourhoods(n_cells))
    rows = min(max(chunk_cells, _FEWEST_ROWS), _MOST_ROWS)
    slots, needed = -(-n_cells // rows), -(-wanted // rows)
    if needed >= slots:
        return [(at * rows, min((at + 1) * rows, n_cells)) for at in range(slots)]
    at_n = np.arange(needed)
    inside = (hash_rows(at_n, seed, _SLOT_KEY) >> np.uint64(11)).astype(np.float64) / (1 << 53)
    chosen = np.unique(((at_n + inside) * slots / needed).astype(np.int64))
    return [(at * rows, min((at + 1) * rows, n_cells)) for at in chosen.tolist()]


def k_means(point_sk: NDArray[np.float32], n_centroids: int, seed: int) -> NDArray[np.float32]:
    """Compute centroids by Lloyd's algorithm from a seeded start, and order them, shape (c, k)."""
    points_sk = torch.from_numpy(np.ascontiguousarray(point_sk))
    start_c = permute(np.arange(n_centroids), len(point_sk), hash_keys(seed, _START_KEY))
    centroids_ck = points_sk[start_c].clone()
    for _ in range(_ROUNDS):
        nearest_s = nearest(points_sk, centroids_ck)[0]
        size_c = torch.bincount(nearest_s, minlength=n_centroids)
        total_ck = torch.from_numpy(sum_groups(point_sk, nearest_s.numpy(), n_centroids))
        moved_ck = (total_ck / size_c.clamp(min=1)[:, None]).float()
        centroids_ck = torch.where((size_c > 0)[:, None], moved_ck, centroids_ck)
    found_ck: NDArray[np.float32] = centroids_ck.numpy()
    return found_ck[_chain(found_ck)]


def sum_groups(value_ng: NDArray[Any], group_n: NDArray[Any], n_groups: int) -> NDArray[np.float64]:
    """Add rows by group, shape (n_groups, g), in the order of the rows: the result is the same to the last bit."""
    n = len(group_n)
    of_group = sparse.csr_array((np.ones(n), (group_n, np.arange(n))), (n_groups, n))
    total_qg: NDArray[np.float64] = of_group @ value_ng.astype(np.float64)
    return total_qg


def nearest(points_nk: Tensor, centroids_ck: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centroid of each point, by Euclidean distance, and that distance; each of shape (n,)."""
    centroids_ck = centroids_ck.to(points_nk)
    norm_c = centroids_ck.square().sum(1)
    width = max(1, _BLOCK_VALUES // len(centroids_ck))
    parts = []
    for block_nk in torch.split(points_nk, width):
        near_n, index_n = torch.addmm(norm_c, block_nk, centroids_ck.T, alpha=-2).min(dim=1)
        parts.append((index_n, near_n))
    index_n = torch.cat([index for index, _ in parts])
    distance_n = (points_nk - centroids_ck[index_n]).square().sum(1).sqrt()  # the product above cancels digits
    return index_n, distance_n


def _chain(centroids_ck: NDArray[np.float32]) -> NDArray[np.int64]:
    """Order centroids so that each is followed by the nearest of those that are left."""
    left = centroids_ck.copy()
    at = int(np.argmin(left[:, 0]))
    order = np.empty(len(left), dtype=np.int64)
    for place in range(len(left)):
        order[place] = at
        here = centroids_ck[at]
        left[at] = np.inf
        at = int(np.argmin(np.square(left - here).sum(1)))
    return order
