"""A 64-bit hash of the counts of each row, independent of the store and of the stored type."""

from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.chunked_array import run_side_by_side
from dist_scvi.loaders.arrays.csr_rows import CsrRows, count_bits

_ROWS_TOGETHER = 1024
"""Rows of one task."""
_FIRST_FACTOR, _SECOND_FACTOR = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT, _HALF = np.uint64(33), np.uint64(32)


def hash_counts(rows: CsrRows) -> NDArray[np.uint64]:
    """Return a hash of the counts of each row by gene, for any order of its entries; 0 for a row without counts."""
    hash_n = np.empty(rows.n_cells, dtype=np.uint64)
    counts_e = count_bits(rows.counts_e)

    def hash_part(low: int, high: int) -> None:
        _hash_counts(counts_e, rows.genes_e, rows.indptr[low : high + 1], hash_n[low:high])

    starts = range(0, rows.n_cells, _ROWS_TOGETHER)
    run_side_by_side([partial(hash_part, low, min(low + _ROWS_TOGETHER, rows.n_cells)) for low in starts])
    return hash_n


@njit(nogil=True, cache=True)
def _hash_counts(
    count_e: NDArray[Any], gene_e: NDArray[Any], indptr: NDArray[np.int64], hash_n: NDArray[np.uint64]
) -> None:
    """Sum the hashes of the entries, each mixed by the finaliser of MurmurHash3."""
    # A sum does not depend on the order of entries. Zeros are skipped: stores may or may not store them.
    for n in range(len(hash_n)):
        total = np.uint64(0)
        for e in range(indptr[n], indptr[n + 1]):
            if count_e[e] > 0:
                value = (np.uint64(gene_e[e]) << _HALF) | np.uint64(count_e[e])
                value = (value ^ (value >> _SHIFT)) * _FIRST_FACTOR
                value = (value ^ (value >> _SHIFT)) * _SECOND_FACTOR
                total += value ^ (value >> _SHIFT)
        hash_n[n] = total
