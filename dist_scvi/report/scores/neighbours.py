"""The nearest cells of some cells in the latent space.

Shape letters in this file
    n   cells whose neighbours are searched
    m   cells among which they are searched
    j   neighbours of a cell
    k   latent dimensions
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The nearest cells of each cell, by ascending distance; the cell itself is among them."""

    index_nj: NDArray[np.int64]
    """Index of each neighbour among those that were searched."""
    distance_nj: NDArray[np.float64]
    """Euclidean distances."""
    is_self_nj: NDArray[np.bool_]
    """Whether the neighbour is the cell itself."""

    def first(self, j: int) -> "Neighbours":
        """Return the `j` nearest."""
        return Neighbours(self.index_nj[:, :j], self.distance_nj[:, :j], self.is_self_nj[:, :j])


def nearest_within(z_mk: NDArray[np.floating], j: int) -> Neighbours:
    """Search the `j` nearest cells of each cell among these cells, exactly."""
    from sklearn.neighbors import NearestNeighbors

    j = min(j, len(z_mk))
    found = NearestNeighbors(n_neighbors=j).fit(z_mk).kneighbors(z_mk)
    distance_nj, index_nj = np.asarray(found[0], dtype=np.float64), np.asarray(found[1], dtype=np.int64)
    return Neighbours(index_nj, distance_nj, index_nj == np.arange(len(z_mk))[:, None])
