"""Which columns of obs an atlas keeps, and which of them make its leaves.

Shape letters in this file
    n   cells
    l   leaves
    c   leaf columns
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.store.names import OWN_COLUMNS
from dist_scvi.loaders.arrays.anndata_layout import code_type
from dist_scvi.loaders.arrays.obs_columns import Categorical, Numeric
from dist_scvi.loaders.cell_store import open_column
from dist_scvi.loaders.data import CellData
from dist_scvi.loaders.name_lookup import check_list
from dist_scvi.loaders.read_limits import PAGE_ROWS

MOST_CATEGORIES = 1000
"""Largest number of categories of a column that is kept by default."""
DEFAULT_LEAF_BUDGET = 1 << 30


@dataclass(frozen=True, slots=True)
class KeptColumn:
    """A column of obs that is copied into the atlas."""

    source: Categorical | Numeric

    @property
    def key(self) -> str:
        """Its name."""
        return self.source.key

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its values or codes."""
        if isinstance(self.source, Categorical):
            return np.dtype(code_type(len(self.source.vocabulary))).newbyteorder("<")
        return np.asarray(self.source.stored[0:1]).dtype.newbyteorder("<")

    def values(self, start: int, stop: int) -> NDArray[Any]:
        """Return the values or codes of rows ``[start, stop)``."""
        if isinstance(self.source, Categorical):
            return self.source.codes(start, stop).astype(self.dtype)
        return np.asarray(self.source.stored[start:stop]).astype(self.dtype)


def choose_columns(data: CellData, obs_columns: Sequence[str]) -> tuple[list[KeptColumn], dict[str, str]]:
    """Return the columns of obs to keep, and for each other one the reason why it is dropped.

    Kept are the model's covariates and label, every column of numbers, every column of at most 1,000 categories, and
    `obs_columns`.

    Raises
    ------
    ValueError
        If one of `obs_columns` is missing or has a name that the atlas uses.
    """
    store = data.store
    check_list("obs_columns", obs_columns)
    for key in obs_columns:
        if key in OWN_COLUMNS:
            raise ValueError(f"obs column '{key}' cannot be carried over: the atlas has one of that name, rename it")
        if key not in store.obs_columns():
            store.categorical(key)  # raises, naming the nearest
    as_categories = {column.key for column in (data.batch, data.label, *data.categorical_covariates) if column}
    needed = as_categories | {column.key for column in (*data.continuous_covariates, data.size_factor) if column}
    kept, dropped = [], {}
    for key in store.obs_columns():
        if key in OWN_COLUMNS:
            dropped[key] = "the atlas has a column of that name"
            continue
        source = _open(data, key, as_categories=key in as_categories)
        n_categories = len(source.vocabulary) if isinstance(source, Categorical) else 0
        if n_categories > MOST_CATEGORIES and key not in needed and key not in obs_columns:
            dropped[key] = f"{n_categories} categories, more than {MOST_CATEGORIES}: name it to keep it"
        else:
            kept.append(KeptColumn(source))
    return kept, dropped


def _open(data: CellData, key: str, *, as_categories: bool) -> Categorical | Numeric:
    if as_categories:
        return data.store.categorical(key)
    return open_column(data.store, key)


@dataclass(frozen=True, slots=True)
class LeafTable:
    """The observed combinations of some obs columns, ascending by codes; -1, for a missing value, is the lowest."""

    columns: tuple[Categorical, ...]
    keys: tuple[NDArray[np.int64], ...]
    """For each column: the key of each combination with the columns before it, made of their number and the code."""

    @property
    def n_leaves(self) -> int:
        """Number of combinations."""
        return len(self.keys[-1]) if self.keys else 1

    def leaf_of(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the leaf of each cell of rows ``[start, stop)``, shape (n,)."""
        leaf_n = np.zeros(stop - start, dtype=np.int64)
        for column, key_l in zip(self.columns, self.keys, strict=True):
            leaf_n = np.searchsorted(key_l, _joined(leaf_n, column, start, stop))
        return leaf_n

    def codes(self) -> NDArray[np.int32]:
        """Return the code of each leaf in each column, shape (l, c)."""
        at_l, found = np.arange(self.n_leaves), []
        for column, key_l in zip(reversed(self.columns), reversed(self.keys), strict=True):
            at_l, code_l = np.divmod(key_l[at_l], len(column.vocabulary) + 1)
            found.append(code_l - 1)
        stacked = np.stack(found[::-1], axis=1) if found else np.zeros((1, 0))
        return stacked.astype(np.int32)


def _joined(leaf_n: NDArray[np.int64], column: Categorical, start: int, stop: int) -> NDArray[np.int64]:
    return leaf_n * (len(column.vocabulary) + 1) + column.codes(start, stop) + 1


def choose_leaves(
    data: CellData, kept: Sequence[KeptColumn], names: Sequence[str] | None, *, most: int, budget: str
) -> LeafTable:
    """Find the leaves: of the columns `names`, or of as many as `most` leaves allow.

    By default the label comes first, then the batch, the categorical covariates, and the others by their number of
    categories; a column that would make too many leaves is passed over.

    Parameters
    ----------
    most
        Leaves that the budget allows.
    budget
        Description of that budget, for messages.

    Raises
    ------
    ValueError
        If a column of `names` is not kept or holds numbers, or they have too many combinations.
    """
    if names is not None:
        check_list("leaf_columns", names)
    sources = {column.key: column.source for column in kept}
    categorical = {key: source for key, source in sources.items() if isinstance(source, Categorical)}
    if names is None:
        ordered = _preferred(data, categorical)
    else:
        wrong = [key for key in names if key not in categorical]
        if wrong:
            reason = "holds numbers" if wrong[0] in sources else "is not kept"
            raise ValueError(
                f"obs column '{wrong[0]}' {reason} and cannot make leaves: name columns of categories, of "
                f"{', '.join(categorical) or 'none'} (leaf_columns, --leaf-columns)"
            )
        ordered = list(dict.fromkeys(names))
    table = LeafTable((), ())
    for key in ordered:
        grown = _grown(table, categorical[key], data.n_cells, most)
        if grown is not None:
            table = grown
        elif names is not None:
            raise ValueError(
                f"the leaf columns {', '.join(ordered)} have more than {most} observed combinations, which is what "
                f"{budget} allow: name fewer columns (leaf_columns, --leaf-columns) or raise the budget "
                "(leaf_budget_bytes, --leaf-budget)"
            )
    return table


def _preferred(data: CellData, categorical: dict[str, Categorical]) -> list[str]:
    """Return the columns in the order in which they are tried as leaf columns."""
    first = [column.key for column in (data.label, data.batch, *data.categorical_covariates) if column]
    others = sorted(categorical.keys() - set(first), key=lambda key: (len(categorical[key].vocabulary), key))
    return [*dict.fromkeys(first), *others]


def _grown(table: LeafTable, column: Categorical, n_cells: int, most: int) -> LeafTable | None:
    """Divide the leaves of `table` by one more column, or return None if they would be more than `most`."""
    found_l = np.zeros(0, dtype=np.int64)
    for start, stop in _pages(n_cells):
        found_l = np.union1d(found_l, _joined(table.leaf_of(start, stop), column, start, stop))
        if len(found_l) > most:
            return None
    return LeafTable((*table.columns, column), (*table.keys, found_l))


def _pages(n_cells: int) -> Iterable[tuple[int, int]]:
    return ((start, min(start + PAGE_ROWS, n_cells)) for start in range(0, n_cells, PAGE_ROWS))
