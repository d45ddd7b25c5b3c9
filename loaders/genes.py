"""Moments of each gene, in one pass over a store, and highly variable genes, in two passes.

Shape letters in this file
    n   cells of one read
    e   their stored entries
    b   batches
    g   genes
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from skmisc.loess import loess

from dist_scvi.loaders.arrays.csr_rows import CsrRows
from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.read_limits import READ_TIMEOUT_S, cells_of_read
from dist_scvi.loaders.stream import prefetch

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class GeneMoments:
    """Sums of the counts of each gene in each batch, as `gene_moments` found them."""

    batches: tuple[str, ...]
    """The categories of the batch column, or one with an empty name."""
    cells_b: NDArray[np.int64]
    """Cells, 0 for a category that is not used."""
    sum_bg: NDArray[Any]
    """int64, or float64 of fractional counts."""
    square_bg: NDArray[np.float64]
    """Sums of squares, exact below 2**53."""

    def mean_bg(self) -> NDArray[np.float64]:
        """Mean count in each batch, 0 without cells."""
        mean_bg: NDArray[np.float64] = self.sum_bg / np.maximum(self.cells_b, 1)[:, None]
        return mean_bg

    def variance_bg(self) -> NDArray[np.float64]:
        """Variance of the counts in each batch, over n - 1; 0 with less than two cells."""
        n_b1 = np.maximum(self.cells_b, 1)[:, None]
        # The same operations as in scanpy: the last bit decides the rank of genes of equal variance.
        over_n_bg = self.square_bg / n_b1 - self.mean_bg() ** 2
        variance_bg: NDArray[np.float64] = over_n_bg * (n_b1 / np.maximum(n_b1 - 1, 1))
        return variance_bg

    def joined(self) -> "GeneMoments":
        """Return the moments of all batches together."""
        sums = (part.sum(axis=0, keepdims=True) for part in (self.cells_b, self.sum_bg, self.square_bg))
        return GeneMoments(("",), *sums)


@dataclass(frozen=True, slots=True)
class HighlyVariable:
    """Result of `highly_variable_genes` for each gene, with the names of scanpy; all arrays of shape (g,)."""

    means: NDArray[np.float64]
    variances: NDArray[np.float64]
    variances_norm: NDArray[np.float64]
    """Variance divided by that expected from the mean, averaged over batches."""
    highly_variable_rank: NDArray[np.float64]
    """Median rank over the batches in which the gene is among the top, from 0; NaN if there are none."""
    highly_variable_nbatches: NDArray[np.int64]
    """Batches in which the gene is among the top."""
    highly_variable: NDArray[np.bool_]


def gene_moments(
    store: CellStore,
    *,
    batch_key: str | None = None,
    progress: Progress | None = None,
    timeout_s: float = READ_TIMEOUT_S,
) -> GeneMoments:
    """Return sums of the counts and of their squares for each gene in each batch.

    Memory grows with batches x genes, not with cells.

    Parameters
    ----------
    batch_key
        Categorical obs column.
    progress
        Called with (cells done, cells of the store) after every read.
    timeout_s
        Longest wait for a read.

    Raises
    ------
    ValueError
        If a row is damaged or does not hold raw counts, or the column is missing or lacks a value; see `CellStore`.
    TimeoutError
        If a read does not finish in time.
    """
    names = store.categorical(batch_key).vocabulary if batch_key else ("",)
    cells_b = np.zeros(len(names), dtype=np.int64)
    sum_bg = np.zeros((len(names), len(store.var_names)), dtype=np.float64 if store.fractional else np.int64)
    square_bg = np.zeros(sum_bg.shape)
    for stop, rows, batch_n in prefetch(_reads(store, batch_key), 1, timeout_s):
        cells_b += np.bincount(batch_n, minlength=len(names))
        _add_moments(rows.counts_e, rows.genes_e, rows.indptr, batch_n, sum_bg, square_bg)
        if progress is not None:
            progress(stop, store.n_cells)
    return GeneMoments(names, cells_b, sum_bg, square_bg)


def highly_variable_genes(
    store: CellStore,
    *,
    n_top_genes: int = 2000,
    batch_key: str | None = None,
    span: float = 0.3,
    progress: Progress | None = None,
    timeout_s: float = READ_TIMEOUT_S,
) -> HighlyVariable:
    """Rank genes by their variance divided by that expected from their mean, as ``seurat_v3`` of scanpy does.

    Reads the store twice. Memory grows with batches x genes, not with cells.

    Parameters
    ----------
    n_top_genes
        Genes to mark.
    batch_key
        Categorical obs column; genes are ranked in each batch, and by their median rank over batches.
    span
        Share of the genes used for each point of the local regression.
    progress
        Called with (cells read, cells to read in both passes) after every read.
    timeout_s
        Longest wait for a read.

    Raises
    ------
    ValueError
        If batches have too few cells, or too few genes that vary, for the fit of the trend, and as `gene_moments`.
    TimeoutError
        If a read does not finish in time.

    Notes
    -----
    Stuart et al., Cell 177 (2019); ``scanpy.pp.highly_variable_genes`` of scanpy 1.11.5, to the order of its sums.
    """
    if n_top_genes < 1 or not 0 < span <= 1:
        raise ValueError(f"n_top_genes={n_top_genes} must be at least 1, and span={span} above 0 and at most 1")
    of_both = 2 * store.n_cells

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, of_both)

    moments = gene_moments(store, batch_key=batch_key, progress=lambda done, _: tell(done), timeout_s=timeout_s)
    deviation_bg = _expected_deviation(moments, span)
    mean_bg, cells_b1 = moments.mean_bg(), moments.cells_b[:, None]
    limit_bg = deviation_bg * np.sqrt(cells_b1) + mean_bg
    sum_bg, square_bg = np.zeros(mean_bg.shape), np.zeros(mean_bg.shape)
    for stop, rows, batch_n in prefetch(_reads(store, batch_key), 1, timeout_s):
        _add_clipped(rows.counts_e, rows.genes_e, rows.indptr, batch_n, limit_bg, sum_bg, square_bg)
        tell(store.n_cells + stop)
    norm_bg = (1 / ((cells_b1 - 1) * np.square(deviation_bg))) * (
        cells_b1 * np.square(mean_bg) + square_bg - 2 * sum_bg * mean_bg
    )
    whole = moments.joined()
    return _ranked(whole.mean_bg()[0], whole.variance_bg()[0], norm_bg[moments.cells_b > 0], n_top_genes)


def _expected_deviation(moments: GeneMoments, span: float) -> NDArray[np.float64]:
    """Fit the standard deviation of each gene to its mean, batch by batch; 1 for genes that do not vary."""
    mean_bg, variance_bg = moments.mean_bg(), moments.variance_bg()
    deviation_bg = np.ones(mean_bg.shape)
    failed = []
    for batch in np.flatnonzero(moments.cells_b):
        varying = variance_bg[batch] > 0
        mean, variance = mean_bg[batch, varying], variance_bg[batch, varying]
        try:
            deviation_bg[batch, varying] = np.sqrt(10 ** _loess(np.log10(mean), np.log10(variance), span))
        except ValueError as error:
            found = (
                f"cells: {moments.cells_b[batch]}, genes that vary: {len(mean)}, their means: {len(np.unique(mean))}"
            )
            failed.append(f"'{moments.batches[batch] or 'all'}' ({found}; {error})")
    if failed:
        shown = ", ".join(failed[:5]) + (", ..." if failed[5:] else "")
        raise ValueError(
            f"the variance of genes cannot be fitted to their means in {len(failed)} of "
            f"{np.count_nonzero(moments.cells_b)} batches: {shown}: join small batches to others or remove them, or "
            f"raise span ({span})"
        )
    return deviation_bg


def _loess(x: NDArray[np.float64], y: NDArray[np.float64], span: float) -> NDArray[np.float64]:
    if len(x) * span < 3:  # below 1, the native code of loess ends the process
        raise ValueError("span takes less than the 3 that a parabola needs")
    model = loess(x, y, span=span, degree=2)
    try:
        model.fit()
    except ValueError as error:
        message = error.args[0]
        raise ValueError(message.decode().rstrip(".") if isinstance(message, bytes) else message) from error
    fitted: NDArray[np.float64] = model.outputs.fitted_values
    return fitted


def _ranked(
    means: NDArray[np.float64], variances: NDArray[np.float64], norm_bg: NDArray[np.float64], n_top_genes: int
) -> HighlyVariable:
    # The same sort as in scanpy: it is not stable, and decides the order of genes of equal variance.
    rank_bg = np.argsort(np.argsort(-norm_bg, axis=1), axis=1)
    top_bg = rank_bg < n_top_genes
    batches_g = top_bg.sum(axis=0)
    rising_bg = np.sort(np.where(top_bg, rank_bg, np.nan), axis=0)  # NaN comes last
    middle_2g = np.stack([(batches_g - 1) // 2, batches_g // 2])
    rank_g = np.take_along_axis(rising_bg, middle_2g, axis=0).mean(axis=0)
    chosen_g = np.zeros(len(means), dtype=bool)
    chosen_g[np.lexsort((-batches_g, rank_g))[:n_top_genes]] = True
    return HighlyVariable(means, variances, norm_bg.mean(axis=0), rank_g, batches_g, chosen_g)


def _reads(store: CellStore, batch_key: str | None) -> Iterator[tuple[int, CsrRows, NDArray[np.int32]]]:
    """Read the store sequentially; yield the end of each read, its counts, and the batches of its cells."""
    column = store.categorical(batch_key) if batch_key else None
    step = cells_of_read(store.n_cells, store.n_entries)
    for start in range(0, store.n_cells, step):
        stop = min(start + step, store.n_cells)
        batch_n = column.required_codes(start, stop) if column else np.zeros(stop - start, dtype=np.int32)
        yield stop, store.read(start, stop), batch_n


@njit(nogil=True, cache=True)
def _add_moments(
    counts_e: NDArray[Any],
    genes_e: NDArray[Any],
    indptr: NDArray[np.int64],
    batch_n: NDArray[np.int32],
    sum_bg: NDArray[Any],
    square_bg: NDArray[np.float64],
) -> None:
    for row in range(len(batch_n)):
        batch = batch_n[row]
        for e in range(indptr[row], indptr[row + 1]):
            count, gene = sum_bg.dtype.type(counts_e[e]), genes_e[e]
            sum_bg[batch, gene] += count
            square_bg[batch, gene] += np.float64(count) ** 2


@njit(nogil=True, cache=True)
def _add_clipped(
    counts_e: NDArray[Any],
    genes_e: NDArray[Any],
    indptr: NDArray[np.int64],
    batch_n: NDArray[np.int32],
    limit_bg: NDArray[np.float64],
    sum_bg: NDArray[np.float64],
    square_bg: NDArray[np.float64],
) -> None:
    for row in range(len(batch_n)):
        batch = batch_n[row]
        for e in range(indptr[row], indptr[row + 1]):
            gene = genes_e[e]
            count = min(np.float64(counts_e[e]), limit_bg[batch, gene])
            sum_bg[batch, gene] += count
            square_bg[batch, gene] += count**2
