"""Parts of the map: cells in a rectangle, a uniform sample of them, their density, and the cell nearest to a point.

Shape letters in this file
    n   cells
    c   neighbourhoods
    h   bins from low to high y
    w   bins from low to high x
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.cell_map.cell_map import STEPS, CellMap
from dist_scvi.atlas.queries.where import CellSet
from dist_scvi.atlas.store.atlas_store import AtlasStore
from dist_scvi.loaders.order.keyed_hash import hash_rows

_START_KEY = 108
MOST_BINS = 2048


@dataclass(frozen=True, slots=True)
class View:
    """A rectangle of the map in whole numbers of `CellMap.steps`; both ends belong to it."""

    x0: int = 0
    y0: int = 0
    x1: int = STEPS
    y1: int = STEPS

    def __post_init__(self) -> None:
        if not (0 <= self.x0 < self.x1 <= STEPS and 0 <= self.y0 < self.y1 <= STEPS):
            raise ValueError(
                f"view={self.x0},{self.y0},{self.x1},{self.y1}: x0,y0,x1,y1 from 0 to {STEPS} are needed, with x0 < x1 "
                "and y0 < y1"
            )

    def contains(self, steps_n2: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Mark the cells in the view."""
        x_n, y_n = steps_n2[:, 0], steps_n2[:, 1]
        return np.asarray((x_n >= self.x0) & (x_n <= self.x1) & (y_n >= self.y0) & (y_n <= self.y1))


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Cells to draw. Any prefix of them is a uniform sample of the cells in view, too."""

    row_n: NDArray[np.int64]
    n_in_view: int


def blocks_in_view(cell_map: CellMap, view: View) -> Iterator[slice]:
    """Yield ranges of rows that hold all cells of the view; blocks without any are skipped, neighbours are joined."""
    low_x, low_y, high_x, high_y = cell_map.block_bounds.T
    inside = (low_x <= view.x1) & (high_x >= view.x0) & (low_y <= view.y1) & (high_y >= view.y0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    size = cell_map.record.block_rows
    for first, last in edges.reshape(-1, 2).tolist():
        for start in range(first * size, last * size, 16 * size):
            yield slice(start, min(start + 16 * size, last * size, cell_map.n_cells))


def choose_points(atlas: AtlasStore, cell_map: CellMap, view: View, most: int, cells: CellSet | None = None) -> Points:
    """Return all cells in a view, or a uniform sample of about `most` of them, in an order that is random on the map.

    Of each neighbourhood the first cells are taken, which are a uniform sample of it: neighbourhoods contribute in
    proportion to their size, which makes the sample more even than one drawn without them.
    """
    if cells is None and view == View():
        n_in_view, rows = atlas.n_cells, None if atlas.n_cells > most else np.arange(atlas.n_cells)
    else:
        n_in_view, rows = _rows_in_view(cell_map, view, most, cells)
    if rows is None:
        rows = _first_rows(atlas, most / n_in_view)
        rows = rows[view.contains(cell_map.steps(rows))]
        rows = rows if cells is None else rows[_mask_of_rows(atlas, cells, rows)]
    return Points(rows[np.argsort(_sample_keys(atlas, rows), kind="stable")], n_in_view)


def density(cell_map: CellMap, view: View, width: int, height: int, cells: CellSet | None = None) -> NDArray[np.uint32]:
    """Count the cells of a view in bins, shape (h, w).

    Raises
    ------
    ValueError
        If there are no bins or too many.
    """
    if not (1 <= width <= MOST_BINS and 1 <= height <= MOST_BINS):
        raise ValueError(f"width={width}, height={height}: from 1 to {MOST_BINS} bins each way are needed")
    counts = np.zeros(width * height, dtype=np.int64)
    for rows in blocks_in_view(cell_map, view):
        steps_n2 = cell_map.steps(rows)
        inside_n = view.contains(steps_n2) if cells is None else view.contains(steps_n2) & cells.mask(rows)
        counts += np.bincount(bins_of(steps_n2[inside_n], view, width, height), minlength=len(counts))
    return counts.astype(np.uint32).reshape(height, width)


def bins_of(steps_n2: NDArray[np.uint16], view: View, width: int, height: int) -> NDArray[np.int64]:
    """Return the bin of each cell in a view, row by row from low y, shape (n,)."""
    x_n = (steps_n2[:, 0].astype(np.int64) - view.x0) * width // (view.x1 - view.x0 + 1)
    y_n = (steps_n2[:, 1].astype(np.int64) - view.y0) * height // (view.y1 - view.y0 + 1)
    return y_n * width + x_n


def nearest_cell(cell_map: CellMap, x: float, y: float, radius: float, cells: CellSet | None = None) -> int | None:
    """Return the row of the cell nearest to a point in whole numbers of the map, None if none is within `radius`."""
    low = [int(np.clip(at - radius, 0, STEPS - 1)) for at in (x, y)]
    high = [int(np.clip(at + radius, start + 1, STEPS)) for at, start in zip((x, y), low, strict=True)]
    best, found = radius**2, None
    for rows in blocks_in_view(cell_map, View(low[0], low[1], high[0], high[1])):
        apart_n = ((cell_map.steps(rows) - np.array([x, y])) ** 2).sum(axis=1)
        if cells is not None:
            apart_n[~cells.mask(rows)] = np.inf
        at = int(apart_n.argmin())
        if apart_n[at] <= best:
            best, found = float(apart_n[at]), rows.start + at
    return found


def _rows_in_view(
    cell_map: CellMap, view: View, most: int, cells: CellSet | None
) -> tuple[int, NDArray[np.int64] | None]:
    """Count the cells in a view, and return their rows if there are at most `most`."""
    n_in_view, parts = 0, [np.zeros(0, np.int64)]
    for rows in blocks_in_view(cell_map, view):
        inside_n = view.contains(cell_map.steps(rows))
        if cells is not None and inside_n.any():
            inside_n &= cells.mask(rows)
        n_in_view += int(np.count_nonzero(inside_n))
        if n_in_view <= most:
            parts.append(rows.start + np.flatnonzero(inside_n))
    return n_in_view, np.concatenate(parts) if n_in_view <= most else None


def _offsets_and_starts(atlas: AtlasStore) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the offsets of the neighbourhoods, and for each a number from 0 to 1 by which its sample is rounded."""
    assert atlas.neighbourhoods is not None
    offsets = atlas.neighbourhoods.offsets
    hash_c = hash_rows(np.arange(len(offsets) - 1), _START_KEY)
    return offsets, (hash_c >> np.uint64(11)).astype(np.float64) / (1 << 53)


def _first_rows(atlas: AtlasStore, share: float) -> NDArray[np.int64]:
    """Return the rows whose `_sample_keys` are below `share`: the first of each neighbourhood, ascending."""
    offsets, start_c = _offsets_and_starts(atlas)
    size_c = np.diff(offsets)
    taken_c = np.minimum(np.floor(share * size_c + start_c).astype(np.int64), size_c)
    ends_c = np.cumsum(taken_c)
    return np.asarray(np.arange(ends_c[-1]) + np.repeat(offsets[:-1] - (ends_c - taken_c), taken_c))


def _sample_keys(atlas: AtlasStore, row_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of the cells from which on a row is in the sample."""
    offsets, start_c = _offsets_and_starts(atlas)
    neighbourhood_n = np.searchsorted(offsets, row_n, side="right") - 1
    rank_n = row_n - offsets[neighbourhood_n]
    return np.asarray((rank_n + 1 - start_c[neighbourhood_n]) / np.diff(offsets)[neighbourhood_n])


def _mask_of_rows(atlas: AtlasStore, cells: CellSet, row_n: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark those of some ascending rows that are in a set of cells."""
    parts = [np.zeros(0, dtype=bool)]
    for rows in atlas.chunks():
        first, last = np.searchsorted(row_n, (rows.start, rows.stop))
        if first < last:
            parts.append(cells.mask(rows)[row_n[first:last] - rows.start])
    return np.concatenate(parts)
