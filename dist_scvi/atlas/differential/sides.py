"""The two sides of a comparison: their cells, counts, and values as sketch or sample.

Shape letters in this file
    g   genes
    l   leaves
    m   cells of a sample
    p   values of a side, a draw of a cell each
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dist_scvi.atlas.differential.all_pairs import SortedSample, sort_values
from dist_scvi.atlas.differential.sketch import FREE_BINS, POINTS, SHARE_BINS, merge_sketches
from dist_scvi.atlas.queries.group_expression import leaf_parts
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.sample import Seeds, even_normal, spread_cells
from dist_scvi.atlas.queries.where import Cells, CellSet, choose_cells, complement
from dist_scvi.expression.de_groups import CountMeans
from dist_scvi.inference.encode_decode import LatentCells, covariates_of, decoded_with
from dist_scvi.loaders.order.keyed_hash import hash_rows
from dist_scvi.network.noise import row_normal

_DECODE_CELLS = 512
_MOST_DRAWS = 32
"""Draws of each cell of a small group."""
_MOST_BATCHES, _LEAST_PER_BATCH = 64, 16
_BATCH_KEY = 107
_LEAST_SCALE = 2.0**-100


@dataclass(frozen=True, slots=True, eq=False)
class SideValues:
    """Values of one side of a comparison."""

    parts: tuple[SortedSample, ...]
    """One sample for each batch with which the cells were decoded."""
    mean_g: NDArray[np.float64]
    """Mean scale."""
    top_g: NDArray[np.float64]
    """Largest scale."""


def choose_sides(atlas: AtlasReader, group1: Cells, group2: Cells, where: Cells) -> tuple[CellSet, CellSet]:
    """Choose the cells of both sides; without `group2` the second side is all other cells.

    Raises
    ------
    ValueError
        If a side is empty, or the sides share cells.
    """
    within = choose_cells(atlas, where)
    first = choose_cells(atlas, group1, within=within)
    if group2 is None:
        second = complement(atlas, first, within)
        if not second.n_cells:
            raise ValueError(
                f"group1 ({first.text}) holds all {within.n_cells:,} cells: there is no rest to compare with"
            )
        return first, second
    second = choose_cells(atlas, group2, within=within)
    if first.leaf_l is not None and second.leaf_l is not None and atlas.leaves is not None:
        shared = int(atlas.leaves.n_cells[np.intersect1d(first.leaf_l, second.leaf_l)].sum())
    else:
        shared = sum(int(np.count_nonzero(first.mask(rows) & second.mask(rows))) for rows in atlas.chunks())
    if shared:
        raise ValueError(f"group1 and group2 share {shared:,} cells: leave them out of one of the two")
    return first, second


def count_means(atlas: AtlasReader, cells_l: NDArray[np.int64]) -> CountMeans:
    """Average the counts of a side that has `cells_l` cells in each leaf.

    For a union of leaves this is exact. Otherwise each cell counts with the average of its leaf, because an atlas keeps
    no counts of single cells.
    """
    leaves = atlas.leaves
    assert leaves is not None
    used_l, n_genes = np.flatnonzero(cells_l), len(atlas.var_names)
    sums = np.zeros((3, n_genes))
    for part_l in leaf_parts(used_l, n_genes, values=3):
        weight_l = cells_l[part_l] / leaves.n_cells[part_l]
        for place, read in enumerate((leaves.count_sum, leaves.detected, leaves.normalized_sum)):
            sums[place] += weight_l @ np.asarray(read(part_l), dtype=np.float64)
    return CountMeans(*(sums / cells_l.sum()))


def sketched_side(atlas: AtlasReader, cells: CellSet, n_points: int = POINTS) -> SideValues:
    """Merge the sketches of the leaves of a side into `n_points` quantiles."""
    leaves, leaf_l, n_genes = atlas.leaves, cells.leaf_l, len(atlas.var_names)
    assert leaves is not None
    assert leaf_l is not None
    n_bins = FREE_BINS if atlas.spec.size_factor_key else SHARE_BINS
    mean_g = np.zeros(n_genes)
    for part_l in leaf_parts(leaf_l, n_genes):
        mean_g += (leaves.n_cells[part_l] / cells.n_cells) @ leaves.scale_mean(part_l).astype(np.float64)
    return SideValues(
        (merge_sketches(leaves, leaf_l, n_genes, n_bins, n_points),), mean_g, largest_scale(atlas, leaf_l)
    )


def largest_scale(atlas: AtlasReader, leaf_l: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the largest scale of each gene among the draws of the sketches of leaves."""
    assert atlas.leaves is not None
    parts = leaf_parts(leaf_l, len(atlas.var_names))
    top_g: NDArray[np.float64] = np.max([atlas.leaves.scale_max(part_l).max(axis=0) for part_l in parts], axis=0)
    return top_g.astype(np.float64)


def correction_batches(atlas: AtlasReader, *, batch_correction: bool, seed: int) -> tuple[int | None, ...]:
    """Return the batches to decode with: each cell's own, or all, or a sample of very many."""
    if not batch_correction:
        return (None,)
    n_batch = atlas.spec.n_batch
    if atlas.spec.batch is None:
        raise ValueError(
            "batch_correction=True: the model was trained without a batch_key, there is nothing to correct"
        )
    if n_batch <= _MOST_BATCHES:
        return tuple(range(n_batch))
    order = np.argsort(hash_rows(np.arange(n_batch), seed, _BATCH_KEY), kind="stable")
    return tuple(np.sort(order[:_MOST_BATCHES]).tolist())


def decoded_side(
    atlas: AtlasReader, row_m: NDArray[np.int64], batches: tuple[int | None, ...], n_values: int | None, *, seeds: Seeds
) -> SideValues:
    """Decode a sample of cells, distributed over the batches.

    Parameters
    ----------
    row_m
        Rows to choose from, by ascending hash.
    n_values
        Cells to decode, spread evenly over the latent space; of fewer several draws are taken. None decodes each of
        `row_m` with each batch, at its own draw.
    seeds
        Seed of the query and number of the side.
    """
    cells, n_batches = atlas.read_cells(row_m), len(batches)
    if n_values is None:
        cell_p, noise_pk = np.arange(len(row_m)), row_normal(seeds[0], cells.row_n, 0, cells.qzm_nk.shape[1])
        shares = [slice(None)] * n_batches
    else:
        chosen_m = spread_cells(cells.qzm_nk, min(n_values, len(row_m)))
        wanted = max(n_values, _LEAST_PER_BATCH * n_batches if n_batches > 1 else 0)
        cell_p = np.repeat(chosen_m, min(-(-wanted // len(chosen_m)), _MOST_DRAWS))
        noise_pk = even_normal(len(cell_p), cells.qzm_nk.shape[1], seeds)
        shares = [slice(number, None, n_batches) for number in range(n_batches)]
    n_cells = len(np.unique(cell_p))
    parts, mean_g, top_g = [], np.zeros(len(atlas.var_names)), np.zeros(len(atlas.var_names))
    for batch, mine in zip(batches, shares, strict=True):
        log2_gp, sum_g, largest_g = _decode(atlas, cells, cell_p[mine], noise_pk[mine], batch)
        # Cells that several batches share count once, over all of them.
        parts.append(SortedSample(sort_values(log2_gp), n_cells / n_batches))
        mean_g += sum_g / log2_gp.shape[1] / n_batches
        top_g = np.maximum(top_g, largest_g)
    return SideValues(tuple(parts), mean_g, top_g)


@torch.no_grad()
def _decode(
    atlas: AtlasReader,
    cells: LatentCells,
    cell_p: NDArray[np.int64],
    noise_pk: NDArray[np.float32],
    batch: int | None,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Decode cells at draws: return the log2 scale, genes first, and the sum and the maximum of the scale."""
    module, n_values, n_genes = atlas.module, len(cell_p), len(atlas.var_names)
    log2_gp = np.empty((n_genes, n_values), dtype=np.float32)
    sum_g, top_g = np.zeros(n_genes), np.zeros(n_genes)
    for at in range(0, n_values, _DECODE_CELLS):
        stop = min(at + _DECODE_CELLS, n_values)
        # Blocks are padded with their first cell: matrix products of one shape round each cell alike.
        place = np.where(np.arange(at, at + _DECODE_CELLS) < stop, np.arange(at, at + _DECODE_CELLS), at)
        part = cells.take(cell_p[place])
        z_pk = torch.from_numpy(part.qzm_nk + np.sqrt(part.qzv_nk) * noise_pk[place]).to(module.device)
        covariates = decoded_with(covariates_of(part, module.device), batch)
        scale_pg = module.shares(module.latent(z_pk), covariates)[: stop - at]
        sum_g += scale_pg.sum(dim=0, dtype=torch.float64).cpu().numpy()
        top_g = np.maximum(top_g, scale_pg.amax(dim=0).double().cpu().numpy())
        log2_gp[:, at:stop] = scale_pg.clamp_min(_LEAST_SCALE).log2().t().cpu().numpy()
    return log2_gp, sum_g, top_g
