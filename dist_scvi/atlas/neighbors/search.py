"""Exact search for the nearest cells of points, which reads only the neighbourhoods that may have any.

The first pass compares each point with the neighbourhoods nearest to it. The second reads those of the others whose
cells are not bounded beyond the last neighbour found; see `kernels`. Both go through the rows of the atlas in order,
for all points at once, so that a batch reads each range at most twice and memory does not grow with the atlas.

Shape letters in this file
    q   points whose neighbours are searched
    d   latent dimensions
    c   neighbourhoods
    n   cells of a part of the atlas
    k   neighbours of a point
    f   first neighbourhoods of a point
    p   pairs of a point and a neighbourhood
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.neighbors import kernels
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import CellSet
from dist_scvi.network.kernels.thread_parts import own_threads, run_parts

PART_ROWS = 1 << 18
"""Rows of the atlas that are read at a time: 10 MiB of means at 10 dimensions."""
_PAIRS = 1 << 22
"""Most pairs of a point and a neighbourhood that are listed at a time."""
_POINTS_EACH = 64
_FEWEST_LISTS = 4
_CENTROID_SLACK = 1e-5

F4 = NDArray[np.float32]
I8 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Points whose neighbours are searched."""

    value_qd: F4
    excluded_q: I8
    """Cells whose code is this one are not neighbours of the point; -1 excludes none."""

    def __len__(self) -> int:
        return len(self.value_qd)

    def take(self, part: slice | I8) -> "Points":
        """Return some points."""
        return Points(self.value_qd[part], self.excluded_q[part])


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The nearest cells of each point."""

    row_qk: I8
    """Rows of the atlas, by ascending distance; -1 where there are fewer cells."""
    square_qk: F4
    """Squared distances."""

    def take(self, part: slice) -> "Found":
        """Return views of some points."""
        return Found(self.row_qk[part], self.square_qk[part])


class NeighborSearch:
    """The cells among which neighbours are searched, and the bounds of their neighbourhoods.

    Parameters
    ----------
    cells
        Cells that may be neighbours.
    with_variance
        Add the variance of each cell, summed over dimensions, to its squared distance.
    codes
        Code of each of a range of cells, which `Points.excluded_q` refers to; the row by default.
    """

    def __init__(
        self,
        atlas: AtlasReader,
        cells: CellSet,
        *,
        with_variance: bool = False,
        codes: Callable[[slice], I8] | None = None,
    ) -> None:
        self._atlas, self._cells, self._with_variance, self._codes = atlas, cells, with_variance, codes
        centroid_cd, self._offset_c, self._radius_c = _lists(atlas)
        self._kept_c = self._count()
        self._centroid_dc = np.ascontiguousarray(centroid_cd.T)
        self._slack = _CENTROID_SLACK * float(np.square(centroid_cd).sum(axis=1).max(initial=0))
        self.compared = 0
        """Pairs of a point and a cell compared so far."""

    @property
    def n_lists(self) -> int:
        """Number of neighbourhoods with cells."""
        return int(np.count_nonzero(self._kept_c))

    def find(self, points: Points, k: int, *, n_lists: int | None = None) -> Found:
        """Find the `k` nearest cells of each point, exactly, or those in its `n_lists` nearest neighbourhoods.

        Where these have fewer than `k` cells the others are searched as well.
        """
        found = Found(np.full((len(points), k), -1, np.int64), np.full((len(points), k), np.inf, np.float32))
        kept_c = self._kept_c[self._kept_c > 0]
        n_first = min(max(n_lists or _FEWEST_LISTS, int(np.ceil(2 * k / kept_c.mean()))), len(kept_c))
        with own_threads():
            for low in range(0, len(points), step := max(1, _PAIRS // n_first)):
                part = slice(low, low + step)
                some, its = points.take(part), found.take(part)
                first_qf = np.empty((len(some), n_first), np.int32)
                _by_parts(len(some), partial(self._first, some, first_qf))
                starts = np.arange(0, first_qf.size + 1, n_first)
                self._compare(some, its, _Pairs(starts, first_qf.ravel(), np.zeros(first_qf.size, np.float32)))
                for at, pairs in self._others(some, its, first_qf, exact=n_lists is None):
                    self._compare(some.take(at), its.take(at), pairs)
        return found

    def _count(self) -> I8:
        """Count the cells of each neighbourhood that may be neighbours."""
        if self._cells.n_cells == self._atlas.n_cells:
            return np.diff(self._offset_c)
        kept_c = np.zeros(len(self._offset_c) - 1, dtype=np.int64)
        for rows in self._atlas.chunks(PART_ROWS):
            row_n = rows.start + np.flatnonzero(self._cells.mask(rows))
            kept_c += np.diff(np.searchsorted(row_n, self._offset_c))
        return kept_c

    def _first(self, points: Points, first_qf: NDArray[np.int32], part: slice) -> None:
        kernels.first_lists(points.value_qd[part], self._centroid_dc, self._kept_c, first_qf[part])

    def _others(
        self, points: Points, found: Found, first_qf: NDArray[np.int32], *, exact: bool
    ) -> Iterator[tuple[slice, "_Pairs"]]:
        """List the other neighbourhoods that may have neighbours, for runs of points with not too many of them."""
        number_q, none = np.zeros(len(points), np.int64), np.zeros(0, np.int32)
        limit_q = found.square_qk[:, -1].copy()
        if not exact:  # a limit of 0 excludes all; an infinite one means that a point lacks neighbours
            limit_q[np.isfinite(limit_q)] = 0
            if not limit_q.any():
                return

        def write(start_q: I8, list_p: NDArray[np.int32], lower_p: F4, first: int, part: slice) -> None:
            at = slice(first + part.start, first + part.stop)
            number_q[at] = kernels.other_lists(
                points.value_qd[at],
                self._centroid_dc,
                self._radius_c,
                self._kept_c,
                self._slack,
                first_qf[at],
                limit_q[at],
                start_q[part],
                list_p,
                lower_p,
            )

        _by_parts(len(points), partial(write, number_q, none, none.astype(np.float32), 0))
        end_q, low = np.cumsum(number_q), 0
        while low < len(points):
            before = int(end_q[low] - number_q[low])
            high = max(low + 1, int(np.searchsorted(end_q, before + _PAIRS, side="right")))
            start_q = np.concatenate([[0], end_q[low:high] - before])
            list_p, lower_p = np.empty(start_q[-1], np.int32), np.empty(start_q[-1], np.float32)
            if len(list_p):
                _by_parts(high - low, partial(write, start_q, list_p, lower_p, low))
                yield slice(low, high), _Pairs(start_q, list_p, lower_p)
            low = high

    def _compare(self, points: Points, found: Found, pairs: "_Pairs") -> None:
        """Compare points with the cells of the neighbourhoods paired with them, part by part of the atlas."""
        wanted_c = np.zeros(len(self._kept_c), dtype=bool)
        wanted_c[pairs.list_p] = True
        self.compared += int(self._kept_c[pairs.list_p].sum())
        next_q, stop_q = pairs.start_q[:-1].copy(), pairs.start_q[1:]
        # In a list that is emptied: a thread that was not needed holds on to `scan` until it wakes.
        read: list[_Cells] = []

        def scan(part: slice) -> None:
            cells = read[0]
            kernels.scan(
                points.value_qd[part],
                points.excluded_q[part],
                (next_q[part], stop_q[part]),
                pairs.list_p,
                pairs.lower_p,
                cells.lists,
                (cells.start_c, cells.end_c),
                cells.value_dn,
                cells.added_n,
                cells.row_n,
                cells.code_n,
                found.square_qk[part],
                found.row_qk[part],
            )

        for rows in self._atlas.chunks(PART_ROWS):
            read[:] = self._read(rows, wanted_c)
            if read:
                _by_parts(len(points), scan)

    def _read(self, rows: slice, wanted_c: NDArray[np.bool_]) -> "list[_Cells]":
        """Read the cells of the wanted neighbourhoods in a range of rows, if there are any."""
        first, last = np.searchsorted(self._offset_c, [rows.start, rows.stop], side="left")
        first -= self._offset_c[min(first, len(wanted_c))] > rows.start  # that which began in the range before
        border_c = self._offset_c[first : last + 1].clip(rows.start, rows.stop) - rows.start
        mask_n = np.repeat(wanted_c[first:last], np.diff(border_c))
        if not mask_n.any():
            return []
        if self._cells.n_cells < self._atlas.n_cells:
            mask_n &= self._cells.mask(rows)
        place_n = np.flatnonzero(mask_n)
        whole = len(place_n) == len(mask_n)
        row_n = rows.start + place_n
        mean_nd, added_n = self._values(rows if whole else row_n)
        code_n = row_n if self._codes is None else self._codes(rows)[place_n]
        edge_c = np.searchsorted(place_n, border_c)
        ended = last - 1 if self._offset_c[last] > rows.stop else last
        value_dn = np.ascontiguousarray(mean_nd.T)
        return [_Cells((first, last, ended), edge_c[:-1], edge_c[1:], value_dn, added_n, row_n, code_n)]

    def _values(self, rows: slice | I8) -> tuple[F4, F4]:
        if not self._with_variance:
            mean_nd = self._atlas.read_mean(rows)
            return mean_nd, np.zeros(len(mean_nd), np.float32)
        mean_nd, variance_nd = self._atlas.read_latent(rows)
        return mean_nd, variance_nd.sum(axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Points and the neighbourhoods to compare them with: point by point, ascending within it."""

    start_q: I8
    """Where the pairs of each point begin; one more than points."""
    list_p: NDArray[np.int32]
    lower_p: F4
    """Lower bounds of the squared distances."""


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """The cells of some neighbourhoods in a range of rows."""

    lists: tuple[int, int, int]
    """First neighbourhood, last + 1, and last + 1 of those that do not continue in the next range."""
    start_c: I8
    end_c: I8
    value_dn: F4
    added_n: F4
    row_n: I8
    code_n: I8


def _lists(atlas: AtlasReader) -> tuple[F4, I8, F4]:
    """Return centroids, offsets and radii; an atlas without neighbourhoods has ranges of rows without bounds."""
    found = atlas.neighbourhoods
    if found is not None:
        return found.centroids, found.offsets, found.radius
    offset_c = np.append(np.arange(0, atlas.n_cells, kernels.BLOCK), atlas.n_cells)
    empty_cd = np.zeros((len(offset_c) - 1, atlas.spec.model.n_latent), np.float32)
    return empty_cd, offset_c, np.full(len(empty_cd), np.inf, np.float32)


def _by_parts(n: int, work: Callable[[slice], None]) -> None:
    """Call `work` for ranges of points, on several threads."""
    run_parts(lambda part: work(slice(part * _POINTS_EACH, min((part + 1) * _POINTS_EACH, n))), -(-n // _POINTS_EACH))
