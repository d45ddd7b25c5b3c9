"""Rows of a CSR matrix in Zarr: all threads decode, narrow and check them and copy them to their places."""

import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dist_scvi.loaders.arrays.chunked_array import ChunkedArray, run_side_by_side
from dist_scvi.loaders.arrays.csr_rows import CsrRows, GeneChoice, concatenate, gene_type, row_starts
from dist_scvi.loaders.arrays.kernels import (
    REFUSED,
    falls_at,
    find_genes,
    keep_genes,
    place_rows,
    repeated_gene,
    settle,
)

_KEPT_TOGETHER = 1024
"""Rows of one task of `keep_rows`."""
_NARROWED = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")

_NOBODY = 2
"""References to an unused array: that of the list, and the argument of ``sys.getrefcount``."""


class Buffers:
    """A pool of arrays; an array is free again when no view of it exists.

    Keeps at most as many arrays of each type as were in use at one time. Thread-safe.
    """

    # The reference count replaces an explicit release: minibatches are views of a window, and no single place in the
    # code knows which of them is used last. A numpy view refers to the array that owns the memory, so that the count
    # includes the views.

    def __init__(self) -> None:
        self._blocks: defaultdict[np.dtype[Any], list[NDArray[Any]]] = defaultdict(list)
        self._lock = threading.Lock()

    def empty(self, length: int, dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of `length` values, not initialised."""
        with self._lock:
            blocks = self._blocks[np.dtype(dtype)]
            free = [at for at in range(len(blocks)) if sys.getrefcount(blocks[at]) == _NOBODY]
            for at in free:
                if length <= len(blocks[at]):
                    return blocks[at][:length]
            # No free array is long enough. One is dropped for the new one, so that arrays that are too short do not
            # accumulate.
            if free:
                del blocks[free[0]]
            # An eighth more, so that a somewhat longer window can use the same array.
            blocks.append(np.empty(length + length // 8, dtype=dtype))
            return blocks[-1][:length]


def read_rows(
    data: ChunkedArray,
    indices: ChunkedArray,
    starts: Sequence[NDArray[np.int64]],
    order: NDArray[np.int64] | None,
    n_genes: int,
    buffers: Buffers,
) -> CsrRows | None:
    """Read ranges of rows directly to their places, or return None if they need the slower, more detailed reader.

    Parameters
    ----------
    starts
        For every range, where each of its rows begins in `data` and where the last one ends.
    order
        Which of the joined rows to return, in this order, none twice; None for all in the stored order.
    n_genes
        Genes of the matrix.
    buffers
        Supplies the memory for the rows.

    Returns
    -------
    CsrRows
        Counts in uint8 if they are stored as uint8, else in uint16. None if a count does not fit or is not a count, or
        a gene is out of range or occurs twice in a row: `rows.from_arrays` reports which, or accepts larger counts.
    """
    if data.dtype.name not in _NARROWED or indices.dtype.name not in _NARROWED:
        return None
    stored = row_starts(np.concatenate([np.diff(start) for start in starts]))
    order = np.arange(len(stored) - 1) if order is None else order
    indptr = row_starts(np.diff(stored)[order])
    to_n = np.full(len(stored) - 1, -1, dtype=np.int64)
    to_n[order] = indptr[:-1]
    # Most counts fit uint16. The rare store with larger ones is read a second time, as uint32, instead of doubling the
    # memory of all windows.
    counts_e: NDArray[Any] = buffers.empty(indptr[-1], np.uint8 if data.dtype == np.uint8 else np.uint16)
    genes_e: NDArray[Any] = buffers.empty(indptr[-1], gene_type(n_genes))
    # Tasks append from several threads: list.append is atomic, and no task reads these lists. Each task writes its own
    # part of counts_e and genes_e, so that no lock is needed.
    refused: list[int] = []
    rises: list[int] = []
    borders: list[int] = []

    def place_counts(values_e: NDArray[Any], first: int) -> None:
        if place_rows(values_e, first, stored, to_n, counts_e, np.iinfo(counts_e.dtype).max) == REFUSED:
            refused.append(first)

    def place_genes(values_e: NDArray[Any], first: int) -> None:
        rising = place_rows(values_e, first, stored, to_n, genes_e, n_genes - 1)
        (refused if rising == REFUSED else rises).append(rising)
        borders.append(first)

    spans = [(int(start[0]), int(start[-1])) for start in starts]
    run_side_by_side([*indices.tasks(spans, place_genes), *data.tasks(spans, place_counts)], remote=data.remote)
    if refused:
        return None
    # Genes that strictly increase within a row cannot repeat: only other rows need the check with a table of all genes.
    rising = all(rises) and falls_at(genes_e, np.array(borders, dtype=np.int64), stored, to_n) == 0
    if not rising and repeated_gene(genes_e, indptr, n_genes) >= 0:
        return None
    return CsrRows(counts_e, genes_e, indptr)


def read_chosen(
    data: ChunkedArray, indices: ChunkedArray, starts: Sequence[NDArray[np.int64]], choice: GeneChoice
) -> CsrRows | None:
    """Read the entries of some genes, renumbered: first the positions of these entries, then their counts.

    Parameters
    ----------
    starts
        As for `read_rows`.

    Returns
    -------
    CsrRows
        As returned by `read_rows`. None in the cases in which `read_rows` returns None, except that of dropped genes
        only the range of their numbers is checked.
    """
    if data.dtype.name not in _NARROWED or indices.dtype.kind not in "iu":
        return None
    spans = [(int(start[0]), int(start[-1])) for start in starts]
    gene_kind = gene_type(choice.n_genes)
    chosen_g = np.pad(choice.place_g >= 0, (0, -len(choice.place_g) % 64))
    chosen_w = np.packbits(chosen_g, bitorder="little").view(np.uint64)
    found: dict[int, tuple[NDArray[np.int64], NDArray[Any]]] = {0: (np.empty(0, np.int64), np.empty(0, gene_kind))}
    refused: list[int] = []

    def find(values_e: NDArray[Any], first: int) -> None:
        entry_e, place_e = np.empty(len(values_e), np.int64), np.empty(len(values_e), gene_kind)
        n = find_genes(values_e, first, chosen_w, choice.place_g, entry_e, place_e)
        if n == REFUSED:
            refused.append(first)
        # Copies: views would keep the full-length arrays of all tasks in memory.
        found[first] = entry_e[:n].copy(), place_e[:n].copy()

    run_side_by_side(list(indices.tasks(spans, find)), remote=indices.remote)
    # Threads finish in any order; sorting by the first entry restores the order of the store.
    entry_e, genes_e = map(np.concatenate, zip(*(found[first] for first in sorted(found)), strict=True))
    indptr = np.searchsorted(entry_e, row_starts(np.concatenate([np.diff(start) for start in starts])))
    if refused or repeated_gene(genes_e, indptr, choice.n_genes) >= 0:
        return None
    counts_e: NDArray[Any] = np.empty(len(entry_e), np.uint8 if data.dtype == np.uint8 else np.uint16)

    def take_counts(values_e: NDArray[Any], first: int) -> None:
        low, high = np.searchsorted(entry_e, (first, first + len(values_e)))
        if not settle(values_e[entry_e[low:high] - first], counts_e[low:high], np.iinfo(counts_e.dtype).max):
            refused.append(first)

    run_side_by_side(list(data.tasks(spans, take_counts)), remote=data.remote)
    return None if refused else CsrRows(counts_e, genes_e, indptr)


def keep_rows(rows: CsrRows, choice: GeneChoice | None) -> CsrRows:
    """Keep the entries of some genes, renumbered, in all threads; None keeps all. May overwrite arrays of `rows`."""
    if choice is None:
        return rows
    kept: dict[int, CsrRows] = {}

    def keep(low: int, high: int) -> None:
        part = rows.part(low, high)
        genes_e, indptr = part.genes_e.astype(gene_type(choice.n_genes), copy=False), np.empty_like(part.indptr)
        keep_genes(part.counts_e, part.genes_e, part.indptr, choice.place_g, part.counts_e, genes_e, indptr)
        kept[low] = CsrRows(part.counts_e[: indptr[-1]], genes_e[: indptr[-1]], indptr)

    edges = range(0, max(rows.n_cells, 1), _KEPT_TOGETHER)
    run_side_by_side([partial(keep, low, min(low + _KEPT_TOGETHER, rows.n_cells)) for low in edges])
    return concatenate([kept[low] for low in edges])
