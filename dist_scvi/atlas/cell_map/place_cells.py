"""Place cells on the map by their nearest landmarks in the latent space.

Shape letters in this file
    n   cells
    m   landmarks
    k   latent dimensions
    c   neighbourhoods
    d   candidates of a neighbourhood
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dist_scvi.atlas.cell_map.landmarks import Landmarks

CANDIDATES = 512
"""Landmarks of a neighbourhood among which those nearest to its cells are sought."""
NEAREST = 6
_SPREAD = 0.05
"""Largest distance on the map, as a share of its width, between the nearest landmark and others that are averaged.

Without it, a cell between two clusters would be drawn in the empty space between them, where no landmark is.
"""
_BLOCK_CELLS = 4096


def candidates_of(centroid_ck: NDArray[np.float32], landmarks: Landmarks) -> NDArray[np.int32]:
    """Return the landmarks nearest to each centroid, shape (c, d)."""
    n_found = min(CANDIDATES, len(landmarks.row_m))
    _, found_cd = KDTree(landmarks.qzm_mk).query(centroid_ck, k=np.arange(1, n_found + 1), workers=-1)
    return np.asarray(found_cd, dtype=np.int32)


def place_cells(
    qzm_nk: NDArray[np.float32],
    neighbourhood_n: NDArray[np.int64],
    candidate_cd: NDArray[np.int32],
    landmarks: Landmarks,
) -> NDArray[np.float32]:
    """Return the coordinates of cells, shape (n, 2).

    They are the mean of those of the nearest landmarks, with weights that fall with the fourth power of the distance.
    A landmark itself has the coordinates that UMAP found.
    """
    xy_n2 = np.empty((len(qzm_nk), 2), dtype=np.float32)
    reach = _SPREAD * float(np.ptp(landmarks.xy_m2, axis=0).max())

    def place(start: int) -> None:
        part = slice(start, start + _BLOCK_CELLS)
        _place(qzm_nk[part], neighbourhood_n[part], candidate_cd, landmarks.qzm_mk, landmarks.xy_m2, reach, xy_n2[part])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(place, range(0, len(qzm_nk), _BLOCK_CELLS)))
    return xy_n2


@njit(nogil=True, cache=True)
def _place(
    qzm_nk: NDArray[np.float32],
    neighbourhood_n: NDArray[np.int64],
    candidate_cd: NDArray[np.int32],
    landmark_mk: NDArray[np.float32],
    xy_m2: NDArray[np.float32],
    reach: float,
    out_n2: NDArray[np.float32],
) -> None:
    n_near = min(NEAREST, candidate_cd.shape[1])
    near, distance = np.empty(n_near, np.int64), np.empty(n_near, np.float32)
    for n in range(len(qzm_nk)):
        distance[:] = np.inf
        for m in candidate_cd[neighbourhood_n[n]]:
            found = np.float32(0)
            for k in range(qzm_nk.shape[1]):
                step = qzm_nk[n, k] - landmark_mk[m, k]
                found += step * step
            if found < distance[-1]:
                at = n_near - 1
                while at > 0 and distance[at - 1] > found:
                    distance[at], near[at] = distance[at - 1], near[at - 1]
                    at -= 1
                distance[at], near[at] = found, m
        x0, y0 = xy_m2[near[0], 0], xy_m2[near[0], 1]
        total = x = y = 0.0
        for at in range(n_near):
            dx, dy = xy_m2[near[at], 0] - x0, xy_m2[near[at], 1] - y0
            if dx * dx + dy * dy <= reach * reach:
                # Distances are relative to the nearest: those of a landmark from itself are 0.
                weight = 1.0 if at == 0 else (distance[0] / max(distance[at], np.float32(1e-30))) ** 2
                total += weight
                x += weight * dx
                y += weight * dy
        out_n2[n, 0], out_n2[n, 1] = x0 + x / total, y0 + y / total
