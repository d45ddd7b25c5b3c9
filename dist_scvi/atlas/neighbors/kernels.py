"""Compiled loops of the search for neighbours: bounds of neighbourhoods, and the scan of their cells.

A neighbourhood is the cells that are nearer to its centroid than to any other. A point whose nearest centroid is a has
two bounds for its distance to any cell of the neighbourhood c: the distance to the centroid less the radius, and the
distance to the plane halfway between a and c (Elkan 2003, ICML). A neighbourhood that is bounded above the distance of
the last neighbour found so far is not read, and the result is exact.

Distances are added up by dimension for many cells at a time, which is fast without a change of the order of additions:
the bits of a distance do not depend on the other cells.

Shape letters in this file
    q   points whose neighbours are searched
    d   latent dimensions
    c   neighbourhoods
    n   cells of a part of the atlas
    k   neighbours of a point
    f   first neighbourhoods of a point
    p   pairs of a point and a neighbourhood, point by point
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

BLOCK = 512
_MARGIN = np.float32(1e-5)
"""Relative rounding error of a bound."""

F4 = NDArray[np.float32]
I8 = NDArray[np.int64]


@njit(nogil=True, cache=True)
def _distances(point_d: F4, centroid_dc: F4, square_c: F4) -> None:
    """Write the squared distances to all centroids."""
    square_c[:] = 0
    for axis in range(len(point_d)):
        value, row_c = point_d[axis], centroid_dc[axis]
        for place in range(len(square_c)):
            difference = row_c[place] - value
            square_c[place] += difference * difference


@njit(nogil=True, cache=True)
def _bound(square: float, own: float, radius: float, slack: float, nearest: int, place: int, centroid_dc: F4) -> float:
    """Return a lower bound of the squared distance to the cells of a neighbourhood.

    From the squared distances to its centroid and to the nearest one.
    """
    bound = np.sqrt(square) * (1 - _MARGIN) - radius * (1 + _MARGIN)
    between = 0.0
    for axis in range(centroid_dc.shape[0]):
        difference = centroid_dc[axis, place] - centroid_dc[axis, nearest]
        between += difference * difference
    if between > 0:
        ahead = square - own - 4 * _MARGIN * (square + own) - slack
        bound = max(bound, ahead / (2 * np.sqrt(between)))
    bound = max(bound, 0.0)
    return float(bound * bound * (1 - 4 * _MARGIN))


@njit(nogil=True, cache=True)
def first_lists(point_qd: F4, centroid_dc: F4, kept_c: I8, first_qf: NDArray[np.int32]) -> None:
    """Write the neighbourhoods with cells whose centroids are nearest to each point, by ascending number."""
    n_first = first_qf.shape[1]
    square_c, best_f = np.empty(centroid_dc.shape[1], np.float32), np.empty(n_first, np.float32)
    for point in range(len(point_qd)):
        _distances(point_qd[point], centroid_dc, square_c)
        best_f[:], first_f = np.inf, first_qf[point]
        for place in range(len(square_c)):
            square = square_c[place]
            if square >= best_f[-1] or kept_c[place] == 0:
                continue
            at = n_first - 1
            while at > 0 and best_f[at - 1] > square:
                best_f[at], first_f[at] = best_f[at - 1], first_f[at - 1]
                at -= 1
            best_f[at], first_f[at] = square, place
        first_f.sort()


@njit(nogil=True, cache=True)
def other_lists(
    point_qd: F4,
    centroid_dc: F4,
    radius_c: F4,
    kept_c: I8,
    slack: float,
    first_qf: NDArray[np.int32],
    limit_q: F4,
    start_q: I8,
    list_p: NDArray[np.int32],
    lower_p: F4,
) -> I8:
    """Find the neighbourhoods, other than the first, that may have cells within a squared distance `limit_q`.

    They are written from `start_q` on, if `list_p` is not empty. Return their number for each point. `slack` is by how
    much a cell may be nearer, in squared distance, to another centroid than its own.
    """
    n_lists = centroid_dc.shape[1]
    square_c, taken_c = np.empty(n_lists, np.float32), np.zeros(n_lists, np.bool_)
    number_q = np.zeros(len(point_qd), np.int64)
    for point in range(len(point_qd)):
        _distances(point_qd[point], centroid_dc, square_c)
        nearest, limit, number = int(np.argmin(square_c)), limit_q[point], 0
        own, reach = square_c[nearest], np.sqrt(limit_q[point])
        for place in first_qf[point]:
            taken_c[place] = True
        for place in range(n_lists):
            # The same as the first bound, without a root for each of thousands of neighbourhoods.
            widest = reach + radius_c[place] * (1 + _MARGIN)
            if square_c[place] * (1 - 2 * _MARGIN) >= widest * widest or kept_c[place] == 0 or taken_c[place]:
                continue
            lower = _bound(square_c[place], own, radius_c[place], slack, nearest, place, centroid_dc)
            if lower < limit:
                if len(list_p):
                    list_p[start_q[point] + number] = place
                    lower_p[start_q[point] + number] = lower
                number += 1
        for place in first_qf[point]:
            taken_c[place] = False
        number_q[point] = number
    return number_q


@njit(nogil=True, cache=True)
def scan(
    point_qd: F4,
    excluded_q: I8,
    at_p: tuple[I8, I8],
    list_p: NDArray[np.int32],
    lower_p: F4,
    lists: tuple[int, int, int],
    piece_c: tuple[I8, I8],
    value_dn: F4,
    added_n: F4,
    row_n: I8,
    code_n: I8,
    square_qk: F4,
    row_qk: I8,
) -> None:
    """Compare points with the cells of a part of the atlas, and keep the nearest.

    Parameters
    ----------
    excluded_q
        Cells with this code are not neighbours of the point.
    at_p
        Next pair of each point, which is moved on, and its last + 1.
    lists
        First neighbourhood of the part, last + 1, and the last + 1 of those that end in it.
    piece_c
        Where the cells of each neighbourhood of the part begin and end in it.
    added_n
        Added to the squared distance of each cell.
    square_qk, row_qk
        The nearest so far, by squared distance and then row.
    """
    first, last, ended = lists
    next_q, stop_q = at_p
    start_c, end_c = piece_c
    square_n = np.empty(BLOCK, np.float32)
    for point in range(len(point_qd)):
        point_d, square_k, row_k, excluded = point_qd[point], square_qk[point], row_qk[point], excluded_q[point]
        at = next_q[point]
        while at < stop_q[point] and list_p[at] < last:
            place = list_p[at] - first
            if lower_p[at] <= square_k[-1]:
                for low in range(start_c[place], end_c[place], BLOCK):
                    high = min(low + BLOCK, end_c[place])
                    n = high - low
                    square_n[:n] = added_n[low:high]
                    for axis in range(len(point_d)):
                        value, part_n = point_d[axis], value_dn[axis, low:high]
                        for cell in range(n):
                            difference = part_n[cell] - value
                            square_n[cell] += difference * difference
                    for cell in range(n):
                        if square_n[cell] <= square_k[-1] and code_n[low + cell] != excluded:
                            _insert(square_n[cell], row_n[low + cell], square_k, row_k)
            if list_p[at] >= ended:  # the rest of it is in the next part
                break
            at += 1
        next_q[point] = at


@njit(nogil=True, cache=True)
def _insert(square: np.float32, row: int, square_k: F4, row_k: I8) -> None:
    """Insert a cell in the order of squared distance, then row."""
    at = len(square_k) - 1
    if square == square_k[at] and row > row_k[at] >= 0:
        return
    while at > 0 and (square_k[at - 1] > square or (square_k[at - 1] == square and row_k[at - 1] > row)):
        square_k[at], row_k[at] = square_k[at - 1], row_k[at - 1]
        at -= 1
    square_k[at], row_k[at] = square, row
