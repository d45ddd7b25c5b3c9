"""The nearest cells of an atlas.

Shape letters in this file
    n   cells of a neighbourhood
    m   cells whose neighbours are searched
    j   neighbours of a cell
    k   latent dimensions
    c   neighbourhoods of the atlas
"""

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.report.scores.neighbours import Neighbours

_WHOLE = 200_000
"""Cells up to which all of them are searched."""
_PROBES = 32
"""Neighbourhoods of a larger atlas that are searched for each cell, those with the nearest centroids."""


def nearest_in_atlas(atlas: Atlas, row_m: NDArray[np.int64], z_mk: NDArray[np.float32], j: int) -> Neighbours:
    """Search the `j` nearest cells of each of the cells `row_m`, which are at `z_mk`, among all cells of an atlas.

    Up to 200,000 cells the search is exact. In a larger atlas the cells of the 32 nearest neighbourhoods are searched,
    each of which is read once.
    """
    hoods = atlas.neighbourhoods
    if atlas.n_cells <= _WHOLE or hoods is None:
        from sklearn.neighbors import NearestNeighbors

        everything = NearestNeighbors(n_neighbors=j).fit(atlas.read_latent()[0])
        distance_mj, index_mj = everything.kneighbors(z_mk)
        index_mj = index_mj.astype(np.int64)
        return Neighbours(index_mj, distance_mj.astype(np.float64), index_mj == row_m[:, None])
    centroid_ck, offset_c = hoods.centroids, hoods.offsets
    n_probes = min(_PROBES, len(centroid_ck))
    far_mc = (centroid_ck**2).sum(axis=1) - 2 * z_mk @ centroid_ck.T
    probe_mp = np.argpartition(far_mc, n_probes - 1, axis=1)[:, :n_probes]
    order = np.argsort(probe_mp, axis=None, kind="stable")
    first_c = np.searchsorted(probe_mp.ravel()[order], np.arange(len(centroid_ck) + 1))
    best_mj = np.full((len(z_mk), j), np.inf)
    index_mj = np.full((len(z_mk), j), -1, dtype=np.int64)
    for hood in range(len(centroid_ck)):
        asking = order[first_c[hood] : first_c[hood + 1]] // n_probes
        rows = slice(int(offset_c[hood]), int(offset_c[hood + 1]))
        if not len(asking) or rows.stop == rows.start:
            continue
        z_nk = atlas.read_latent(rows)[0]
        square = ((z_mk[asking][:, None] - z_nk) ** 2).sum(axis=2)
        joined = np.concatenate([best_mj[asking], square], axis=1)
        index = np.concatenate(
            [index_mj[asking], np.broadcast_to(np.arange(rows.start, rows.stop), square.shape)], axis=1
        )
        kept = np.argpartition(joined, j - 1, axis=1)[:, :j]
        best_mj[asking], index_mj[asking] = np.take_along_axis(joined, kept, 1), np.take_along_axis(index, kept, 1)
    nearest = np.argsort(best_mj, axis=1)
    best_mj, index_mj = np.take_along_axis(best_mj, nearest, 1), np.take_along_axis(index_mj, nearest, 1)
    return Neighbours(index_mj, np.sqrt(best_mj), index_mj == row_m[:, None])
