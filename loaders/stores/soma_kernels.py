"""The loops over the entries that TileDB-SOMA returns, compiled: from runs of one cell to rows of a matrix.

TileDB returns entries in the order of its tiles, so a cell comes in several runs. Two passes, one that counts and one
that copies, cost less than a sort.

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
    """Return the place and the length of each run of entries of one cell, and add up the entries of each place."""
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
    """Copy each run behind what is already in its place, and drop those without one."""
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
