"""obs of a minified atlas: columns read by rows, as codes, as numbers, or as pandas objects.

Shape letters in this file
    n   cells
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.store.raw_arrays import Rows, near_runs
from dist_scvi.loaders.arrays.obs_columns import Categorical, Numeric, missing_column

Column = Categorical | Numeric
_GAP_ROWS = 4096


class AtlasObs:
    """The columns of obs, read when requested.

    ``obs["cell_type"]`` is a pandas Series, ``obs[["cell_type", "donor"]]`` and `to_pandas` a DataFrame; `codes` and
    `values` return arrays of some rows, for more cells than memory holds.
    """

    def __init__(
        self,
        n_cells: int,
        uri: str,
        kinds: Mapping[str, Literal["categorical", "numeric"]],
        open_column: Callable[[str], Column],
        names: Callable[[Rows], NDArray[np.object_]],
    ) -> None:
        self.n_cells, self._uri, self._kinds = n_cells, uri, dict(kinds)
        self._open = lru_cache(64)(open_column)
        self._names = names

    def columns(self) -> list[str]:
        """Return the names of the columns, those that the atlas itself adds last."""
        return list(self._kinds)

    def __contains__(self, key: object) -> bool:
        return key in self._kinds

    def kind(self, key: str) -> Literal["categorical", "numeric"]:
        """Return whether a column holds categories or numbers.

        Raises
        ------
        ValueError
            If there is no such column; the nearest names are listed.
        """
        if key not in self._kinds:
            raise missing_column(key, self.columns(), self._uri)
        return self._kinds[key]

    def categorical(self, key: str) -> Categorical:
        """Open a column as categories; one of numbers is encoded by this call, which takes memory for all cells.

        Raises
        ------
        ValueError
            If there is no such column, or its categories are damaged.
        """
        column = self._opened(key)
        if isinstance(column, Categorical):
            return column
        from dist_scvi.loaders.arrays.obs_columns import categorical_from_values

        return categorical_from_values(key, self.values(key))

    def numeric(self, key: str) -> Numeric:
        """Open a column as numbers.

        Raises
        ------
        ValueError
            If there is no such column, or it holds categories.
        """
        column = self._opened(key)
        if not isinstance(column, Numeric):
            raise ValueError(f"obs column '{key}' of {self._uri} holds categories: a column of numbers is needed")  # noqa: TRY004
        return column

    def codes(self, key: str, rows: Rows = None) -> NDArray[np.int32]:
        """Return codes into ``categorical(key).vocabulary``, -1 where the value is missing, shape (n,)."""
        column = self.categorical(key)
        taken_n = take_rows(column.stored, rows)
        return replace(column, stored=taken_n).codes(0, len(taken_n))

    def values(self, key: str, rows: Rows = None) -> NDArray[Any]:
        """Return the numbers of a column in the type in which they are stored, shape (n,)."""
        return take_rows(self.numeric(key).stored, rows)

    def names(self, rows: Rows = None) -> NDArray[np.object_]:
        """Return the names of cells, shape (n,)."""
        return self._names(rows)

    def to_pandas(self, columns: Sequence[str] | None = None, rows: Rows = None, *, index: bool = True) -> pd.DataFrame:
        """Return columns of obs as a DataFrame.

        Parameters
        ----------
        columns
            Their names; all by default.
        rows
            Rows of the atlas in the order wanted; all by default.
        index
            Use the names of the cells as the index. For many millions of cells this takes more time than all else.
        """
        keys = self.columns() if columns is None else list(columns)
        found = {key: self._series(key, rows) for key in keys}
        n = self.n_cells if rows is None else len(range(self.n_cells)[rows]) if isinstance(rows, slice) else len(rows)
        names = pd.Index(self._names(rows)) if index else pd.RangeIndex(n)
        return pd.DataFrame(found, index=names, columns=keys)

    @overload
    def __getitem__(self, key: str) -> "pd.Series[Any]": ...
    @overload
    def __getitem__(self, key: list[str]) -> pd.DataFrame: ...
    def __getitem__(self, key: str | list[str]) -> "pd.Series[Any] | pd.DataFrame":
        return self.to_pandas([key])[key] if isinstance(key, str) else self.to_pandas(key)

    def __repr__(self) -> str:
        listed = ", ".join(f"{key} ({kind})" for key, kind in self._kinds.items())
        return f"AtlasObs of {self.n_cells} cells: {listed}"

    def _opened(self, key: str) -> Column:
        self.kind(key)
        return self._open(key)

    def _series(self, key: str, rows: Rows) -> Any:
        if self.kind(key) == "numeric":
            return self.values(key, rows)
        return pd.Categorical.from_codes(self.codes(key, rows), categories=pd.Index(self.categorical(key).vocabulary))


def take_rows(stored: Any, rows: Rows) -> NDArray[Any]:
    """Read rows, in the order given, of an array that supports reading ranges."""
    if hasattr(stored, "take") and not isinstance(stored, np.ndarray):
        taken: NDArray[Any] = stored.take(rows)
        return taken
    if rows is None or isinstance(rows, slice):
        return np.asarray(stored[slice(*(rows or slice(None)).indices(len(stored)))])
    unique_n, place_n = np.unique(rows, return_inverse=True)
    parts = [
        np.asarray(stored[int(unique_n[first]) : int(unique_n[last - 1]) + 1])[unique_n[first:last] - unique_n[first]]
        for first, last in near_runs(unique_n, _GAP_ROWS)
    ]
    return np.concatenate(parts or [np.asarray(stored[0:0])])[place_n]
