"""The loops over stored entries, compiled, and free of the interpreter's lock so that threads run them concurrently.

Conditions are added up rather than branched on, and rows are copied by plain loops over slices: so the compiler uses
vector instructions.

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
    """Copy values into a narrower unsigned type, and say whether all are whole numbers from 0 to `limit`."""
    strange = 0
    for e in range(len(value_e)):
        value = value_e[e]
        inside = (value >= 0) & (value <= limit)
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
    """Settle values where their rows belong, and say whether they rise in each row.

    Parameters
    ----------
    value_e
        The values from entry `first` on of the rows that begin at `indptr`.
    to_n
        Where each row begins in `out_e`, -1 for one that is not wanted.

    Returns
    -------
    int
        1 if they rise, 0 if not, `REFUSED` if one is no whole number from 0 to `limit`.
    """
    # Flags are added up and looked at once after the loops: a branch inside them keeps the compiler from vectorising.
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
            # Two loops for what looks like one: without a conversion, only the extremes need to be known for the check,
            # and copying runs at the speed of memory.
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
    """Note the entries whose gene is chosen, and its place.

    Parameters
    ----------
    gene_e
        The genes from entry `first` on.
    chosen_w
        A bit for each gene, lowest first: a table that stays in the fastest cache.

    Returns
    -------
    int
        How many they are, `REFUSED` if a gene is out of range.
    """
    lowest = highest = gene_e.dtype.type(0)
    for e in range(len(gene_e)):
        lowest = min(lowest, gene_e[e])
        highest = max(highest, gene_e[e])
    if lowest < 0 or highest >= len(place_g):
        return REFUSED
    # Every entry is written and `at` moves on for chosen ones only: a branch that is taken at random costs more than
    # writes that are overwritten. The bit table of 60,000 genes takes 8 KB and stays in the first-level cache.
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
    """Count the entries `entry_p`, placed as by `place_rows`, that are not larger than the one before in their row."""
    falls = 0
    for entry in entry_p:
        row = np.searchsorted(indptr, entry, side="right") - 1
        if row < len(to_n) and to_n[row] >= 0 and entry > indptr[row]:
            at = to_n[row] + entry - indptr[row]
            falls += gene_e[at] <= gene_e[at - 1]
    return falls


@njit(nogil=True, cache=True)
def repeated_gene(gene_e: NDArray[Any], indptr: NDArray[np.int64], n_genes: int) -> int:
    """Find an entry whose gene its row has already named, -1 if there is none."""
    # The last row of each gene, rather than a set per row: one table for all rows, never cleared. Sorting would cost
    # more and lose the order in which the store holds the genes.
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
    """Copy the rows that begin at `begin_n` one below the other, to where `indptr` says."""
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
    """Add up each row in the type of `total_n`."""
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
    """Copy the entries whose gene has a place, renumbered; -1 in `place_g` drops a gene.

    The outputs may be the inputs themselves: what is written never overtakes what is read.
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
    """Put the entries into the dense matrix `out_ng`."""
    for n in range(len(indptr) - 1):
        for e in range(indptr[n], indptr[n + 1]):
            out_ng[n, gene_e[e]] = count_e[e]
