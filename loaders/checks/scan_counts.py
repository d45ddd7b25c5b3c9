"""The results of a pass over the counts: extremes, genes with counts, and library sizes by batch.

Shape letters in this file
    n   cells of one read
    e   their stored entries
    g   genes
    b   batches, and after them one more group for cells without a batch
    q   bins of library size
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.csr_rows import CsrRows

_BINS_PER_DOUBLING = 64
"""Bins of the histogram of library sizes in each doubling; quantiles are exact to 1.1 %."""
_DOUBLINGS = 48
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


@dataclass(frozen=True, slots=True)
class LibrarySummary:
    """Total counts of the cells of one batch. Cells without counts are left out of all but `n_cells`."""

    n_cells: int
    mean: float
    log_mean: float
    """Mean of the natural logarithm, which scVI uses as the prior of this batch."""
    log_var: float
    """Variance of the natural logarithm, over n."""
    quantiles: dict[str, float]
    """Library size at 1, 25, 50, 75 and 99 %, exact to 1.1 %."""


class Counts:
    """Number of entries, largest count, first empty cell, and genes with counts."""

    def __init__(self, n_genes: int) -> None:
        self.n_entries = 0
        self.largest = 0
        self.first_empty: int | None = None
        self.seen_g = np.zeros(n_genes, dtype=bool)

    def add(self, rows: CsrRows, start: int) -> NDArray[Any]:
        """Add the rows from `start` on and return the total count of each."""
        positive_e = rows.counts_e > 0
        self.n_entries += int(np.count_nonzero(positive_e))
        self.largest = max(self.largest, int(rows.counts_e.max(initial=0)))
        self.seen_g[rows.genes_e[positive_e]] = True
        library_n = rows.library_n()
        if self.first_empty is None and not library_n.all():
            self.first_empty = start + int(np.argmin(library_n > 0))
        return library_n


class Libraries:
    """Running mean and variance of the log library size of each batch, and its histogram.

    Moments are combined as in Chan, Golub and LeVeque, Stanford STAN-CS-79-773 (1979).
    """

    def __init__(self, n_batches: int) -> None:
        groups = n_batches + 1
        self.n_b = np.zeros(groups, dtype=np.int64)
        self.n_positive_b = np.zeros(groups, dtype=np.int64)
        self._sum_b = np.zeros(groups)
        self._mean_b = np.zeros(groups)
        self._square_b = np.zeros(groups)
        self._bins_bq = np.zeros((groups, _DOUBLINGS * _BINS_PER_DOUBLING), dtype=np.int64)

    def add(self, library_n: NDArray[Any], group_n: NDArray[np.int64]) -> None:
        """Add cells with the total counts `library_n`, of the batches `group_n`."""
        groups = len(self.n_b)
        self.n_b += np.bincount(group_n, minlength=groups)
        library_n, group_n = library_n[library_n > 0], group_n[library_n > 0]
        np.add.at(self._sum_b, group_n, library_n)
        log_n = np.log(library_n)
        count_b = np.bincount(group_n, minlength=groups)
        mean_b = np.bincount(group_n, log_n, groups) / np.maximum(count_b, 1)
        square_b = np.bincount(group_n, (log_n - mean_b[group_n]) ** 2, groups)
        total_b = self.n_positive_b + count_b
        apart_b = mean_b - self._mean_b
        weight_b = count_b / np.maximum(total_b, 1)
        self._mean_b += apart_b * weight_b
        self._square_b += square_b + apart_b**2 * weight_b * self.n_positive_b
        self.n_positive_b = total_b
        bin_n = np.clip(np.log2(library_n) * _BINS_PER_DOUBLING, 0, self._bins_bq.shape[1] - 1).astype(np.int64)
        np.add.at(self._bins_bq, (group_n, bin_n), 1)

    def summary(self, group: int) -> LibrarySummary:
        """Return the summary of one batch."""
        n = max(1, int(self.n_positive_b[group]))
        return LibrarySummary(
            int(self.n_b[group]),
            float(self._sum_b[group] / n),
            float(self._mean_b[group]),
            float(self._square_b[group] / n),
            _quantiles(self._bins_bq[group]),
        )

    def total(self) -> LibrarySummary:
        """Return the summary of all cells."""
        n = max(1, int(self.n_positive_b.sum()))
        mean = float(self._mean_b @ self.n_positive_b) / n
        square = self._square_b.sum() + (self._mean_b - mean) ** 2 @ self.n_positive_b
        return LibrarySummary(
            int(self.n_b.sum()),
            float(self._sum_b.sum() / n),
            mean,
            float(square / n),
            _quantiles(self._bins_bq.sum(axis=0)),
        )


def _quantiles(bins_q: NDArray[np.int64]) -> dict[str, float]:
    """Return quantiles of a histogram, each at the middle of its bin."""
    if not bins_q.any():
        return {f"{share:g}": 0.0 for share in _QUANTILES}
    below_q = np.cumsum(bins_q)
    at = np.searchsorted(below_q, np.array(_QUANTILES) * below_q[-1])
    middle = np.exp2((at + 0.5) / _BINS_PER_DOUBLING)
    return {f"{share:g}": float(size) for share, size in zip(_QUANTILES, middle, strict=True)}
