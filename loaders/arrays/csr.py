"""Rows of a compressed matrix in Zarr, decoded, narrowed, checked and put where they belong by all threads."""

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
"""Rows of which one thread drops genes in one go."""
_NARROWED = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")

_NOBODY = 2
"""References to an array of which no part is in use: the list's, and that of the call that counts them."""


class Buffers:
    """Gives out arrays and takes back, unasked, those of which nobody holds a part any more.

    Keeps of each type at most as many as were in use at one time. May be used by several threads.
    """

    def __init__(self) -> None:
        self._blocks: defaultdict[np.dtype[Any], list[NDArray[Any]]] = defaultdict(list)
        self._lock = threading.Lock()

    def empty(self, length: int, dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of `length` values, whatever they are."""
        with self._lock:
            blocks = self._blocks[np.dtype(dtype)]
            # A view of a block holds a reference to it, so no user has to give memory back, and none can forget to.
            free = [at for at in range(len(blocks)) if sys.getrefcount(blocks[at]) == _NOBODY]
            for at in free:
                if length <= len(blocks[at]):
                    return blocks[at][:length]
            if free:
                del blocks[free[0]]
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
    """Read ranges of rows straight to their places, or give None if something in them calls for a closer look.

    Parameters
    ----------
    starts
        For every range, where each of its rows begins in `data` and where the last one ends.
    order
        Which of the joined rows to give, in this order, none twice; None for all as they are.
    n_genes
        Genes of the matrix.
    buffers
        Where the memory for the rows comes from.

    Returns
    -------
    CsrRows
        Counts in uint8 if they are stored so, else in uint16. None if a count does not fit or is none, or a gene is out
        of range or stands twice in a row: `rows.from_arrays` says which, or takes larger counts.
    """
    if data.dtype.name not in _NARROWED or indices.dtype.name not in _NARROWED:
        return None
    stored = row_starts(np.concatenate([np.diff(start) for start in starts]))
    order = np.arange(len(stored) - 1) if order is None else order
    indptr = row_starts(np.diff(stored)[order])
    to_n = np.full(len(stored) - 1, -1, dtype=np.int64)
    to_n[order] = indptr[:-1]
    counts_e: NDArray[Any] = buffers.empty(indptr[-1], np.uint8 if data.dtype == np.uint8 else np.uint16)
    genes_e: NDArray[Any] = buffers.empty(indptr[-1], gene_type(n_genes))
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
    rising = all(rises) and falls_at(genes_e, np.array(borders, dtype=np.int64), stored, to_n) == 0
    if not rising and repeated_gene(genes_e, indptr, n_genes) >= 0:
        return None
    return CsrRows(counts_e, genes_e, indptr)


def read_chosen(
    data: ChunkedArray, indices: ChunkedArray, starts: Sequence[NDArray[np.int64]], choice: GeneChoice
) -> CsrRows | None:
    """Read the entries of some genes, renumbered: first which they are, then their counts.

    Parameters
    ----------
    starts
        As for `read_rows`.

    Returns
    -------
    CsrRows
        As `read_rows` gives them. None if `rows.from_arrays` must look: what `read_rows` refuses too, but of the genes
        that are dropped no more than their numbers.
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
        found[first] = entry_e[:n].copy(), place_e[:n].copy()

    run_side_by_side(list(indices.tasks(spans, find)), remote=indices.remote)
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
    """Keep the entries of some genes, renumbered, by all threads; None for all. The memory of `rows` is used for it."""
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
