"""Neighbourhoods of a minified atlas: ranges of rows that are close to each other in the latent space.

Shape letters in this file
    c   neighbourhoods
    k   latent dimensions
    l   leaves
"""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.atlas.store.manifest import Manifest
from dist_scvi.atlas.store.names import NEIGHBOURHOODS
from dist_scvi.atlas.store.raw_arrays import CheckedFiles, RawArray


class Neighbourhoods:
    """Centroids and rows of the neighbourhoods, read at first use: an inverted file whose lists are ranges of rows.

    Within a neighbourhood rows are in a seeded random order, so its first rows are a uniform sample of it.
    """

    def __init__(self, files: CheckedFiles, manifest: Manifest) -> None:
        self._files, self._manifest = files, manifest

    def __len__(self) -> int:
        return self._manifest.neighbourhoods.n

    @cached_property
    def centroids(self) -> NDArray[np.float32]:
        """Centroid of each, shape (c, k)."""
        return self._read("centroid")

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Neighbourhood i is the rows ``offsets[i]:offsets[i + 1]``; shape (c + 1,)."""
        return self._read("offset")

    @cached_property
    def radius(self) -> NDArray[np.float32]:
        """Largest Euclidean distance of a member from the centroid, 0 without members; shape (c,)."""
        return self._read("radius")

    @cached_property
    def leaf_counts(self) -> "sparse.csr_array[Any]":
        """Cells of each leaf in each neighbourhood, shape (c, l)."""
        data, index, indptr = (
            self._read(name).astype(np.int64) for name in ("leaf_cells", "leaf_index", "leaf_indptr")
        )
        return sparse.csr_array((data, index, indptr), (len(self), self._manifest.leaves.n_leaves))

    def _read(self, name: str) -> NDArray[Any]:
        return RawArray(self._files, f"{NEIGHBOURHOODS}/{name}", self._manifest.arrays).take(None)
