"""The table of cells in an AnnData file, read by row range."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.anndata_tree import (
    Column,
    Names,
    OpenArray,
    Tree,
    column_order,
    find_column,
    read_names,
    texts,
)
from dist_scvi.loaders.arrays.obs_columns import (
    Categorical,
    NotNumbersError,
    Numeric,
    PagedArray,
    categorical_from_codes,
    categorical_from_values,
    missing_column,
    read_range,
)
from dist_scvi.loaders.arrays.printable import printable


class ObsTable:
    """The obs of an AnnData file.

    Parameters
    ----------
    tree
        The file.
    open_array
        Opens the array at a path of `tree`.
    uri
        Path or URL of the file, for messages.
    """

    def __init__(self, tree: Tree, open_array: OpenArray, *, uri: str) -> None:
        self._tree, self._array, self._uri = tree, open_array, uri
        self._names = Names(tree, "obs", open_array)
        self._columns = column_order(tree, "obs")
        self.n_cells = len(self._names)

    def columns(self) -> list[str]:
        """Return the names of the columns, in the order of the file."""
        return list(self._columns)

    def categorical(self, key: str) -> Categorical:
        """Open a column as categories; a column that is not stored as categories is encoded now."""
        column = self._column(key)
        if column.kind == "categorical":
            stored = PagedArray(self._array(column.values), self._uri)
            self._check(stored.dtype, stored.shape, key, "iu")
            return categorical_from_codes(key, read_names(self._array, column.categories, self._uri), stored)
        values = self._whole(column.values, key)
        missing_n = self._whole(column.mask, key) if column.mask else None
        return categorical_from_values(key, values, missing_n)

    def numeric(self, key: str) -> Numeric:
        """Open a column as numbers."""
        column = self._column(key)
        array = self._array(column.values)
        if column.kind == "categorical" or array.dtype.kind not in "iuf":
            raise NotNumbersError(
                f"obs column '{printable(key)}' of {self._uri} does not hold numbers: name it as a categorical "
                "covariate"
            )
        stored = PagedArray(array, self._uri)
        self._check(stored.dtype, stored.shape, key, "iuf")
        if not column.mask:
            return Numeric(key, stored)
        mask = PagedArray(self._array(column.mask), self._uri)
        self._check(mask.dtype, mask.shape, key, "b")
        return Numeric(key, _Masked(stored, mask))

    def names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Return the names of the cells ``[start, stop)``."""
        return self._names[start:stop]

    def _column(self, key: str) -> Column:
        if key not in self._columns:
            raise missing_column(key, self._columns, self._uri)
        return find_column(self._tree, f"obs/{key}")

    def _whole(self, path: str, key: str) -> NDArray[Any]:
        array = self._array(path)
        self._check(array.dtype, tuple(array.shape), key, "iufbOSUT")
        values = read_range(array, 0, self.n_cells, self._uri)
        return values if values.dtype.kind in "iufb" else texts(values, path, self._uri)

    def _check(self, dtype: np.dtype[Any], shape: tuple[int, ...], key: str, kinds: str) -> None:
        if shape != (self.n_cells,):
            found = f"{shape[0]} values" if len(shape) == 1 else f"shape {shape}"
            raise ValueError(
                f"obs/{printable(key)} of {self._uri} has {found} for {self.n_cells} cells: write the store again"
            )
        if dtype.kind not in kinds:
            raise ValueError(
                f"obs/{printable(key)} of {self._uri} is of type {dtype}: categories, numbers, booleans or texts are "
                "needed; convert the column and save again"
            )


@dataclass(frozen=True, slots=True)
class _Masked:
    """Numbers with missing values, which are NaN; `Numeric` refuses these with the row."""

    values: PagedArray
    mask: PagedArray

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> NDArray[np.float64]:
        return np.where(self.mask[rows], np.nan, self.values[rows].astype(np.float64))


def read_columns(tree: Tree, table: str, open_array: OpenArray, names: NDArray[np.object_]) -> pd.DataFrame:
    """Return the columns of var, with `names` as index, without those that cannot be read.

    Raises
    ------
    ValueError
        If the list of columns is damaged.
    """
    found: dict[str, Any] = {}
    for key in column_order(tree, table):
        with suppress(ValueError):
            column = find_column(tree, f"{table}/{key}")
            array = open_array(column.values)
            if tuple(array.shape) != (len(names),):
                continue
            values = read_range(array, 0, len(names), tree.uri)
            if column.categories:
                categories: Any = read_names(open_array, column.categories, tree.uri)
                found[key] = pd.Categorical.from_codes(values.astype(np.int64), categories)
            else:
                found[key] = values if values.dtype.kind in "iufb" else texts(values, column.values, tree.uri)
    return pd.DataFrame(found, index=names)
