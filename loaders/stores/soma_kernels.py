"""Compiled loops over the entries that TileDB-SOMA returns: from runs of one cell to rows of a matrix.

TileDB returns entries in the order of its tiles, so that a cell has several runs. Two passes, one to count and one to
copy, cost less than a sort.

Shape letters in this file
    n   cells (rows) of one read
    e   their stored entries
    r   runs of entries of one cell
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(nogil=True, cache=True)
def find_runs(
    cell_e: NDArray[np.int64], first: int, place_n: NDArray[np.int32], length_n: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return the place and the length of each run of entries of one cell; add the lengths to `length_n` by place."""
    # A first loop counts the runs, so that the result is allocated once.
    n_runs = min(1, len(cell_e))
    for e in range(1, len(cell_e)):
        n_runs += cell_e[e] != cell_e[e - 1]
    run_r = np.empty((n_runs, 2), dtype=np.int32)
    begin = 0
    for r in range(n_runs):
        end = begin + 1
        while end < len(cell_e) and cell_e[end] == cell_e[begin]:
            end += 1
        place = place_n[cell_e[begin] - first]
        run_r[r, 0], run_r[r, 1] = place, end - begin
        if place >= 0:
            length_n[place] += end - begin
        begin = end
    return run_r


@njit(nogil=True, cache=True)
def copy_runs(
    run_r: NDArray[np.int32],
    from_counts_e: NDArray[Any],
    from_genes_e: NDArray[Any],
    cursor_n: NDArray[np.int64],
    counts_e: NDArray[Any],
    genes_e: NDArray[Any],
) -> None:
    """Append each run to the entries of its place, and drop runs without a place (below 0)."""
    # `cursor_n` keeps the end of each row between calls: a cell can have runs in several results of TileDB.
    begin = 0
    for r in range(len(run_r)):
        place, end = run_r[r, 0], begin + run_r[r, 1]
        if place >= 0:
            to = cursor_n[place]
            cursor_n[place] = to + end - begin
            part_e, to_e = from_counts_e[begin:end], counts_e[to : cursor_n[place]]
            for e in range(len(part_e)):
                to_e[e] = part_e[e]
            gene_part_e, gene_to_e = from_genes_e[begin:end], genes_e[to : cursor_n[place]]
            for e in range(len(gene_part_e)):
                gene_to_e[e] = gene_part_e[e]
        begin = end
