"""Third pass of minification: the sums, moments and quantiles of each file of leaves, merged from all pieces.

Shape letters in this file
    l   leaves of a file
    g   genes
    q   quantiles
    n   cells of a sketch
    s   kinds of sums
"""

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dist_scvi.atlas.store.names import (
    COUNT_SUM,
    DETECTED,
    LEAVES,
    NORMALIZED_SUM,
    QUANTILES,
    SCALE_MAX,
    SCALE_MEAN,
    SCALE_VAR,
    SQUARE_SUM,
)
from dist_scvi.atlas.writer.encode_pieces import N_COUNT_SUMS, latent_cells_of, read_records, read_sums, sketch_order
from dist_scvi.atlas.writer.plan import N_QUANTILES, AtlasPlan
from dist_scvi.atlas.writer.work import AtlasWork, Listed
from dist_scvi.atlas.writer.write_cells import RowOrder, padded
from dist_scvi.inference.encode_decode import covariates_of, draw_latent
from dist_scvi.loaders.arrays.objects import Objects

SMALLEST_SCALE = 2.0**-100
_BLOCK_GENES = 512

COUNT_LAYERS = {COUNT_SUM: "<f8", DETECTED: "<u4", SQUARE_SUM: "<f8", NORMALIZED_SUM: "<f8"}
"""In the order in which pieces store them."""
SCALE_LAYERS = {SCALE_MEAN: "<f4", SCALE_VAR: "<f4", SCALE_MAX: "<f4"}


def leaves_mark(number: int) -> str:
    """Return the name of the mark of a finished file of leaves."""
    return f"marks/leaves/{number:06d}.json"


def quantile_levels() -> NDArray[np.float64]:
    """Return the probabilities of the quantiles, shape (q,)."""
    return (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES


def write_leaves(plan: AtlasPlan, work: AtlasWork, objects: Objects, order: RowOrder, number: int) -> None:
    """Write file `number` of every array of leaves."""
    first = number * plan.leaf_rows
    last = min(first + plan.leaf_rows, plan.leaves.n_leaves)
    sums_slg, size_l = _merge_sums(plan, objects, order, number, last - first)
    found: dict[str, NDArray[Any]] = {}
    if plan.has_counts:
        found |= {
            name: np.rint(sum_lg).astype(kind) if kind == "<u4" else sum_lg
            for (name, kind), sum_lg in zip(COUNT_LAYERS.items(), sums_slg, strict=False)
        }
    mean_lg, square_lg = (sum_lg / size_l[:, None] for sum_lg in sums_slg[-2:])
    found[SCALE_MEAN] = mean_lg.astype("<f4")
    found[SCALE_VAR] = np.maximum(square_lg - np.square(mean_lg), 0).astype("<f4")
    found[SCALE_MAX], found[QUANTILES] = _sketches(plan, objects, order, first, last)
    listed: Listed = {}
    for name, values in found.items():
        ends = "/0" * (values.ndim - 1)
        listed |= work.write(f"{LEAVES}/{name}/c/{number}{ends}", padded(values, plan.leaf_rows))
    work.mark(leaves_mark(number), listed)


def leaf_sizes(plan: AtlasPlan, order: RowOrder) -> NDArray[np.int64]:
    """Count the cells of every leaf."""
    size_l = np.zeros(plan.leaves.n_leaves, dtype=np.int64)
    for index in order.indices:
        size_l[index.leaf_l] += index.size_l
    return size_l


def _merge_sums(
    plan: AtlasPlan, objects: Objects, order: RowOrder, number: int, n_leaves: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Add the sums of all pieces in the order of the pieces, so that the result does not depend on the workers."""
    sums_slg = np.zeros((N_COUNT_SUMS * plan.has_counts + 2, n_leaves, plan.n_genes))
    for piece, index in enumerate(order.indices):
        found = read_sums(objects, piece, index, number, plan)
        if found is not None:
            sums_slg[:, found[0]] += found[1]
    first = number * plan.leaf_rows
    return sums_slg, leaf_sizes(plan, order)[first : first + n_leaves]


def _sketches(
    plan: AtlasPlan, objects: Objects, order: RowOrder, first: int, last: int
) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Draw the cells of each sketch once and return the largest scale, shape (l, g), and the quantiles, (l, g, q)."""
    parts = []
    for number, index in enumerate(order.indices):
        low, high = np.searchsorted(index.leaf_l, [first, last])
        if low < high:
            span = (int(index.sketch_l[low]), int(index.sketch_l[high]))
            parts.append(read_records(objects, number, "sketch", plan.record, *span))
    record_n = np.concatenate(parts)
    record_n = record_n[sketch_order(record_n["leaf"], record_n["row"], plan.seed)]
    largest_lg = np.empty((last - first, plan.n_genes), dtype=np.float32)
    quantile_lgq = np.empty((last - first, plan.n_genes, N_QUANTILES), dtype=np.float16)
    borders = np.searchsorted(record_n["leaf"], np.arange(first, last + 1)).tolist()
    for leaf, (low, high) in enumerate(itertools.pairwise(borders)):
        log_ng = _draw(plan, record_n[low:high])
        largest_lg[leaf] = np.exp2(log_ng.max(axis=0))
        for gene in range(0, plan.n_genes, _BLOCK_GENES):
            part = slice(gene, gene + _BLOCK_GENES)
            quantile_lgq[leaf, part] = _quantiles(log_ng[:, part])
    return largest_lg, quantile_lgq


@torch.no_grad()
def _draw(plan: AtlasPlan, record_n: NDArray[Any]) -> NDArray[np.float32]:
    """Decode cells at a draw of their posterior: log2 of the scale, shape (n, g)."""
    log_ng = np.empty((len(record_n), plan.n_genes), dtype=np.float32)
    for low in range(0, len(record_n), plan.batch_cells):
        cells = latent_cells_of(record_n[low : low + plan.batch_cells])
        z_nk, _ = draw_latent(plan.module, cells, 0, 0)
        scale_ng = plan.module.shares(z_nk, covariates_of(cells, plan.module.device))
        log_ng[low : low + plan.batch_cells] = scale_ng.clamp(min=SMALLEST_SCALE).log2().cpu().numpy()
    return log_ng


def _quantiles(log_ng: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the quantiles of each column by Hazen's rule, shape (g, q).

    The columns are sorted as rows: numpy sorts contiguous floats several times as fast as `numpy.quantile` does.
    """
    sorted_gn = np.sort(np.ascontiguousarray(log_ng.T), axis=1)
    place_q = np.clip(quantile_levels() * sorted_gn.shape[1] - 0.5, 0, sorted_gn.shape[1] - 1)
    low_q = np.floor(place_q).astype(np.int64)
    high_q, weight_q = np.minimum(low_q + 1, sorted_gn.shape[1] - 1), (place_q - low_q).astype(np.float32)
    quantile_gq: NDArray[np.float32] = sorted_gn[:, low_q] * (1 - weight_q) + sorted_gn[:, high_q] * weight_q
    return quantile_gq
