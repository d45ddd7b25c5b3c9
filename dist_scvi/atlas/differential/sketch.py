"""Merge the quantile sketches of leaves into one sample of a group.

Values are counted on a fixed grid with whole numbers of cells, so that the order of merging does not change a bit.

Shape letters in this file
    l   leaves
    g   genes
    q   quantiles of a leaf
    p   points of a group
    v   bins of the grid
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dist_scvi.atlas.differential.all_pairs import SortedSample, gene_blocks, in_threads
from dist_scvi.atlas.queries.group_expression import leaf_parts
from dist_scvi.atlas.queries.reader import LeafReader

POINTS = 128
LOWEST, BINS_PER_UNIT = -40.0, 16.0
"""The grid of log2 scale begins at 1e-12 and has sixteen bins for each factor of two."""
SHARE_BINS, FREE_BINS = 640, 1024
"""Bins for shares, which are at most 1, and for scales of size factors, up to 2**24."""


def merge_sketches(
    leaves: LeafReader, leaf_l: NDArray[np.int64], n_genes: int, n_bins: int, n_points: int = POINTS
) -> SortedSample:
    """Return evenly spaced quantiles of the log2 scale of the cells of some leaves, weighted by their cells."""
    n_l, sketch_l = leaves.n_cells[leaf_l].astype(np.float64), leaves.n_sketch[leaf_l]
    n_effective = float(n_l.sum() ** 2 / (n_l**2 / sketch_l).sum())
    point_gp = np.empty((n_genes, n_points), dtype=np.float32)
    if len(leaf_l) == 1:
        quantile_gq = leaves.quantiles(leaf_l)[0]
        in_threads(lambda genes: _spread(quantile_gq[genes], point_gp[genes]), gene_blocks(n_genes))
        return SortedSample(point_gp, n_effective)
    count_gv = count_on_grid(leaves, leaf_l, n_genes, n_bins)
    in_threads(lambda genes: _invert(count_gv[genes], point_gp[genes]), gene_blocks(n_genes))
    return SortedSample(point_gp, n_effective)


def count_on_grid(leaves: LeafReader, leaf_l: NDArray[np.int64], n_genes: int, n_bins: int) -> NDArray[np.int64]:
    """Count the cells of leaves on the grid, 128 for each cell, shape (g, v)."""
    count_gv = np.zeros((n_genes, n_bins), dtype=np.int64)
    for part_l in leaf_parts(leaf_l, n_genes, values=16):
        quantile_lgq, n_l = leaves.quantiles(part_l), leaves.n_cells[part_l].astype(np.int64)
        in_threads(lambda genes: _deposit(quantile_lgq[:, genes], n_l, count_gv[genes]), gene_blocks(n_genes))  # noqa: B023
    return count_gv


@njit(nogil=True, cache=True)
def _spread(quantile_gq: NDArray[np.float32], point_gp: NDArray[np.float32]) -> None:
    """Interpolate between quantiles; beyond the outermost two, extrapolate linearly by half a step."""
    n_genes, n_q = quantile_gq.shape
    n_p = point_gp.shape[1]
    for gene in range(n_genes):
        for point in range(n_p):
            place = (point + 0.5) / n_p * n_q - 0.5
            left = min(max(int(np.floor(place)), 0), n_q - 2)
            step = quantile_gq[gene, left + 1] - quantile_gq[gene, left]
            point_gp[gene, point] = quantile_gq[gene, left] + step * (place - left)


@njit(nogil=True, cache=True)
def _deposit(quantile_lgq: NDArray[np.float32], n_l: NDArray[np.int64], count_gv: NDArray[np.int64]) -> None:
    """Count 128 interpolated quantiles of each leaf."""
    n_leaves, n_genes, n_q = quantile_lgq.shape
    each, n_bins = 128 // n_q, count_gv.shape[1]
    for leaf in range(n_leaves):
        for gene in range(n_genes):
            for point in range(n_q * each):
                place = (point + 0.5) / each - 0.5
                left = min(max(int(np.floor(place)), 0), n_q - 2)
                step = quantile_lgq[leaf, gene, left + 1] - quantile_lgq[leaf, gene, left]
                value = quantile_lgq[leaf, gene, left] + step * (place - left)
                cell = int((value + 40.0) * 16.0)
                count_gv[gene, min(max(cell, 0), n_bins - 1)] += n_l[leaf]


@njit(nogil=True, cache=True)
def _invert(count_gv: NDArray[np.int64], point_gp: NDArray[np.float32]) -> None:
    """Return evenly spaced quantiles of counts on the grid; values are assumed uniform within a bin."""
    n_genes, n_bins = count_gv.shape
    n_p = point_gp.shape[1]
    for gene in range(n_genes):
        total = count_gv[gene].sum()
        cell, below = 0, np.int64(0)
        for point in range(n_p):
            wanted = (point + 0.5) / n_p * total
            while cell < n_bins - 1 and below + count_gv[gene, cell] < wanted:
                below += count_gv[gene, cell]
                cell += 1
            inside = (wanted - below) / max(count_gv[gene, cell], 1)
            point_gp[gene, point] = -40.0 + (cell + inside) / 16.0
