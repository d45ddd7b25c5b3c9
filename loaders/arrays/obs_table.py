"""The table of cells in an AnnData file, read by row range."""

from collections.abc import Callable
from typing import Any

import numpy as np
from anndata.io import read_elem
from numpy.typing import NDArray

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


class ObsTable:
    """The obs of an AnnData file.

    Parameters
    ----------
    root
        The opened file, a ``zarr.Group`` or ``h5py.File``.
    array
        Opens the numeric array at a path of `root`.
    uri
        Where it lies, for messages.
    """

    def __init__(self, root: Any, array: Callable[[str], Any], *, uri: str) -> None:
        self._table, self._array, self._uri = root["obs"], array, uri
        self._index = self._opened(index_of(self._table, uri))
        self.n_cells = int(self._index.shape[0])

    def columns(self) -> list[str]:
        """Names of the columns, in the order of the file."""
        return [str(name) for name in attribute(self._table, "column-order")]

    def categorical(self, key: str) -> Categorical:
        """Open a column as categories; one that is not stored as such is encoded now."""
        column = self._column(key)
        if attribute(column, "encoding-type") == "categorical":
            stored = PagedArray(self._array(f"obs/{key}/codes"), self._uri)
            self._check_length(len(stored), key)
            return categorical_from_codes(key, list(read_whole(self._opened(column["categories"]), self._uri)), stored)
        values = read_whole(column, self._uri)
        self._check_length(len(values), key)
        return categorical_from_values(key, values)

    def numeric(self, key: str) -> Numeric:
        """Open a column as numbers."""
        column = self._column(key)
        if not hasattr(column, "dtype") or not np.issubdtype(column.dtype, np.number):
            raise NotNumbersError(
                f"obs column '{key}' of {self._uri} does not hold numbers: name it as a categorical covariate"
            )
        stored = PagedArray(self._array(f"obs/{key}"), self._uri)
        self._check_length(len(stored), key)
        return Numeric(key, stored)

    def names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names of the cells ``[start, stop)``."""
        stored = read_range(self._index, start, stop, self._uri)
        return np.asarray([name.decode() if isinstance(name, bytes) else str(name) for name in stored], dtype=object)

    def _opened(self, node: Any) -> Any:
        """Open an array found in the table the way all others are, so that a lost part of it is noticed."""
        return node if hasattr(node, "keys") else self._array(node.name.strip("/"))

    def _column(self, key: str) -> Any:
        if key not in self.columns():
            raise missing_column(key, self.columns(), self._uri)
        return self._table[key]

    def _check_length(self, length: int, key: str) -> None:
        if length != self.n_cells:
            raise ValueError(
                f"obs/{key} of {self._uri} has {length} values for {self.n_cells} cells: write the store again"
            )


def read_whole(node: Any, uri: str) -> Any:
    """Read a whole column, list of categories or list of names.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    try:
        return read_elem(node)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{node.name.strip('/')} of {uri} cannot be read: it is truncated or damaged ({error}); restore it from a "
            "copy or write the store again"
        ) from error


def attribute(node: Any, name: str) -> Any:
    """Read an attribute of a group or array as text or number."""
    value = node.attrs.get(name)
    return value.decode() if isinstance(value, bytes) else value


def index_of(table: Any, uri: str) -> Any:
    """Give the array that holds the row names of obs or var.

    Raises
    ------
    ValueError
        If `table` is no data frame as anndata writes it now.
    """
    if attribute(table, "encoding-type") != "dataframe":
        name = table.name.strip("/")
        raise ValueError(
            f"{name} of {uri} is in a layout older than AnnData 0.8: read and write it with anndata >= 0.8"
        )
    index = table[attribute(table, "_index")]
    return index["values"] if hasattr(index, "keys") else index  # a nullable string index is a group
