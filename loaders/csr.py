"""Rows of a compressed matrix in Zarr, decoded, narrowed and checked in one go by all threads."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffers
from .chunks import ChunkedArray, Task, run_side_by_side
from .kernels import REFUSED, descents, descents_at, repeated_gene, settle
from .rows import CsrRows, gene_type

_NARROWED = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")


def read_rows(
    data: ChunkedArray, indices: ChunkedArray, starts: Sequence[NDArray[np.int64]], n_genes: int, buffers: Buffers
) -> CsrRows | None:
    """Read ranges of rows, or give None if something in them calls for a closer look.

    Parameters
    ----------
    starts
        For every range, where each of its rows begins in `data` and where the last one ends.
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
    indptr = _joined(starts)
    counts_e: NDArray[Any] = buffers.empty(indptr[-1], np.uint8 if data.dtype == np.uint8 else np.uint16)
    genes_e: NDArray[Any] = buffers.empty(indptr[-1], gene_type(n_genes))
    refused: list[int] = []
    falls: list[int] = []
    borders: list[int] = []

    def placed(out_e: NDArray[Any], limit: int) -> Callable[[NDArray[Any], int], None]:
        def place(values_e: NDArray[Any], at: int) -> None:
            if not settle(values_e, out_e[at : at + len(values_e)], limit):
                refused.append(at)

        return place

    def counted(task: Task, begin: int, end: int) -> Task:
        def work() -> None:
            task()
            falls.append(descents(genes_e[begin:end], n_genes))

        return work

    spans = [(int(start[0]), int(start[-1])) for start in starts]
    tasks = []
    for task, begin, end in indices.tasks(spans, genes_e, placed(genes_e, n_genes - 1)):
        tasks.append(counted(task, begin, end))
        borders.append(begin)
    tasks += [task for task, _, _ in data.tasks(spans, counts_e, placed(counts_e, np.iinfo(counts_e.dtype).max))]
    run_side_by_side(tasks, remote=data.remote)
    if refused or REFUSED in falls:
        return None
    rising = sum(falls) + descents_at(genes_e, np.array(borders, dtype=np.int64)) == descents_at(genes_e, indptr[1:-1])
    if not rising and repeated_gene(genes_e, indptr, n_genes) >= 0:
        return None
    return CsrRows(counts_e, genes_e, indptr)


def _joined(starts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Give where each row of all ranges begins once they are joined, from 0."""
    lengths = np.concatenate([np.diff(start) for start in starts])
    indptr = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=indptr[1:])
    return indptr
