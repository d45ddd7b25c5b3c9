"""Leaves of a minified atlas: counts and scales of the cells of each observed combination of some obs columns.

Shape letters in this file
    l   leaves
    g   genes
    q   quantiles
    c   leaf columns
"""

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.store.manifest import Manifest
from dist_scvi.atlas.store.names import (
    COUNT_SUM,
    DETECTED,
    LEAVES,
    N_CELLS,
    N_SKETCH,
    NORMALIZED_SUM,
    QUANTILES,
    SCALE_MAX,
    SCALE_MEAN,
    SCALE_VAR,
    SQUARE_SUM,
)
from dist_scvi.atlas.store.raw_arrays import CheckedFiles, RawArray, TextArray

Leaf = NDArray[np.int64] | None
"""Rows of the table of leaves, in the order wanted; None for all."""


class Leaves:
    """The table of leaves and their sums, moments and quantiles, read when requested and not kept."""

    def __init__(self, files: CheckedFiles, manifest: Manifest) -> None:
        self._files, self._manifest, info = files, manifest, manifest.leaves
        self.columns, self.n_leaves, self.has_counts = info.columns, info.n_leaves, info.counts
        self.levels = np.array(info.levels)
        """Probabilities of the quantiles, shape (q,)."""

    @cached_property
    def n_cells(self) -> NDArray[np.int64]:
        """Cells of each leaf, shape (l,)."""
        return self._array(f"obs/{N_CELLS}").take(None)

    @cached_property
    def n_sketch(self) -> NDArray[np.int64]:
        """Number of cells of each leaf from whose draws its quantiles are computed, shape (l,)."""
        return self._array(f"obs/{N_SKETCH}").take(None).astype(np.int64)

    @cached_property
    def codes(self) -> NDArray[np.int32]:
        """Code of each leaf in each leaf column, shape (l, c): of ``atlas.obs.categorical(column)``, -1 if missing."""
        parts = [self._array(f"obs/{key}/codes").take(None) for key in self.columns]
        return np.stack(parts, axis=1).astype(np.int32) if parts else np.zeros((self.n_leaves, 0), np.int32)

    @property
    def table(self) -> pd.DataFrame:
        """The leaf columns and the numbers of cells, a row for each leaf."""
        found: dict[str, Any] = {}
        for at, key in enumerate(self.columns):
            categories = TextArray(self._files, f"{LEAVES}/obs/{key}/categories", self._manifest.arrays)[:]
            found[key] = pd.Categorical.from_codes(self.codes[:, at], categories=pd.Index(categories))
        return pd.DataFrame(found | {N_CELLS: self.n_cells, N_SKETCH: self.n_sketch})

    def count_sum(self, leaves: Leaf = None) -> NDArray[np.float64]:
        """Return the sum of the counts of each gene, shape (l, g).

        Raises
        ------
        ValueError
            If the atlas was made without counts.
        """
        return self._counts(COUNT_SUM, leaves)

    def detected(self, leaves: Leaf = None) -> NDArray[np.int64]:
        """Return the number of cells with a count above 0, shape (l, g); raises as `count_sum`."""
        return self._counts(DETECTED, leaves).astype(np.int64)

    def square_sum(self, leaves: Leaf = None) -> NDArray[np.float64]:
        """Return the sum of squared counts, shape (l, g); raises as `count_sum`."""
        return self._counts(SQUARE_SUM, leaves)

    def normalized_sum(self, leaves: Leaf = None) -> NDArray[np.float64]:
        """Return the sum of counts scaled to a total of 1e4 in each cell, shape (l, g); raises as `count_sum`."""
        return self._counts(NORMALIZED_SUM, leaves)

    def scale_mean(self, leaves: Leaf = None) -> NDArray[np.float32]:
        """Return the mean scale, decoded at the mean of each cell's posterior with its own batch, shape (l, g)."""
        return self._array(SCALE_MEAN).take(leaves)

    def scale_var(self, leaves: Leaf = None) -> NDArray[np.float32]:
        """Return the population variance of the same, shape (l, g)."""
        return self._array(SCALE_VAR).take(leaves)

    def scale_max(self, leaves: Leaf = None) -> NDArray[np.float32]:
        """Return the largest scale among the draws behind the quantiles, shape (l, g)."""
        return self._array(SCALE_MAX).take(leaves)

    def quantiles(self, leaves: Leaf = None, genes: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return quantiles of log2 scale at `levels` over draws of the posterior, shape (l, g, q)."""
        found_lgq = self._array(QUANTILES).take(leaves)
        return (found_lgq if genes is None else found_lgq[:, genes]).astype(np.float32)

    def __repr__(self) -> str:
        return f"Leaves: {self.n_leaves} combinations of {', '.join(self.columns) or 'no column'}"

    def _counts(self, name: str, leaves: Leaf) -> NDArray[Any]:
        if not self.has_counts:
            raise ValueError(
                f"{self._files.objects.uri} was made without counts and has no sums of them: minify from the counts "
                "with 'dist-scvi minify RUN' or model.minify(...)"
            )
        return self._array(name).take(leaves)

    def _array(self, name: str) -> RawArray:
        return RawArray(self._files, f"{LEAVES}/{name}", self._manifest.arrays)
