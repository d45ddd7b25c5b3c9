"""A sample of cells with enough of every batch of every label, chosen by a hash of the cells' identity.

Shape letters in this file
    n   cells
    m   cells of the sample
    q   strata: observed combinations of the values of some obs columns
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.order.keyed_hash import hash_rows
from dist_scvi.report.cell_table import CellTable

_KEY = 301
_FLOOR = 20
"""Cells of each stratum, as far as it has them and half of the sample is enough for all strata."""


@dataclass(frozen=True, slots=True, eq=False)
class StratifiedSample:
    """Rows of a table, ascending."""

    row_m: NDArray[np.int64]
    weight_m: NDArray[np.float64]
    """Number of cells of the table that each stands for."""
    code_mc: NDArray[np.int32]
    """Values of the columns by which the cells were divided; -1 where one is missing."""
    n_cells: int
    n_strata: int

    @property
    def is_everything(self) -> bool:
        """Whether all cells of the table are in the sample."""
        return len(self.row_m) == self.n_cells


def stratified_sample(table: CellTable, keys: Sequence[str], size: int, *, seed: int) -> StratifiedSample:
    """Sample about `size` cells in two passes over the columns `keys`; nothing else is read of other cells.

    Each stratum has its share of the sample, and at least some cells. Within a stratum the cells with the smallest
    hashes are taken, so that the sample depends neither on the order of the rows nor on how they are stored.
    """
    widths = [len(table.vocabulary(key)) + 1 for key in keys]
    n_all = np.zeros(int(np.prod(widths)), dtype=np.int64)
    for rows in table.pages():
        n_all += np.bincount(_stratum(table, keys, widths, rows), minlength=len(n_all))
    quota = _quotas(n_all, size)
    row_m, stratum_m = _smallest(table, keys, widths, n_all, quota, seed)
    order_m = np.argsort(row_m)
    row_m, stratum_m = row_m[order_m], stratum_m[order_m]
    code_mc = np.stack(np.unravel_index(stratum_m, widths), axis=1) - 1 if keys else np.zeros((len(row_m), 0))
    weight_m = n_all[stratum_m] / quota[stratum_m]
    return StratifiedSample(row_m, weight_m, code_mc.astype(np.int32), int(n_all.sum()), int((n_all > 0).sum()))


def _stratum(table: CellTable, keys: Sequence[str], widths: Sequence[int], rows: slice) -> NDArray[np.int64]:
    """Return the stratum of each cell of a range; a missing value is a value."""
    stratum_n = np.zeros(rows.stop - rows.start, dtype=np.int64)
    for key, width in zip(keys, widths, strict=True):
        stratum_n = stratum_n * width + table.codes(key, rows) + 1
    return stratum_n


def _quotas(n_q: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Divide `size` cells over strata of `n_q` cells."""
    total = int(n_q.sum())
    if total <= size:
        return n_q
    floor = min(_FLOOR, max(1, size // (2 * int((n_q > 0).sum()))))
    least_q = np.minimum(n_q, floor)
    left_q = n_q - least_q
    share_q = left_q * (max(0, size - int(least_q.sum())) / max(1, int(left_q.sum())))
    quota_q: NDArray[np.int64] = least_q + np.minimum(share_q.astype(np.int64), left_q)
    return quota_q


def _smallest(
    table: CellTable,
    keys: Sequence[str],
    widths: Sequence[int],
    n_q: NDArray[np.int64],
    quota_q: NDArray[np.int64],
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the cells with the smallest hashes in each stratum, and their strata."""
    slack = 1.0
    while True:
        # Hashes are uniform: below this bound are about as many as are wanted and six standard deviations more.
        wanted_q = (quota_q + 6 * np.sqrt(quota_q) + 6) * slack
        bound_q = np.minimum(wanted_q / np.maximum(n_q, 1), 1.0) * np.ldexp(1.0, 64)
        parts = []
        for rows in table.pages():
            stratum_n = _stratum(table, keys, widths, rows)
            hash_n = hash_rows(table.source_rows(rows), seed, _KEY)
            here_n = np.flatnonzero(hash_n <= bound_q[stratum_n])
            parts.append((rows.start + here_n, stratum_n[here_n], hash_n[here_n]))
        row_m, stratum_m, hash_m = (np.concatenate(part) for part in zip(*parts, strict=True))
        order_m = np.lexsort((hash_m, stratum_m))
        row_m, stratum_m = row_m[order_m], stratum_m[order_m]
        rank_m = np.arange(len(row_m)) - np.searchsorted(stratum_m, stratum_m)
        kept_m = rank_m < quota_q[stratum_m]
        if kept_m.sum() == quota_q.sum():
            return row_m[kept_m], stratum_m[kept_m]
        slack *= 4
