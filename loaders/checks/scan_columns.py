"""The results of a pass over the obs columns: their values, and how well these are mixed along the rows.

Shape letters in this file
    n   cells of one read
    c   categories, and after them one more for cells without a value
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.obs_columns import Categorical, Numeric
from dist_scvi.loaders.cell_store import CellStore, open_column

BLOCK_CELLS = 320
"""Rows over which mixing is measured: blocks of this length are always worth reading together."""
MISSING = "(missing)"
_MOST_CATEGORIES = 4096
"""Most categories, or different numbers, that are counted in a column."""
_FREQUENT = 3
_FEWEST_BLOCKS = 8
_MOST_BATCHES = 1000
_BATCH_WORDS = r"batch|donor|sample|dataset|assay|library|plate|chemistry|study|patient|individual|subject|technolog"
_LABEL_WORDS = r"cell_?type|label|annotation|cluster|leiden|louvain"


@dataclass(frozen=True, slots=True)
class Mixing:
    """How well the categories of a column are mixed along the rows."""

    entropy_bits: float
    """Entropy of all cells."""
    block_entropy_bits: float
    """Mean entropy of the blocks of 320 rows."""
    independent_cells: float
    """Number of random cells that are as diverse as a block: 1 if each block is of one category, 320 if rows are
    shuffled.

    Diversity is the chance that two cells are of different categories, which bounds the variance of a gradient.
    """


@dataclass(frozen=True, slots=True)
class ColumnSummary:
    """Summary of an obs column."""

    key: str
    kind: Literal["categories", "numbers", "damaged"]
    n_categories: int | None
    """Categories, or different numbers; None if there are too many to count."""
    most_frequent: dict[str, int]
    """Cells of the most frequent ones; none if they were not counted."""
    n_missing: int
    range: tuple[float, float] | None
    """Least and largest number."""
    mixing: Mixing | None
    """None unless there are several categories and blocks."""
    damage: str | None
    """Error, if the column cannot be read."""


class ColumnPass:
    """An obs column that is read in the same pass as the counts; `opened` is the column if it is open already."""

    def __init__(self, store: CellStore, key: str, opened: Categorical | None = None) -> None:
        self.key = key
        self._damage: str | None = None
        self._values: _Codes | _Numbers | None = None
        try:
            column = opened or open_column(store, key)
        except ValueError as error:
            self._damage = str(error)
        else:
            self._values = _Numbers(column) if isinstance(column, Numeric) else _Codes(column)

    def add(self, start: int, stop: int) -> None:
        """Add the rows ``[start, stop)``; if they cannot be read, the column is not read any further."""
        if self._values is None:
            return
        try:
            self._values.add(start, stop)
        except ValueError as error:
            self._damage, self._values = str(error), None

    def summary(self) -> ColumnSummary:
        """Return the summary of all rows added."""
        if self._values is None:
            return ColumnSummary(self.key, "damaged", None, {}, 0, None, None, self._damage)
        return self._values.summary(self.key)


def groups(column: Categorical | None, start: int, stop: int) -> NDArray[np.int64]:
    """Return the codes of rows ``[start, stop)``; the code of missing values is the number of categories."""
    if column is None:
        return np.zeros(stop - start, dtype=np.int64)
    codes_n = column.codes(start, stop).astype(np.int64)
    codes_n[codes_n < 0] = len(column.vocabulary)
    return codes_n


def suggested(columns: tuple[ColumnSummary, ...], n_cells: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns that could be batches by name and number of categories, and those that could be labels."""
    batches, labels = [], []
    for column in columns:
        if column.n_categories is None or not 2 <= column.n_categories <= min(_MOST_BATCHES, n_cells // 2):
            continue
        if re.search(_BATCH_WORDS, column.key, re.IGNORECASE):
            batches.append(column.key)
        elif re.search(_LABEL_WORDS, column.key, re.IGNORECASE):
            labels.append(column.key)
    return tuple(batches), tuple(labels)


class _Codes:
    """Cells of each category, and sums over blocks of rows."""

    def __init__(self, column: Categorical) -> None:
        self._column = column
        self._counted = len(column.vocabulary) <= _MOST_CATEGORIES
        self._count_c = np.zeros(len(column.vocabulary) + 1, dtype=np.int64)
        self._n_missing = 0
        self._rest = np.zeros(0, dtype=np.int64)
        self._n_blocks = 0
        self._sums = np.zeros(2)

    def add(self, start: int, stop: int) -> None:
        """Add the rows ``[start, stop)``."""
        group_n = groups(self._column, start, stop)
        self._n_missing += int(np.count_nonzero(group_n == len(self._column.vocabulary)))
        if not self._counted:
            return
        self._count_c += np.bincount(group_n, minlength=len(self._count_c))
        # Reads do not end at blocks: the rows of an incomplete block are kept for the next call.
        group_n = np.concatenate([self._rest, group_n])
        n_blocks, left = divmod(len(group_n), BLOCK_CELLS)
        self._sums += _block_diversity(group_n[: len(group_n) - left], len(self._count_c), BLOCK_CELLS)
        self._n_blocks, self._rest = self._n_blocks + n_blocks, group_n[len(group_n) - left :].copy()

    def summary(self, key: str) -> ColumnSummary:
        """Return the summary of all rows added."""
        names = self._column.vocabulary
        frequent = _frequent(list(names), self._count_c[:-1]) if self._counted else {}
        return ColumnSummary(key, "categories", len(names), frequent, self._n_missing, None, self._mixing(), None)

    def _mixing(self) -> Mixing | None:
        share_c = self._count_c[self._count_c > 0] / max(1, self._count_c.sum())
        if len(share_c) < 2 or self._n_blocks < _FEWEST_BLOCKS:
            return None
        entropy, alike = self._sums / self._n_blocks
        by_chance = float((share_c**2).sum())
        independent = (1 - by_chance) / max(alike - by_chance, (1 - by_chance) / BLOCK_CELLS)
        return Mixing(float(-(share_c * np.log2(share_c)).sum()), float(entropy), max(1.0, float(independent)))


class _Numbers:
    """Extremes of a column of numbers, and the cells of each value while there are few different values."""

    def __init__(self, column: Numeric) -> None:
        self._column = column
        self._n_missing = 0
        self._range: tuple[float, float] | None = None
        self._count: dict[float, int] | None = {}

    def add(self, start: int, stop: int) -> None:
        """Add the rows ``[start, stop)``."""
        values_n = np.asarray(self._column.stored[start:stop])
        present_n = values_n[~np.isnan(values_n)]
        self._n_missing += len(values_n) - len(present_n)
        if not len(present_n):
            return
        low, high = self._range or (float("inf"), float("-inf"))
        self._range = min(low, float(present_n.min())), max(high, float(present_n.max()))
        if self._count is not None:
            for value, n in zip(*(one.tolist() for one in np.unique(present_n, return_counts=True)), strict=True):
                self._count[value] = self._count.get(value, 0) + n
            if len(self._count) > _MOST_CATEGORIES:
                self._count = None

    def summary(self, key: str) -> ColumnSummary:
        """Return the summary of all rows added."""
        count = self._count
        frequent = (
            {} if count is None else _frequent([f"{value:.9g}" for value in count], np.array(list(count.values())))
        )
        n_values = None if count is None else len(count)
        return ColumnSummary(key, "numbers", n_values, frequent, self._n_missing, self._range, None, None)


def _frequent(names: list[str], count_c: NDArray[np.int64]) -> dict[str, int]:
    order = np.argsort(-count_c, kind="stable")[:_FREQUENT]
    return {names[at]: int(count_c[at]) for at in order if count_c[at]}


@njit(nogil=True, cache=True)
def _block_diversity(group_n: NDArray[np.int64], n_groups: int, block: int) -> NDArray[np.float64]:
    """Return sums over all blocks: of the entropy in bits, and of the chance that two draws are of the same group."""
    count_c = np.zeros(n_groups, dtype=np.int64)
    sums = np.zeros(2)
    for begin in range(0, len(group_n), block):
        for n in range(begin, begin + block):
            count_c[group_n[n]] += 1
        for n in range(begin, begin + block):
            share = count_c[group_n[n]] / block
            if share > 0:
                sums[0] -= share * np.log2(share)
                sums[1] += share * share
                count_c[group_n[n]] = 0
    return sums
