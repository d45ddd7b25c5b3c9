"""The groups of cells of a differential expression, their outliers, and means of their raw counts.

Shape letters in this file
    n   cells
    g   genes
    q   groups of cells
    m   cells of a group, or some of them
    s   cells drawn
    k   latent dimensions
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dist_scvi.loaders.read_limits import PAGE_ROWS

CellChoice = str | Sequence[int] | Sequence[bool] | NDArray[Any]
"""Cells as a query over obs, row numbers, or a mask."""


@dataclass(frozen=True, slots=True, eq=False)
class RawMoments:
    """Sums over the counts of groups of cells."""

    sum_qg: NDArray[np.float64]
    """Sum of the counts."""
    detected_qg: NDArray[np.int64]
    """Number of cells with a count above 0."""
    normalized_qg: NDArray[np.float64]
    """Sum of counts * 1e4 / total count of the cell; a cell without counts adds nothing."""
    cells_q: NDArray[np.int64]

    def means(self, group_q: NDArray[np.int64]) -> "CountMeans":
        """Average over the cells of all groups `group_q`."""
        cells = self.cells_q[group_q].sum()
        sums = (self.sum_qg, self.detected_qg, self.normalized_qg)
        return CountMeans(*(np.asarray(sum_qg[group_q].sum(axis=0) / cells) for sum_qg in sums))


class CountMeans(NamedTuple):
    """Means over the cells of a group."""

    count_g: NDArray[np.float64]
    detected_g: NDArray[np.float64]
    normalized_g: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Cells by group, and the comparisons to make."""

    code_n: NDArray[np.int32]
    """Group of each cell; -1 is none."""
    names: tuple[str, ...]
    first: tuple[int, ...]
    """Groups that are compared with `second`, in this order."""
    second: int | None
    """Group that each of `first` is compared with; None is all other cells."""

    def member_n(self, first: int, side: int) -> NDArray[np.bool_]:
        """Return a mask of the cells of the group `first`, or on side 1 of the cells that it is compared with."""
        if side == 0:
            return np.equal(self.code_n, first)
        return np.not_equal(self.code_n, first) if self.second is None else np.equal(self.code_n, self.second)

    def counted_n(self) -> NDArray[np.int32]:
        """Return the group of each cell whose counts are needed, -1 for others.

        Cells of no group have a group of their own, the last, if they are compared.
        """
        if self.second is None:
            return np.where(self.code_n < 0, np.int32(len(self.names)), self.code_n)
        used = np.zeros(len(self.names) + 1, dtype=bool)
        used[[*self.first, self.second]] = True
        return np.where(used[self.code_n], self.code_n, np.int32(-1))

    def counted_q(self, first: int, side: int) -> NDArray[np.int64]:
        """Return the groups of `counted_n` that form the group `first`, or on side 1 the cells it is compared with."""
        if side == 0:
            return np.array([first])
        return np.delete(np.arange(len(self.names) + 1), first) if self.second is None else np.array([self.second])


def groups_by_column(
    code_n: NDArray[np.int32],
    categories: Sequence[str],
    group1: str | Sequence[str] | None,
    group2: str | None,
    *,
    groupby: str,
) -> Groups:
    """Compare categories of an obs column with one of them, or with all other cells.

    Parameters
    ----------
    group1
        Categories, by default all that have cells.
    group2
        Category to compare with, by default all other cells, including those without a category.

    Raises
    ------
    ValueError
        If a category is unknown or has no cells, or there are no cells to compare with.
    """
    size_q = np.bincount(code_n[code_n >= 0], minlength=len(categories))
    present = [name for name, size in zip(categories, size_q, strict=True) if size]
    wanted = present if group1 is None else [group1] if np.ndim(group1) == 0 else list(group1)
    names = [str(name) for name in wanted]
    if not names or (group1 is None and len(names) == 1):
        raise ValueError(
            f"group1 is {'not given' if group1 is None else 'empty'}, and obs column '{groupby}' has {len(present)} "
            f"categories with cells ({', '.join(present[:20])}): two are needed, or name one as group1"
        )
    for name in [*names, *([] if group2 is None else [str(group2)])]:
        if name not in present:
            why = "has no cells of" if name in categories else "has no"
            raise ValueError(f"obs column '{groupby}' {why} category {name!r}: it has {', '.join(present[:20])}")
    code = {name: place for place, name in enumerate(categories)}
    if group2 is None and size_q[code[names[0]]] == len(code_n):
        raise ValueError(f"every cell is of category {names[0]!r} of obs column '{groupby}': there is no rest")
    first = tuple(code[name] for name in names)
    return Groups(code_n, tuple(categories), first, None if group2 is None else code[str(group2)])


def groups_by_cells(first_n: NDArray[np.bool_], second_n: NDArray[np.bool_] | None) -> Groups:
    """Compare the cells of one mask with those of another, or with all other cells.

    Raises
    ------
    ValueError
        If one of the two groups has no cells, or a cell is in both.
    """
    code_n = np.where(first_n, np.int32(0), np.int32(-1))
    if second_n is not None:
        shared_m = np.flatnonzero(first_n & second_n)
        if len(shared_m):
            rows = ", ".join(map(str, shared_m[:5]))
            raise ValueError(
                f"idx1 and idx2 share {len(shared_m)} cells (rows {rows}): leave them out of one of the two"
            )
        code_n[second_n] = 1
    others = ~first_n if second_n is None else second_n
    for name, chosen_n in (("idx1", first_n), ("idx2, or the rest," if second_n is None else "idx2", others)):
        if not chosen_n.any():
            raise ValueError(f"{name} has no cells: at least one of {len(first_n)} is needed")
    return Groups(code_n, ("idx1", "idx2"), (0,), None if second_n is None else 1)


def decoding_batches(
    categories: Sequence[str],
    batchid1: str | Sequence[str] | None,
    batchid2: str | Sequence[str] | None,
    *,
    batch_correction: bool,
) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Return the codes of the batches to decode each group with; None is the cell's own batch.

    Parameters
    ----------
    categories
        Batches of the model.
    batchid1, batchid2
        Batches for each group, by default all.
    batch_correction
        Whether to decode with other batches than that of the cell.

    Raises
    ------
    ValueError
        If a batch is unknown, or the groups have some batches in common but not all.
    """
    if not batch_correction:
        if batchid1 is not None or batchid2 is not None:
            raise ValueError(
                "batchid1 and batchid2 need batch_correction=True: without it each cell keeps its own batch"
            )
        return (None,), (None,)
    if not categories:
        raise ValueError(
            "batch_correction=True: the model was trained without a batch_key, there is nothing to correct"
        )
    codes = []
    for name, given in (("batchid1", batchid1), ("batchid2", batchid2)):
        listed = categories if given is None else [given] if np.ndim(given) == 0 else given
        wanted = dict.fromkeys(str(batch) for batch in listed)
        unknown = [batch for batch in wanted if batch not in categories]
        if unknown or not wanted:
            what = f"holds {unknown[0]!r}" if unknown else "is empty"
            raise ValueError(f"{name} {what}: the batches of the model are {', '.join(categories)}")
        codes.append(tuple(list(categories).index(batch) for batch in wanted))
    # With the same batches samples are compared within a batch, with none in common across batches. With only some in
    # common, neither applies to all samples.
    shared = set(codes[0]) & set(codes[1])
    if shared and set(codes[0]) != set(codes[1]):
        raise ValueError(
            f"batchid1 and batchid2 share {categories[min(shared)]!r} but are not the same: name the same batches for "
            "both groups, or none in common (not naming one means all)"
        )
    return codes[0], codes[1]


def marked_cells(
    name: str, cells: CellChoice, n_cells: int, query: Callable[[str], NDArray[np.bool_]] | None
) -> NDArray[np.bool_]:
    """Return a mask of the cells that the argument `name` selects.

    Parameters
    ----------
    cells
        A pandas query expression over obs, a mask of all cells, or row numbers.
    query
        Evaluates query expressions; None if the source has no obs.

    Raises
    ------
    ValueError
        If `cells` is none of these.
    """
    if isinstance(cells, str):
        if query is None:
            raise ValueError(f"{name}={cells!r}: these cells have no obs to query; give row numbers or a mask")
        cells = query(cells)
    chosen: NDArray[Any] = np.asarray(cells).ravel()
    if chosen.dtype == bool:
        if len(chosen) != n_cells:
            raise ValueError(f"{name} is a mask of {len(chosen)} cells: one of {n_cells} is needed")
        return chosen
    if len(chosen) and not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"{name} holds {chosen[0]!r}: row numbers are needed, or a mask, or a query")
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < n_cells:
        raise ValueError(f"{name} runs from {chosen.min()} to {chosen.max()}: there are cells 0 to {n_cells - 1}")
    marked_n = np.zeros(n_cells, dtype=bool)
    marked_n[chosen.astype(np.int64)] = True
    return marked_n


def rows_at(member_n: NDArray[np.bool_], place_s: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of members by their position among all members.

    Only the pages that contain a requested position are expanded: a list of the rows of all members of a large group
    would need eight bytes per cell.
    """
    start_p = np.arange(0, len(member_n), PAGE_ROWS)
    stop_p = np.cumsum(np.add.reduceat(member_n, start_p, dtype=np.int64))
    page_s = np.searchsorted(stop_p, place_s, side="right")
    row_s = np.empty(len(place_s), dtype=np.int64)
    for page in np.unique(page_s).tolist():
        start, here = page * PAGE_ROWS, page_s == page
        row_m = start + np.flatnonzero(member_n[start : start + PAGE_ROWS])
        row_s[here] = row_m[place_s[here] - stop_p[page] + len(row_m)]
    return row_s


def draw_numbers(row_s: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Assign numbers to the occurrences of each row, which key the noise: even on side 0, odd on side 1.

    A cell that is sampled several times, or on both sides, thus has different noise each time.
    """
    order = np.argsort(row_s, kind="stable")
    sorted_s = row_s[order]
    draw_s = np.empty(len(row_s), dtype=np.int64)
    draw_s[order] = 2 * (np.arange(len(row_s)) - np.searchsorted(sorted_s, sorted_s)) + side
    return draw_s


def count_columns(first: CountMeans, second: CountMeans) -> dict[str, NDArray[np.float64]]:
    """Return the columns of raw counts under the names of scvi-tools."""
    names = ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")
    return {
        f"{name}{side}": mean_g
        for name, *means in zip(names, first, second, strict=True)
        for side, mean_g in enumerate(means, start=1)
    }


def inliers(latent_mk: ArrayLike, rng: np.random.Generator, contamination: float = 0.1) -> NDArray[np.bool_] | None:
    """Return a mask of all cells but the share `contamination` that is farthest from the centre, by robust covariance.

    Returns
    -------
    numpy.ndarray or None
        None if the cells are too few, or too similar, for a covariance.

    Notes
    -----
    EllipticEnvelope of scikit-learn, which scvi-tools 1.4.2 uses as well.
    """
    # Imported here: scikit-learn takes half a second to import, and few queries filter outliers.
    from sklearn.covariance import EllipticEnvelope

    value_mk = np.asarray(latent_mk, dtype=np.float64)
    m, k = value_mk.shape
    half = (m + k + 2) // 2
    if half <= k or half > m or np.linalg.matrix_rank(value_mk - value_mk.mean(axis=0)) < k:
        return None
    envelope = EllipticEnvelope(contamination=contamination, random_state=int(rng.integers(1 << 31)))
    inlier_m: NDArray[np.bool_] = envelope.fit_predict(value_mk) == 1
    return inlier_m
