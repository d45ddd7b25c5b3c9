"""The map of an atlas of a service: made in the background if there is none, then shared by all requests."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.cell_map.cell_map import CellMap, open_map
from dist_scvi.atlas.cell_map.color_values import (
    ColorValues,
    column_values,
    gene_uncertainty,
    gene_values,
)
from dist_scvi.atlas.cell_map.landmarks import MapOptions
from dist_scvi.atlas.cell_map.palettes import CATEGORY_HEX, MISSING_HEX, SEQUENTIAL_HEX, UNCERTAINTY_HEX
from dist_scvi.atlas.cell_map.picture import color_bins, draw_bins
from dist_scvi.atlas.cell_map.polygon import cells_in_polygon
from dist_scvi.atlas.cell_map.view import Points, View, choose_points, density, nearest_cell
from dist_scvi.atlas.cell_map.write_map import open_or_write_map
from dist_scvi.atlas.queries.groups import group_cells
from dist_scvi.atlas.queries.where import CellSet, choose_cells
from dist_scvi.launch.serve.watch import WatchedAtlas

__all__ = ["Color", "ServedMap", "View"]

DRAWN_CELLS = 2048
"""Cells whose uncertainty is computed: each is decoded many times with all genes."""
_DOMAIN_CELLS = 50_000
_TILE_CELLS = 200_000
"""Cells that give the colours of tiles; the counts are of all cells."""
_DOMAIN_LEVELS = (0.005, 0.995)


@dataclass(frozen=True, slots=True)
class Color:
    """By what cells are coloured."""

    kind: Literal["column", "gene", "uncertainty"]
    name: str


class ServedMap:
    """The map, and what was lately read of it; all methods may be called from many threads."""

    def __init__(self, atlas: WatchedAtlas, hide_place: Callable[[str], str]) -> None:
        self._atlas, self._hide_place = atlas, hide_place
        self._map: CellMap | None = None
        self._lock, self._started, self._done, self._problem = threading.Lock(), False, 0, ""
        self.points = lru_cache(8)(self._points)
        self.values = lru_cache(16)(self._values)
        self._domain = lru_cache(256)(self._read_domain)
        self._chosen = lru_cache(16)(self._choose)

    @property
    def is_ready(self) -> bool:
        """Whether the map is there."""
        return self._map is not None

    @property
    def map(self) -> CellMap:
        """The map.

        Raises
        ------
        ValueError
            If it is not there yet.
        """
        if self._map is None:
            raise ValueError("the map of this atlas is not made yet: GET /v1/{atlas}/map starts it")
        return self._map

    @property
    def digest(self) -> str:
        """Identity of the map and of its atlas."""
        return self.map.record.digest

    def start(self) -> None:
        """Open the map, or make it in another thread; later calls do nothing."""
        with self._lock:
            if self._started:
                return
            self._started = True
        try:
            self._use(open_map(self._atlas))
        except (FileNotFoundError, ValueError):
            threading.Thread(target=self._make, name="map", daemon=True).start()

    def _make(self) -> None:
        def report(done: int, _total: int) -> None:
            self._done = done

        try:
            self._use(open_or_write_map(self._atlas, on_progress=report))
        except (ValueError, OSError, ImportError) as error:
            self._problem = self._hide_place(str(error))

    def _use(self, found: CellMap) -> None:
        self._map = self._atlas.cell_map = found  # the polygons of questions are of this map, wherever it lies

    def description(self) -> dict[str, Any]:
        """Return what a client needs to draw the map; until it is there, its state."""
        if self._map is None:
            state = "failed" if self._problem else "running"
            made = {"placed": self._done, "n_cells": self._atlas.n_cells, "n_landmarks": MapOptions().n_landmarks}
            return {"state": state, "problem": self._problem, **made}
        record = self._map.record
        return {
            "state": "ready",
            "n_cells": record.n_cells,
            "method": record.method,
            "options": record.options,
            "low": record.low,
            "size": record.size,
            "digest": record.digest,
            "palettes": {
                "categories": CATEGORY_HEX,
                "numbers": SEQUENTIAL_HEX,
                "uncertainty": UNCERTAINTY_HEX,
                "missing": MISSING_HEX,
            },
        }

    def describe_values(self, values: ColorValues, color: Color) -> dict[str, Any]:
        """Return what a legend shows."""
        described: dict[str, Any] = {"kind": values.kind, "label": values.label}
        if values.kind == "categorical":
            return described | {"categories": values.categories}
        return described | {"low": values.low, "high": values.high, "domain": self._domain(color)}

    def tiles(
        self, view: View, width: int, height: int, where: str | None, color: Color | None
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32], dict[str, Any]]:
        """Return counts and colours of bins, and their description."""
        counts = density(self.map, view, width, height, self._chosen(where))
        described: dict[str, Any] = {"width": width, "height": height, "n_in_view": int(counts.sum())}
        if color is None:
            return counts, np.zeros((height, width), np.float32), described
        most = DRAWN_CELLS if color.kind == "uncertainty" else _TILE_CELLS
        values = self.values(view, most, where, color)
        _, steps = self.points(view, most, where)
        described |= self.describe_values(values, color)
        return counts, color_bins(steps[: len(values.value_n)], values, view, width, height), described

    def picture(
        self, view: View, width: int, height: int, where: str | None, color: Color | None
    ) -> tuple[bytes, dict[str, Any]]:
        """Return a PNG of bins, and the description of its colours."""
        counts, colors, described = self.tiles(view, width, height, where, color)
        if described.get("kind") == "numeric":
            low, high = described["domain"]
            share = (described["low"] + colors * (described["high"] - described["low"]) - low) / (high - low)
            colors = share.clip(0, 1).astype(np.float32)
        if color is None or color.kind == "uncertainty":
            return draw_bins(counts, colors, "plain" if color is None else "uncertainty"), described
        return draw_bins(counts, colors, described["kind"]), described

    def cell(self, x: float, y: float, radius: float, row: int | None, where: str | None) -> dict[str, Any] | None:
        """Return the cell nearest to a point, or a given one; None if none is near.

        Raises
        ------
        ValueError
            If there is no such row.
        """
        if row is None:
            row = nearest_cell(self.map, x, y, radius, self._chosen(where))
        if row is None:
            return None
        if row >= self._atlas.n_cells:
            raise ValueError(f"row={row}: the atlas has {self._atlas.n_cells:,} cells")
        row_n = np.array([row])
        steps = self.map.steps(row_n)[0].tolist()
        obs = self._atlas.obs.to_pandas(rows=row_n)
        found = {str(key): _plain(obs[key].iloc[0]) for key in obs.columns}
        return {"row": row, "name": str(obs.index[0]), "x": steps[0], "y": steps[1], "obs": found}

    def locate(self, rows: list[int]) -> NDArray[np.uint16]:
        """Return the coordinates of rows.

        Raises
        ------
        ValueError
            If one does not exist.
        """
        row_n = np.array(rows, dtype=np.int64)
        if len(row_n) and (row_n.min() < 0 or row_n.max() >= self._atlas.n_cells):
            raise ValueError(f"rows go up to {row_n.max()}: the atlas has {self._atlas.n_cells:,} cells")
        return self.map.steps(row_n)

    def count(
        self, polygon: list[tuple[float, float]] | None, where: str | None, within: str | None, by: str | None
    ) -> dict[str, Any]:
        """Count the cells of a selection; with `by` also by category of an obs column, beside all `within` of each.

        Raises
        ------
        ValueError
            If there is no cell, or the selection is not valid.
        """
        all_cells = choose_cells(self._atlas, within)
        cells = choose_cells(self._atlas, where, within=all_cells)
        if polygon is not None:
            cells = cells_in_polygon(self.map, polygon, cells if where or within else None)
        counted: dict[str, Any] = {"n_cells": cells.n_cells, "text": cells.text}
        if by is None:
            return counted
        groups = group_cells(self._atlas, [by], all_cells)
        n_q = np.zeros(len(groups.names) + 1, dtype=np.int64)
        for rows in self._atlas.chunks():
            mask_n = cells.mask(rows)
            if mask_n.any():
                n_q += np.bincount(groups.codes(rows)[mask_n] + 1, minlength=len(n_q))
        rows_by = zip(groups.names, n_q[1:].tolist(), groups.n_cells.tolist(), strict=True)
        return counted | {"by": [{"name": name, "n": n, "total": total} for name, n, total in rows_by]}

    def _choose(self, where: str | None) -> CellSet | None:
        return choose_cells(self._atlas, where) if where else None

    def _points(self, view: View, most: int, where: str | None) -> tuple[Points, NDArray[np.uint16]]:
        points = choose_points(self._atlas, self.map, view, most, self._chosen(where))
        return points, self.map.steps(points.row_n)

    def _values(self, view: View, most: int, where: str | None, color: Color) -> ColorValues:
        points, _ = self.points(view, most, where)
        return self._read_values(color, points.row_n)

    def _read_values(self, color: Color, row_n: NDArray[np.int64]) -> ColorValues:
        if color.kind == "column":
            return column_values(self._atlas, color.name, row_n)
        if color.kind == "gene":
            return gene_values(self._atlas, color.name, row_n)
        return gene_uncertainty(self._atlas, color.name, row_n[:DRAWN_CELLS])

    def _read_domain(self, color: Color) -> tuple[float, float]:
        """Return the numbers at the ends of the colours, the same in all views: some outliers are beyond them."""
        points, _ = self.points(View(), _DOMAIN_CELLS, None)
        numbers = self._read_values(color, points.row_n).numbers()
        known = numbers[np.isfinite(numbers)]
        if not len(known):
            return 0.0, 1.0
        low, high = (
            np.quantile(known, _DOMAIN_LEVELS).tolist() if color.kind == "column" else (0.0, np.quantile(known, 0.995))
        )
        return float(low), float(high if high > low else low + 1.0)


def _plain(value: Any) -> Any:
    found = value.item() if hasattr(value, "item") else value
    return found if isinstance(found, str | int | bool) else None if found is None or found != found else float(found)  # noqa: PLR0124
