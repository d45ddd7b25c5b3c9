"""The split of each row, and how often it is drawn: by a seed or by columns of obs, read by range.

Shape letters in this file
    n   cells of a range of rows
    c   categories of a column
    s   splits: train, validation, test
    p   pages of rows
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.obs_columns import Categorical, Numeric
from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.order.seeded_split import LEFT_OUT, TEST, TRAIN, VALIDATION, SeededSplit, shares_of
from dist_scvi.loaders.read_limits import PAGE_ROWS

_MASS_BITS = 20
_NAMES = {"train": TRAIN, "validation": VALIDATION, "val": VALIDATION, "valid": VALIDATION, "test": TEST}


class RowSplit(Protocol):
    """The split of each row."""

    @property
    def n_cells(self) -> int:
        """Cells of the store."""

    def split_of(self, start: int, stop: int) -> NDArray[np.int8]:
        """Return the split of each row of ``[start, stop)``, -1 for those in none."""


@dataclass(frozen=True, slots=True)
class ColumnSplit:
    """A split by whole categories of an obs column; a cell without a value is in no split."""

    column: Categorical
    n_cells: int
    split_c: NDArray[np.int8]

    def split_of(self, start: int, stop: int) -> NDArray[np.int8]:
        """Return the split of each row of ``[start, stop)``, -1 for those in none."""
        return np.append(self.split_c, np.int8(LEFT_OUT))[self.column.codes(start, stop)]

    def categories(self, split: int) -> list[str]:
        """Names of the categories in `split`."""
        return [self.column.vocabulary[code] for code in np.flatnonzero(self.split_c == split)]


@dataclass(frozen=True, slots=True, eq=False)
class Sampling:
    """The split of every row, and for rows of train the mass: a whole number, proportional to the draws of the row."""

    splits: RowSplit
    stop_sp: NDArray[np.int64]
    """Cells of each split up to the end of each page."""
    weight: Numeric | None
    top_weight: float
    balance: Categorical | None
    share_c: NDArray[np.float64]
    """Weight of a cell of each category of `balance`, 1 in the rarest."""

    @property
    def n_cells(self) -> int:
        """Cells of the store."""
        return self.splits.n_cells

    def split_cells(self, split: int) -> int:
        """Cells of `split` in the whole store."""
        return int(self.stop_sp[split, -1])

    def rows(self, split: int, low: int, high: int) -> NDArray[np.int64]:
        """Return the rows at places ``[low, high)`` among those of `split`, in the order of the store."""
        if high <= low:
            return np.zeros(0, dtype=np.int64)
        stop_p = self.stop_sp[split]
        cells_p = np.diff(stop_p, prepend=0)
        first, last = np.searchsorted(stop_p, [low, high - 1], side="right")
        starts = (first + np.flatnonzero(cells_p[first : last + 1])) * PAGE_ROWS
        parts = [
            start + np.flatnonzero(self.splits.split_of(start, min(start + PAGE_ROWS, self.n_cells)) == split)
            for start in starts.tolist()
        ]
        row_n: NDArray[np.int64] = np.concatenate(parts)
        begin = int(stop_p[first] - cells_p[first])
        return row_n[low - begin : high - begin]

    def masses(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the mass of each row of ``[start, stop)``: 0 outside train; inside 1, or its weight in 2**20 steps.

        A weight above 0 has a mass of at least 1. Masses are whole numbers so that their sums are exact, in any order
        and on every machine.
        """
        mass_n: NDArray[np.int64] = np.equal(self.splits.split_of(start, stop), TRAIN).astype(np.int64)
        if self.weight is None and self.balance is None:
            return mass_n
        share_n = mass_n.astype(np.float64)
        if self.weight:
            share_n *= self.weight.values(start, stop).astype(np.float64) / self.top_weight
        if self.balance:
            share_n *= self.share_c[self.balance.required_codes(start, stop)]
        np.maximum(np.rint(share_n * (1 << _MASS_BITS)), share_n > 0, out=mass_n, casting="unsafe")
        return mass_n


def open_sampling(
    store: CellStore,
    *,
    seed: int,
    train_size: float | None = None,
    validation_size: float | None = None,
    split_key: str | None = None,
    holdout_key: str | None = None,
    weight_key: str | None = None,
    balance_key: str | None = None,
) -> Sampling | None:
    """Open the obs columns that define which cells are trained on and how often.

    Parameters
    ----------
    seed, train_size, validation_size
        Shares as in `make_plan`, of a seeded split or of `holdout_key`.
    split_key
        obs column whose values are train, validation (val, valid) and test.
    holdout_key
        obs column, such as the donor, whose whole categories are held out.
    weight_key
        obs column of numbers >= 0; the draws of a cell are proportional to it.
    balance_key
        obs column whose categories are drawn equally often. With `weight_key` both factors are multiplied.

    Returns
    -------
    Sampling or None
        None if no column is named: `make_plan` itself makes the seeded split.

    Raises
    ------
    ValueError
        If the values of a column are not valid, or arguments exclude each other.
    """
    if not (split_key or holdout_key or weight_key or balance_key):
        return None
    splits: RowSplit
    if split_key:
        for name, value in {
            "holdout_key": holdout_key,
            "train_size": train_size,
            "validation_size": validation_size,
        }.items():
            if value is not None:
                raise ValueError(f"split_key='{split_key}' says which cells are held out: leave out {name}={value}")
        splits = named_split(store.categorical(split_key), store.n_cells)
    else:
        shares = shares_of(train_size, validation_size)
        if holdout_key:
            splits = holdout_split(store.categorical(holdout_key), store.n_cells, *shares, seed=seed)
        else:
            splits = SeededSplit(store.n_cells, *shares, seed)
    return make_sampling(
        splits,
        weight=store.numeric(weight_key) if weight_key else None,
        balance=store.categorical(balance_key) if balance_key else None,
    )


def named_split(column: Categorical, n_cells: int) -> ColumnSplit:
    """Split by a column whose values are train, validation (val, valid) and test, case-insensitive.

    Raises
    ------
    ValueError
        If it holds other values, or no cell of train.
    """
    cells_c = _cells_of(column, n_cells)
    split_c = np.array([_NAMES.get(name.strip().lower(), LEFT_OUT) for name in column.vocabulary], dtype=np.int8)
    other = [
        name for name, cells, split in zip(column.vocabulary, cells_c, split_c, strict=True) if cells and split < 0
    ]
    if other:
        raise ValueError(
            f"obs column '{column.key}' holds {', '.join(map(repr, other[:5]))}{', ...' * (len(other) > 5)}: 'train', "
            "'validation' and 'test' are needed; to hold out whole categories of another column, name it as holdout_key"
        )
    if not cells_c[split_c == TRAIN].any():
        raise ValueError(f"obs column '{column.key}' holds no cell of 'train': at least one is needed")
    return ColumnSplit(column, n_cells, split_c)


def holdout_split(
    column: Categorical, n_cells: int, train_size: float, validation_size: float, *, seed: int
) -> ColumnSplit:
    """Hold out whole categories: in a seeded order, each that is not larger than the rest of the share of a split.

    The smallest remaining category is added if it brings the split closer to its share, or if the split is empty.

    Raises
    ------
    ValueError
        If there are fewer categories than splits.
    """
    cells_c = _cells_of(column, n_cells)
    total = int(cells_c.sum())
    shares = {VALIDATION: validation_size, TEST: 1 - train_size - validation_size}
    wanted = {split: max(1, round(share * total)) for split, share in shares.items() if share > 1e-6}
    left = [int(code) for code in np.flatnonzero(cells_c)]
    if len(left) <= len(wanted):
        raise ValueError(
            f"obs column '{column.key}' has {len(left)} categories with cells: {len(wanted) + 1} are needed, one for "
            "each split; choose another column as holdout_key"
        )
    # Ordered by the hash of the name, not of the code: codes change when categories are added.
    left.sort(key=lambda code: sha256(f"{seed}:{column.vocabulary[code]}".encode()).digest())
    split_c = np.full(len(cells_c), TRAIN, dtype=np.int8)
    for keep, (split, cells) in zip(range(len(wanted), 0, -1), wanted.items(), strict=True):
        chosen, lacking = list[int](), cells
        for code in left:
            if len(left) - len(chosen) > keep and cells_c[code] <= lacking:
                chosen.append(code)
                lacking -= cells_c[code]
        left = [code for code in left if code not in chosen]
        over = min(left, key=lambda code: cells_c[code])
        if not chosen or (len(left) > keep and cells_c[over] - lacking < lacking):
            chosen.append(over)
            left.remove(over)
        split_c[chosen] = split
    return ColumnSplit(column, n_cells, split_c)


def make_sampling(splits: RowSplit, *, weight: Numeric | None = None, balance: Categorical | None = None) -> Sampling:
    """Read the columns once to count the cells of each split and category, and to find the largest weight.

    Parameters
    ----------
    weight
        Numbers >= 0; the draws of a training cell are proportional to its number.
    balance
        Categories drawn equally often: the weight of a training cell is 1 over the training cells of its category.

    Raises
    ------
    ValueError
        If a weight is negative or missing, all are 0, or a category is missing.
    """
    cells_ps, top_weight = [], 0.0
    cells_c = np.zeros(len(balance.vocabulary) if balance else 0, dtype=np.int64)
    for start, stop in _pages(splits.n_cells):
        split_n = splits.split_of(start, stop)
        cells_ps.append(np.bincount(split_n + 1, minlength=4)[1:])
        train_n = split_n == TRAIN
        if weight:
            top_weight = max(top_weight, _largest(weight, start, stop, train_n))
        if balance:
            cells_c += np.bincount(balance.required_codes(start, stop)[train_n], minlength=len(cells_c))
    if weight and top_weight == 0:
        raise ValueError(
            f"obs column '{weight.key}' is 0 in every training cell: at least one weight above 0 is needed"
        )
    share_c = np.where(cells_c > 0, min(cells_c[cells_c > 0], default=0) / np.maximum(cells_c, 1), 0)
    return Sampling(splits, np.cumsum(cells_ps, axis=0).T, weight, top_weight, balance, share_c)


def _largest(weight: Numeric, start: int, stop: int, train_n: NDArray[np.bool_]) -> float:
    value_n = weight.values(start, stop)
    if (value_n < 0).any():
        row = start + int(np.argmax(value_n < 0))
        raise ValueError(f"obs column '{weight.key}' is {value_n[row - start]} at row {row}: weights >= 0 are needed")
    return float(value_n[train_n].max(initial=0))


def _cells_of(column: Categorical, n_cells: int) -> NDArray[np.int64]:
    cells_c = np.zeros(len(column.vocabulary), dtype=np.int64)
    for start, stop in _pages(n_cells):
        cells_c += np.bincount(column.codes(start, stop) + 1, minlength=len(cells_c) + 1)[1:]
    return cells_c


def _pages(n_cells: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + PAGE_ROWS, n_cells)) for start in range(0, n_cells, PAGE_ROWS))
