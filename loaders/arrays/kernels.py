"""Compiled loops over stored entries; they release the GIL, so that threads run them in parallel.

The loops accumulate conditions instead of branching on them, and copy rows by plain loops over slices, so that the
compiler can use vector instructions.

Shape letters in this file
    n   cells (rows)
    e   stored entries of these cells
    g   genes
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

REFUSED = -1
_ONE, _SIX, _SIXTY_THREE = np.uint64(1), np.uint64(6), np.uint64(63)


@njit(nogil=True, cache=True)
def settle(value_e: NDArray[Any], out_e: NDArray[Any], limit: int) -> bool:
    """Copy values into a narrower unsigned type; return whether all are whole numbers from 0 to `limit`."""
    strange = 0
    # No early return: a branch that leaves the loop prevents vectorisation. The caller discards refused output.
    for e in range(len(value_e)):
        value = value_e[e]
        inside = (value >= 0) & (value <= limit)
        # The range check comes before the cast: casting a float that is out of range (or NaN) is undefined.
        whole = out_e.dtype.type(value if inside else 0)
        strange += 1 - (inside & (value_e.dtype.type(whole) == value))
        out_e[e] = whole
    return strange == 0


@njit(nogil=True, cache=True)
def place_rows(
    value_e: NDArray[Any],
    first: int,
    indptr: NDArray[np.int64],
    to_n: NDArray[np.int64],
    out_e: NDArray[Any],
    limit: int,
) -> int:
    """Copy values to the places of their rows in `out_e`, and return whether they increase within each row.

    Parameters
    ----------
    value_e
        Consecutive values, from entry `first` on, of the rows that begin at `indptr`.
    to_n
        Where each row begins in `out_e`, -1 for a row that is not requested.

    Returns
    -------
    int
        1 if they strictly increase, 0 if not, `REFUSED` if one is not a whole number from 0 to `limit`.
    """
    # Flags are combined and checked once after the loops: a branch inside them prevents vectorisation.
    strange = False
    falls = False
    lowest = highest = out_e.dtype.type(0)
    as_they_are = value_e.dtype == out_e.dtype
    row = np.searchsorted(indptr, first, side="right") - 1
    begin = 0
    while begin < len(value_e):
        end = min(indptr[row + 1] - first, len(value_e))
        if to_n[row] >= 0:
            at = to_n[row] + first + begin - indptr[row]
            from_e, to_e = value_e[begin:end], out_e[at : at + end - begin]
            # Equal types need no cast. Minimum and maximum replace the check of each value; they are compared once
            # at the end.
            if as_they_are:
                for e in range(len(from_e)):
                    to_e[e] = from_e[e]
                    lowest = min(lowest, from_e[e])
                    highest = max(highest, from_e[e])
            else:
                for e in range(len(from_e)):
                    value = from_e[e]
                    inside = (value >= 0) & (value <= limit)
                    whole = to_e.dtype.type(value if inside else 0)
                    strange |= (not inside) | (from_e.dtype.type(whole) != value)
                    to_e[e] = whole
            # Only values of this call are compared. `falls_at` checks the first value of each call against its
            # predecessor.
            after_e = from_e[1:]
            for e in range(len(after_e)):
                falls |= after_e[e] <= from_e[e]
        begin = end
        row += 1
    if strange or lowest < 0 or highest > limit:
        return REFUSED
    return 0 if falls else 1


@njit(nogil=True, cache=True)
def find_genes(
    gene_e: NDArray[Any],
    first: int,
    chosen_w: NDArray[np.uint64],
    place_g: NDArray[np.int32],
    out_entry_e: NDArray[np.int64],
    out_place_e: NDArray[Any],
) -> int:
    """Write the positions of the entries whose gene is chosen, and the new number of each gene.

    Parameters
    ----------
    gene_e
        The genes from entry `first` on.
    chosen_w
        A bit for each gene, lowest bit first. The table is small enough for the L1 cache.

    Returns
    -------
    int
        Number of these entries, `REFUSED` if a gene is out of range.
    """
    # This loop comes first because numba does not check indices: a gene that is out of range would read outside of
    # `chosen_w` below.
    lowest = highest = gene_e.dtype.type(0)
    for e in range(len(gene_e)):
        lowest = min(lowest, gene_e[e])
        highest = max(highest, gene_e[e])
    if lowest < 0 or highest >= len(place_g):
        return REFUSED
    # Every entry is written, and `at` advances for chosen ones only: a branch with a random outcome costs more than
    # writes that are overwritten. The bit table of 60,000 genes takes 8 KB and stays in the L1 cache.
    at = 0
    for e in range(len(gene_e)):
        gene = np.uint64(gene_e[e])
        out_entry_e[at] = e
        if chosen_w[gene >> _SIX] >> (gene & _SIXTY_THREE) & _ONE:
            at += 1
    for kept in range(at):
        out_place_e[kept] = place_g[gene_e[out_entry_e[kept]]]
        out_entry_e[kept] += first
    return at


@njit(nogil=True, cache=True)
def falls_at(
    gene_e: NDArray[Any], entry_p: NDArray[np.int64], indptr: NDArray[np.int64], to_n: NDArray[np.int64]
) -> int:
    """Count the entries `entry_p`, copied by `place_rows`, that are not larger than their predecessor in the row."""
    falls = 0
    for entry in entry_p:
        row = np.searchsorted(indptr, entry, side="right") - 1
        if row < len(to_n) and to_n[row] >= 0 and entry > indptr[row]:
            at = to_n[row] + entry - indptr[row]
            falls += gene_e[at] <= gene_e[at - 1]
    return falls


@njit(nogil=True, cache=True)
def repeated_gene(gene_e: NDArray[Any], indptr: NDArray[np.int64], n_genes: int) -> int:
    """Return the first entry whose gene already occurs in its row, -1 if there is none."""
    # One pass without sorting. The table holds the last row of each gene, so that it is not cleared between rows.
    last_row_g = np.full(n_genes, -1, dtype=np.int64)
    for row in range(len(indptr) - 1):
        for e in range(indptr[row], indptr[row + 1]):
            if last_row_g[gene_e[e]] == row:
                return e
            last_row_g[gene_e[e]] = row
    return -1


@njit(nogil=True, cache=True)
def take_rows(
    count_e: NDArray[Any],
    gene_e: NDArray[Any],
    begin_n: NDArray[np.int64],
    indptr: NDArray[np.int64],
    out_count_e: NDArray[Any],
    out_gene_e: NDArray[Any],
) -> None:
    """Copy the rows that begin at `begin_n` to the consecutive rows that `indptr` describes."""
    for n in range(len(begin_n)):
        begin, end = begin_n[n], begin_n[n] + indptr[n + 1] - indptr[n]
        from_e, to_e = count_e[begin:end], out_count_e[indptr[n] : indptr[n + 1]]
        for e in range(len(from_e)):
            to_e[e] = from_e[e]
        gene_from_e, gene_to_e = gene_e[begin:end], out_gene_e[indptr[n] : indptr[n + 1]]
        for e in range(len(gene_from_e)):
            gene_to_e[e] = gene_from_e[e]


@njit(nogil=True, cache=True)
def sum_rows(count_e: NDArray[Any], indptr: NDArray[np.int64], total_n: NDArray[Any]) -> None:
    """Sum each row in the type of `total_n`."""
    for n in range(len(total_n)):
        row_e = count_e[indptr[n] : indptr[n + 1]]
        total = total_n.dtype.type(0)
        for e in range(len(row_e)):
            total += total_n.dtype.type(row_e[e])
        total_n[n] = total


@njit(nogil=True, cache=True)
def keep_genes(
    count_e: NDArray[Any],
    gene_e: NDArray[Any],
    indptr: NDArray[np.int64],
    place_g: NDArray[np.int32],
    out_count_e: NDArray[Any],
    out_gene_e: NDArray[Any],
    out_indptr: NDArray[np.int64],
) -> None:
    """Copy the entries whose gene is kept, renumbered; -1 in `place_g` drops a gene.

    `out_count_e` and `out_gene_e` may be the inputs: the write position is never ahead of the read position.
    """
    at = 0
    for n in range(len(indptr) - 1):
        out_indptr[n] = at
        for e in range(indptr[n], indptr[n + 1]):
            place = place_g[gene_e[e]]
            out_count_e[at] = count_e[e]
            out_gene_e[at] = place
            at += place >= 0
    out_indptr[len(indptr) - 1] = at


@njit(nogil=True, cache=True)
def spread_rows(
    count_e: NDArray[np.float32], gene_e: NDArray[np.int32], indptr: NDArray[np.int64], out_ng: NDArray[np.float32]
) -> None:
    """Write the entries into the dense matrix `out_ng`; its other elements are not changed."""
    for n in range(len(indptr) - 1):
        for e in range(indptr[n], indptr[n + 1]):
            out_ng[n, gene_e[e]] = count_e[e]
