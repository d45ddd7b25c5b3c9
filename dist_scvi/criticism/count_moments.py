"""Moments of observed and drawn counts, by cell and by gene, in one pass over the cells.

Shape letters in this file
    n   cells
    g   genes
    s   draws
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.criticism.predictive_source import ObservedChunk

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CountMoments:
    """Coefficients of variation, shares of zeros and total counts: observed, and the mean over draws."""

    row_n: NDArray[np.int64]
    cv_cell_n: Array
    cv_cell_drawn_n: Array
    zero_cell_n: Array
    zero_cell_drawn_n: Array
    library_n: Array
    library_drawn_ns: Array
    cv_gene_g: Array
    cv_gene_drawn_g: Array
    zero_gene_g: Array
    zero_gene_drawn_g: Array


def count_moments(chunks: Iterable[ObservedChunk]) -> CountMoments:
    """Accumulate over chunks of cells.

    Notes
    -----
    scvi-tools 1.4.2, criticism/_ppc.py: the coefficient of variation is computed within a draw, then averaged over
    draws, of which those without any count are left out; observed cells and genes without counts have 0. Its
    ``zero_fraction`` is the share of counts that are not 0; here it is that of zeros.
    """
    by_cell: list[tuple[NDArray[Any], ...]] = []
    n, genes = 0, None
    for chunk in chunks:
        stacked_ngs = np.concatenate([chunk.observed_ng[..., None], chunk.drawn_ngs], axis=2, dtype=np.float64)
        # Sums of counts and of their squares are whole numbers, exact in float64.
        square_ngs = stacked_ngs**2
        sums_gs = np.stack([stacked_ngs.sum(axis=0), square_ngs.sum(axis=0), (stacked_ngs == 0).sum(axis=0)])
        genes = sums_gs if genes is None else genes + sums_gs
        n += len(chunk.row_n)
        cv_ns = _variation(stacked_ngs.mean(axis=1), square_ngs.mean(axis=1))
        zero_ns = (stacked_ngs == 0).mean(axis=1)
        library_ns = stacked_ngs.sum(axis=1)
        by_cell.append((chunk.row_n, *_split(cv_ns), *_split(zero_ns), library_ns[:, 0], library_ns[:, 1:]))
    if genes is None:
        raise ValueError("no cell was chosen: at least one is needed")
    cells: list[NDArray[Any]] = [np.concatenate(part) for part in zip(*by_cell, strict=True)]
    cv_gs = _variation(genes[0] / n, genes[1] / n)
    row_n, cv_n, cv_drawn_n, zero_n, zero_drawn_n, library_n, library_drawn_ns = cells
    by_gene = (*_split(cv_gs), *_split(genes[2] / n))
    return CountMoments(row_n, cv_n, cv_drawn_n, zero_n, zero_drawn_n, library_n, library_drawn_ns, *by_gene)


def _variation(mean: Array, square: Array) -> Array:
    """Return standard deviation over mean; NaN where the mean is 0."""
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return np.where(mean > 0, deviation / np.where(mean > 0, mean, 1), np.nan)


def _split(value_xs: Array) -> tuple[Array, Array]:
    """Return the observed value, and the mean over the draws that have one."""
    drawn = value_xs[:, 1:]
    known = ~np.isnan(drawn)
    mean_x = np.where(known, drawn, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), 1)
    return np.nan_to_num(value_xs[:, 0]), np.where(known.any(axis=1), mean_x, np.nan)
