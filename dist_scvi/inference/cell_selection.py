"""Some cells of a store, and results for them in the requested order, computed by one worker or shared by several.

Shape letters in this file
    n   cells
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.inference.encode_decode import Indices, rows_asked
from dist_scvi.loaders import CellData
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.read_limits import PAGE_ROWS, READ_TIMEOUT_S
from dist_scvi.loaders.stream import prefetch, rows_minibatch
from dist_scvi.world import World

Where = Mapping[str, str | Sequence[str]]
"""obs columns and the values that a cell may have in them, as in ``{"cell_type": ["B", "NK"]}``."""
Cells = Indices | Where
"""Cells by row, by a mask, or by their values in obs columns."""

_CHUNK_CELLS = 1024


@dataclass(frozen=True, slots=True)
class Selection:
    """Cells of a store, each once and sorted by row, and the order in which they were requested."""

    data: CellData
    row_n: NDArray[np.int64] | None
    """Sorted rows; None stands for all cells, so that a whole atlas needs no list of rows."""
    order: NDArray[np.int64] | slice
    """Position of each requested cell in the sorted rows."""

    @property
    def n_cells(self) -> int:
        """Number of cells to read."""
        return self.data.n_cells if self.row_n is None else len(self.row_n)

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the sorted rows at the positions ``[start, stop)``."""
        if self.row_n is None:
            return np.arange(start, min(stop, self.data.n_cells))
        return self.row_n[start:stop]

    def minibatches(self, world: World | None = None, *, chunk_cells: int = _CHUNK_CELLS) -> Iterator[MiniBatch]:
        """Read this worker's cells, every ``world.size``-th chunk; ``step`` is the position of a chunk's first cell."""
        world = world or World()
        starts = range(world.rank * chunk_cells, self.n_cells, world.size * chunk_cells)
        chunks = (rows_minibatch(self.data, self.rows(at, at + chunk_cells), step=at) for at in starts)
        yield from prefetch(chunks, 1, timeout_s=READ_TIMEOUT_S)

    def answer(
        self,
        compute: Callable[[MiniBatch], tuple[NDArray[Any], ...]],
        world: World | None = None,
        *,
        chunk_cells: int | None = None,
    ) -> list[NDArray[Any]]:
        """Compute some arrays with a row for each cell, in the requested order; every worker returns all rows."""
        world = world or World()
        minibatches = self.minibatches(world, chunk_cells=chunk_cells or _CHUNK_CELLS)
        mine = {minibatch.step: compute(minibatch) for minibatch in minibatches}
        parts = {at: arrays for share in world.from_all(mine) for at, arrays in share.items()}
        columns = zip(*(parts[at] for at in sorted(parts)), strict=True)
        return [np.concatenate(column)[self.order] for column in columns]

    def obs_names(self) -> NDArray[np.object_]:
        """Return the names of the cells in the requested order."""
        store = self.data.store
        if self.row_n is None:
            return store.obs_names(0, self.data.n_cells)
        # One read for each page: names are stored in long chunks, and reading every run of rows by itself would
        # decompress a chunk once per run.
        pages = np.split(self.row_n, np.flatnonzero(np.diff(self.row_n // PAGE_ROWS)) + 1)
        names = [store.obs_names(int(row_n[0]), int(row_n[-1]) + 1)[row_n - row_n[0]] for row_n in pages]
        joined: NDArray[np.object_] = np.concatenate(names)
        return joined[self.order]


def select(data: CellData, cells: Cells | None = None) -> Selection:
    """Choose cells.

    Parameters
    ----------
    cells
        Rows in the requested order, a mask over all cells, or values of obs columns; all cells by default.

    Raises
    ------
    ValueError
        If a row is out of range, a mask has another length, a column or value does not exist, or no cell is chosen.
    """
    if cells is None:
        return Selection(data, None, slice(None))
    if isinstance(cells, Mapping):
        row_n = rows_where(data, cells)
        return Selection(data, row_n, slice(None))
    row_n, order = rows_asked(cells, data.n_cells)
    if not len(row_n):
        raise ValueError("indices is empty: at least one cell is needed")
    return Selection(data, row_n, order)


def rows_where(data: CellData, where: Where) -> NDArray[np.int64]:
    """Return the rows whose obs columns have the given values.

    Raises
    ------
    ValueError
        If a column or a value does not exist, or no row has these values.
    """
    chosen_n = np.ones(data.n_cells, dtype=bool)
    for key, values in where.items():
        column = data.store.categorical(key)
        several = isinstance(values, Iterable) and not isinstance(values, str)
        wanted = [str(value) for value in (values if several else [values])]  # the vocabulary holds text
        unknown = [value for value in wanted if value not in column.vocabulary]
        if unknown:
            raise ValueError(
                f"obs column '{key}' has no value {unknown[0]!r}: it has {', '.join(column.vocabulary[:20])}"
            )
        codes = [column.vocabulary.index(value) for value in wanted]
        for start in range(0, data.n_cells, PAGE_ROWS):
            stop = min(start + PAGE_ROWS, data.n_cells)
            chosen_n[start:stop] &= np.isin(column.codes(start, stop), codes)
    if not chosen_n.any():
        raise ValueError(f"no cell has {dict(where)}: choose other values")
    return np.flatnonzero(chosen_n)
