"""The prior of a latent library size: mean and variance of the log total count in each batch, in one pass.

Shape letters in this file
    b   batches
    n   cells of one read
    s   sums: cells, cells without counts, of the logs, of their squares
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.data import CellData
from dist_scvi.loaders.read_limits import READ_TIMEOUT_S, cells_of_read
from dist_scvi.loaders.stream import prefetch

Progress = Callable[[int, int], None]

_MIDDLE = 8.0
"""Subtracted from each log before summation; about the log of a typical total count."""


def library_prior(
    data: CellData, *, on_progress: Progress | None = None, timeout_s: float = READ_TIMEOUT_S
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and variance (over n) of the natural log of the total counts of each batch, two of shape (b,).

    scvi-tools 1.4.2, model/_utils.py: _init_library_size. The log of a cell without counts is taken as 0; a batch
    without cells has mean 0 and variance 1.

    Parameters
    ----------
    on_progress
        Called with (cells done, cells of the store) after every read.
    timeout_s
        Longest wait for a read.

    Warns
    -----
    UserWarning
        If there are cells without counts.

    Raises
    ------
    ValueError
        If a row is damaged or does not hold raw counts.
    TimeoutError
        If a read does not finish in time.
    """
    return prior_from(library_sums(data, on_progress=on_progress, timeout_s=timeout_s))


def library_sums(
    data: CellData,
    *,
    rank: int = 0,
    world_size: int = 1,
    on_progress: Progress | None = None,
    timeout_s: float = READ_TIMEOUT_S,
) -> NDArray[np.float64]:
    """Read this rank's share of the cells and return the sums that `prior_from` needs, shape (b, s).

    The caller adds the sums of all ranks. Logs of counts are small, and a typical one is subtracted before summation,
    so that rounding errors are negligible. See `library_prior`.
    """
    sums_bs = np.zeros((len(data.batch.vocabulary) if data.batch else 1, 4))
    for stop, library_n, batch_n in prefetch(_reads(data, rank, world_size), 1, timeout_s):
        log_n = np.log(np.where(library_n > 0, library_n, 1)) - _MIDDLE
        for column, value_n in enumerate((np.ones(len(log_n)), library_n == 0, log_n, log_n**2)):
            sums_bs[:, column] += np.bincount(batch_n, value_n, len(sums_bs))
        if on_progress is not None:
            on_progress(stop, data.n_cells)
    return sums_bs


def prior_from(sums_bs: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return means and variances from the sums of all ranks; see `library_prior`."""
    cells_b, empty_b, log_b, square_b = sums_bs.T
    if empty_b.any():
        warnings.warn(
            f"{int(empty_b.sum())} cells have no counts, and pull down the prior of the library size: filter them with "
            "scanpy.pp.filter_cells(adata, min_counts=1)",
            stacklevel=3,
        )
    n_b = np.maximum(cells_b, 1)
    mean_b = log_b / n_b
    var_b = np.maximum(square_b / n_b - mean_b**2, 0)
    return (
        np.where(cells_b > 0, mean_b + _MIDDLE, 0).astype(np.float32),
        np.where(cells_b > 0, var_b, 1).astype(np.float32),
    )


def _reads(data: CellData, rank: int, world_size: int) -> Iterator[tuple[int, NDArray[Any], NDArray[np.int32]]]:
    """Yield every `world_size`-th part of the store: its end, and the total counts and batches of its cells."""
    n_cells, chunk = data.n_cells, data.store.chunk_cells
    step = cells_of_read(n_cells, data.store.n_entries)
    step = max(1, step // chunk) * chunk
    for start in range(rank * step, n_cells, world_size * step):
        stop = min(start + step, n_cells)
        batch_n = data.batch.required_codes(start, stop) if data.batch else np.zeros(stop - start, np.int32)
        yield stop, data.store.read(start, stop).library_n(), batch_n
