"""Correlation of features over cells and samples of each, in chunks.

Shape letters in this file
    n   cells
    s   samples
    m   rows, each a sample of a cell
    g   features (genes)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from dist_scvi.inference.cell_selection import Selection
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.world import World

Values = Callable[[MiniBatch], NDArray[np.float32]]
"""Returns the values to correlate for the cells of a minibatch, shape (n, s, g)."""

_BLOCK_VALUES = 1 << 22
_MOST_RANKED, _MOST_FEATURES = 1 << 28, 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Number, means and sums of products of deviations from the means of some rows."""

    rows: int
    mean_g: NDArray[np.float64]
    product_gg: NDArray[np.float64]

    def joined(self, other: "Moments") -> "Moments":
        """Return the moments of the rows of both.

        Deviations are merged instead of raw sums of products, which cancel where the means are large.

        Notes
        -----
        Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115.
        """
        rows = self.rows + other.rows
        apart_g = other.mean_g - self.mean_g
        shift = self.rows * other.rows / rows
        product_gg = self.product_gg + other.product_gg + shift * np.outer(apart_g, apart_g)
        return Moments(rows, self.mean_g + apart_g * (other.rows / rows), product_gg)

    def correlation(self) -> NDArray[np.float64]:
        """Return Pearson's correlation of each pair of features, shape (g, g); NaN where a feature is constant."""
        spread_g = np.sqrt(self.product_gg.diagonal())
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation_gg = self.product_gg / spread_g[:, None] / spread_g
        return np.clip(correlation_gg, -1, 1)


def moments_of(value_mg: NDArray[np.floating[Any]]) -> Moments:
    """Return the moments of rows."""
    value_mg = value_mg.astype(np.float64)
    mean_g = value_mg.mean(axis=0)
    value_mg -= mean_g
    return Moments(len(value_mg), mean_g, value_mg.T @ value_mg)


def _joined(chunks: Iterable[Moments | None]) -> Moments | None:
    """Merge moments; None stands for no rows, such as those of a worker without cells."""
    total: Moments | None = None
    for chunk in chunks:
        total = chunk if total is None else total if chunk is None else total.joined(chunk)
    return total


def pearson_correlation(
    selection: Selection, values: Values, n_genes: int, n_samples: int, world: World, *, chunk_cells: int
) -> NDArray[np.float64]:
    """Correlate features over the requested cells and their samples, shape (g, g), in one pass shared by workers.

    Raises
    ------
    ValueError
        If there are too many features for a table of all pairs.
    """
    _check_size(n_genes, selection, n_samples, ranked=False)
    order = selection.order
    times_n = None if isinstance(order, slice) else np.bincount(order, minlength=selection.n_cells)

    def moments(minibatch: MiniBatch) -> Moments:
        value_nsg, at = values(minibatch), minibatch.step
        if times_n is not None:  # a cell that is requested twice counts twice
            value_nsg = np.repeat(value_nsg, times_n[at : at + len(value_nsg)], axis=0)
        return moments_of(value_nsg.reshape(-1, n_genes))

    mine = _joined(map(moments, selection.minibatches(world, chunk_cells=chunk_cells)))
    total = _joined(world.from_all(mine))
    assert total is not None
    return total.correlation()


def spearman_correlation(
    selection: Selection, values: Values, n_genes: int, n_samples: int, world: World, *, chunk_cells: int
) -> NDArray[np.float64]:
    """Correlate the ranks of features, shape (g, g).

    The values of all cells are in memory at once: a rank depends on all of them, so ranks cannot be streamed.

    Raises
    ------
    ValueError
        If there are too many features for a table of all pairs, or too many values to rank.
    """
    _check_size(n_genes, selection, n_samples, ranked=True)
    value_nsg = selection.answer(lambda minibatch: (values(minibatch),), world, chunk_cells=chunk_cells)[0]
    return rank_correlation(value_nsg.reshape(-1, n_genes))


def rank_correlation(value_mg: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return Spearman's rank correlation of each pair of features, shape (g, g); NaN where a feature is constant.

    The ranks overwrite `value_mg`, so that many rows need no second array.
    """
    m, n_features = value_mg.shape
    width = max(1, _BLOCK_VALUES // m)
    for start in range(0, n_features, width):
        block = slice(start, start + width)
        value_mg[:, block] = rankdata(value_mg[:, block], axis=0)
    height = max(1, _BLOCK_VALUES // n_features)
    total = _joined(moments_of(value_mg[at : at + height]) for at in range(0, m, height))
    assert total is not None
    return total.correlation()


def _check_size(n_features: int, selection: Selection, n_samples: int, *, ranked: bool) -> None:
    if n_features > _MOST_FEATURES:
        raise ValueError(
            f"{n_features} genes make {n_features**2 * 8 / 2**30:.0f} GiB of pairs: choose at most {_MOST_FEATURES} "
            "in gene_list"
        )
    n_cells = selection.n_cells if isinstance(selection.order, slice) else len(selection.order)
    if ranked and n_cells * n_samples * n_features > _MOST_RANKED:
        raise ValueError(
            f"{n_samples} samples x {n_cells} cells x {n_features} genes are too many to rank ({_MOST_RANKED} values): "
            "choose cells in indices or genes in gene_list, or use correlation_type='pearson', which streams"
        )
