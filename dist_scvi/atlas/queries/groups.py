"""Cells by group: the observed combinations of some obs columns.

Shape letters in this file
    n   cells
    l   leaves
    q   groups
    c   columns
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import CellSet, check_column

MAX_CATEGORIES = 20_000
"""Largest number of values of a column for grouping."""


@dataclass(frozen=True, slots=True, eq=False)
class CellGroups:
    """Groups of cells. A cell without a value in one of the columns is in none."""

    by: tuple[str, ...]
    table: pd.DataFrame
    """The values of each group, shape (q, c)."""
    names: tuple[str, ...]
    """The values joined by ``" | "``."""
    n_cells: NDArray[np.int64]
    group_l: NDArray[np.int32] | None
    """Group of each leaf, -1 for none; None if the groups are not unions of leaves."""
    codes: Callable[[slice], NDArray[np.int32]]
    """Group of each of a range of cells, -1 for none."""


def group_cells(atlas: AtlasReader, by: Sequence[str], cells: CellSet) -> CellGroups:
    """Group cells by obs columns; without columns they are one group.

    Raises
    ------
    ValueError
        If a column does not exist, holds numbers or too many values, or no cell has a value.
    """
    columns = [by] if isinstance(by, str) else list(by)
    for key in columns:
        _check_key(atlas, key)
    leaves = atlas.leaves
    if leaves is not None and cells.leaf_l is not None and set(columns) <= set(leaves.columns):
        code_lc = leaves.codes[:, [leaves.columns.index(key) for key in columns]]
        chosen_l = np.zeros(leaves.n_leaves, dtype=bool)
        chosen_l[cells.leaf_l] = True
        return _groups_of_leaves(atlas, columns, np.where(chosen_l[:, None], code_lc, -1), chosen_l)
    return _groups_of_cells(atlas, columns, cells)


def _check_key(atlas: AtlasReader, key: str) -> None:
    check_column(atlas.obs, key, atlas.uri)
    if atlas.obs.kind(key) != "categorical":
        raise ValueError(f"obs column '{key}' holds numbers: group by a column of categories, or choose cells by where")
    n_values = len(atlas.obs.categorical(key).vocabulary)
    if n_values > MAX_CATEGORIES:
        raise ValueError(
            f"obs column '{key}' has {n_values:,} values: at most {MAX_CATEGORIES:,} can be groups, choose another "
            "column, or choose cells by where"
        )


def _groups_of_leaves(
    atlas: AtlasReader, columns: list[str], code_lc: NDArray[np.int32], chosen_l: NDArray[np.bool_]
) -> CellGroups:
    leaves = atlas.leaves
    assert leaves is not None
    present_l = chosen_l & (code_lc >= 0).all(axis=1)
    code_qc, inverse = np.unique(code_lc[present_l], axis=0, return_inverse=True)
    group_l = np.full(leaves.n_leaves, -1, dtype=np.int32)
    group_l[present_l] = inverse.ravel()
    n_q = np.bincount(group_l[present_l], weights=leaves.n_cells[present_l], minlength=len(code_qc)).astype(np.int64)

    def codes(rows: slice) -> NDArray[np.int32]:
        leaf_n = atlas.read_leaf(rows)
        assert leaf_n is not None
        return group_l[leaf_n]

    return _named(atlas, columns, code_qc, n_q, group_l, codes)


def _groups_of_cells(atlas: AtlasReader, columns: list[str], cells: CellSet) -> CellGroups:
    """Determine in one pass the combinations that occur."""
    opened = [atlas.obs.categorical(key) for key in columns]
    radix = np.cumprod([1, *(len(column.vocabulary) for column in opened)], dtype=np.float64)
    if radix[-1] > 1 << 62:
        raise ValueError(f"the columns {columns} have more combinations than can be numbered: group by fewer of them")

    def combined(rows: slice) -> NDArray[np.int64]:
        """Return the number of the combination of each chosen cell, -1 for none."""
        number_n = np.zeros(rows.stop - rows.start, dtype=np.int64)
        present_n = cells.mask(rows)
        for column, step in zip(opened, radix.astype(np.int64).tolist(), strict=False):
            code_n = column.codes(rows.start, rows.stop)
            present_n = present_n & (code_n >= 0)
            number_n += step * code_n
        return np.where(present_n, number_n, -1)

    totals: dict[int, int] = {}
    for rows in atlas.chunks():
        numbers, counts = np.unique(combined(rows), return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            totals[number] = totals.get(number, 0) + count
    totals.pop(-1, None)
    found_q = np.array(sorted(totals), dtype=np.int64)
    if columns and not len(found_q):
        raise ValueError(f"none of {cells.n_cells:,} cells has a value in {columns}: group by another column")
    code_qc = (
        np.stack([found_q // int(radix[place]) % len(opened[place].vocabulary) for place in range(len(columns))])
        if columns
        else np.zeros((0, len(found_q)), dtype=np.int64)
    )

    def codes(rows: slice) -> NDArray[np.int32]:
        number_n = combined(rows)
        place_n = np.searchsorted(found_q, number_n).astype(np.int32)
        return np.where(number_n < 0, np.int32(-1), place_n)

    n_q = np.array([totals[number] for number in found_q.tolist()], dtype=np.int64)
    # The order of groups is that of leaves: by the first column, then by the second.
    order_q = np.lexsort(code_qc[::-1]) if columns else np.arange(len(found_q))
    place_q = np.empty(len(order_q), dtype=np.int32)
    place_q[order_q] = np.arange(len(order_q))

    def ordered(rows: slice) -> NDArray[np.int32]:
        code_n = codes(rows)
        return np.where(code_n < 0, np.int32(-1), np.append(place_q, np.int32(-1))[code_n])

    return _named(atlas, columns, code_qc[:, order_q].T, n_q[order_q], None, ordered)


def _named(
    atlas: AtlasReader,
    columns: list[str],
    code_qc: NDArray[np.integer],
    n_q: NDArray[np.int64],
    group_l: NDArray[np.int32] | None,
    codes: Callable[[slice], NDArray[np.int32]],
) -> CellGroups:
    if not len(n_q):
        raise ValueError(f"no cell has a value in {columns}: group by another column, or choose other cells")
    values = {
        key: np.array(atlas.obs.categorical(key).vocabulary, dtype=object)[code_qc[:, place]]
        for place, key in enumerate(columns)
    }
    table = pd.DataFrame(values, columns=columns, index=range(len(n_q)))
    names = tuple(" | ".join(map(str, row)) for row in table.itertuples(index=False)) if columns else ("all",)
    return CellGroups(tuple(columns), table, names, n_q, group_l, codes)
