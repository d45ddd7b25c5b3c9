"""Cells inside a polygon on the map, such as that of a lasso.

Shape letters in this file
    n   cells
    p   corners of the polygon
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from dist_scvi.atlas.cell_map.cell_map import STEPS, CellMap
from dist_scvi.atlas.cell_map.view import View, blocks_in_view
from dist_scvi.atlas.queries.where import CellSet
from dist_scvi.inference.output_identity import digest

MOST_COORDINATE = 1e9
"""Far outside of any map; products of larger numbers overflow."""
MOST_CORNERS = 10_000


def cells_in_polygon(cell_map: CellMap, polygon: Sequence[Sequence[float]], within: CellSet | None = None) -> CellSet:
    """Choose the cells whose UMAP coordinates lie inside a polygon, by the even-odd rule.

    One bit for each cell of the atlas stays in memory.

    Parameters
    ----------
    polygon
        Corners, in UMAP coordinates; the last is connected to the first.
    within
        Only cells of this set.

    Raises
    ------
    ValueError
        If it has fewer than three corners or too many, a coordinate is not finite, or no cell is inside.
    """
    corner_p2 = np.asarray(polygon, dtype=np.float64)
    if corner_p2.ndim != 2 or corner_p2.shape[1] != 2 or not 3 <= len(corner_p2) <= MOST_CORNERS:
        raise ValueError(f"polygon has shape {corner_p2.shape}: from 3 to {MOST_CORNERS} corners (x, y) are needed")
    if not (np.abs(corner_p2) <= MOST_COORDINATE).all():  # also False for NaN
        raise ValueError(f"polygon has a corner beyond {MOST_COORDINATE:g} or that is not a finite number")
    step_p2 = cell_map.to_steps(corner_p2)
    low, high = np.floor(step_p2.min(axis=0)), np.ceil(step_p2.max(axis=0))
    inside = np.zeros(cell_map.n_cells, dtype=bool)
    if (high > 0).all() and (low < STEPS).all():
        x0, y0 = np.clip(low, 0, STEPS - 1).astype(int).tolist()
        x1, y1 = np.clip(high, 1, STEPS).astype(int).tolist()
        for rows in blocks_in_view(cell_map, View(x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))):
            _mark_inside(cell_map.steps(rows), step_p2, inside[rows])
            if within is not None:
                inside[rows] &= within.mask(rows)
    text = f"polygon of {len(corner_p2)} corners on the map (SHA-256 {digest(corner_p2)[:12]})"
    text = text if within is None else f"({within.text}) and {text}"
    n_cells = int(np.count_nonzero(inside))
    if not n_cells:
        raise ValueError(f"no cell is inside the {text}: draw a larger one")
    packed = np.packbits(inside)

    def mask(rows: slice) -> NDArray[np.bool_]:
        first = rows.start // 8
        bits = np.unpackbits(packed[first : rows.stop // 8 + 1])
        return np.asarray(bits[rows.start - 8 * first : rows.stop - 8 * first].view(bool))

    clauses = pd.DataFrame([(text, n_cells, n_cells)], columns=["clause", "cells", "kept"])
    return CellSet(text, n_cells, None, clauses, mask)


@njit(nogil=True, cache=True)
def _mark_inside(steps_n2: NDArray[np.uint16], corner_p2: NDArray[np.float64], out_n: NDArray[np.bool_]) -> None:
    """Count for each cell the edges that a ray to the right of it crosses."""
    n_corners = len(corner_p2)
    low_x, high_x = corner_p2[:, 0].min(), corner_p2[:, 0].max()
    low_y, high_y = corner_p2[:, 1].min(), corner_p2[:, 1].max()
    for n in range(len(steps_n2)):
        x, y = np.float64(steps_n2[n, 0]), np.float64(steps_n2[n, 1])
        if x < low_x or x > high_x or y < low_y or y > high_y:
            continue
        inside, last = False, n_corners - 1
        for at in range(n_corners):
            y_at, y_last = corner_p2[at, 1], corner_p2[last, 1]
            if (y_at > y) != (y_last > y):
                x_at, x_last = corner_p2[at, 0], corner_p2[last, 0]
                inside ^= x < x_at + (x_last - x_at) * (y - y_at) / (y_last - y_at)
            last = at
        out_n[n] = inside
