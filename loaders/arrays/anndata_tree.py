"""An AnnData file as a tree of named groups and arrays, with the encoding and version that anndata wrote for each.

Zarr and HDF5 files both provide such a tree, so that the same code reads them. Unknown encodings and versions are
refused: anndata 0.7 wrote category codes that look like numbers, and a reader that guesses would treat equal codes of
two files as the same value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.obs_columns import read_range
from dist_scvi.loaders.arrays.printable import printable

MAX_NAMES = 1 << 22
"""Most genes, or categories of a column: all their names are kept in memory. A larger number is treated as damage."""

_VERSIONS = {
    "anndata": ("0.1.0",),
    "raw": ("0.1.0",),
    "dict": ("0.1.0",),
    "dataframe": ("0.1.0", "0.2.0"),  # 0.1.0 is that of anndata 0.7
    "csr_matrix": ("0.1.0",),
    "csc_matrix": ("0.1.0",),
    "array": ("0.2.0",),
    "string-array": ("0.2.0",),
    "categorical": ("0.2.0",),
    "nullable-integer": ("0.1.0",),
    "nullable-boolean": ("0.1.0",),
    "nullable-string-array": ("0.1.0",),
}
"""Supported versions of each encoding: those of anndata 0.7 to 0.13 (``anndata/_io/specs/methods.py``)."""


class Tree(Protocol):
    """The groups and arrays of a file, by paths such as ``obs/batch/codes``."""

    uri: str

    def kind(self, path: str) -> Literal["group", "array"] | None:
        """Return the kind of the node at `path`, None if there is none.

        Raises
        ------
        ValueError
            If the node is damaged, or is outside of the file.
        """
        ...

    def attribute(self, path: str, name: str) -> Any:
        """Return an attribute as text, number or list of these, None if there is none."""
        ...

    def names(self, path: str) -> list[str]:
        """Return the names of the members of a group."""
        ...


class OpenArray(Protocol):
    """Opens the array at a path of a tree: with ``shape``, ``dtype``, ``chunks``, and sliced by rows."""

    def __call__(self, path: str, /) -> Any:
        """Open it."""
        ...


def encoding_of(tree: Tree, path: str) -> str:
    """Return the encoding of a group or array, empty if it has none, as those written by anndata before 0.8.

    Raises
    ------
    ValueError
        If the encoding or its version is not supported.
    """
    kind, version = tree.attribute(path, "encoding-type"), tree.attribute(path, "encoding-version")
    if kind is None and version is None:
        return ""
    known = _VERSIONS.get(kind, ()) if isinstance(kind, str) else ()
    if version not in known:
        wanted = f"of which version {' or '.join(known)} is read" if known else "which is not read here"
        raise ValueError(
            f"{path or 'the root'} of {tree.uri} has encoding-type {printable(repr(kind))} and encoding-version "
            f"{printable(repr(version))}, {wanted}: it is damaged, or of a release of anndata that is not known "
            "here; read it with that anndata and save it with anndata 0.8 to 0.13"
        )
    return str(kind)


@dataclass(frozen=True, slots=True)
class Column:
    """Paths of the parts of a column of obs or var."""

    kind: Literal["categorical", "masked", "plain"]
    values: str
    """Array of the values, or of the codes of categories."""
    categories: str = ""
    mask: str = ""
    """Boolean array, true for missing values."""


def find_column(tree: Tree, path: str) -> Column:
    """Find the parts of the column, or index, at `path`.

    Raises
    ------
    ValueError
        If it is missing, or its encoding is not supported.
    """
    node, encoding = tree.kind(path), encoding_of(tree, path) if tree.kind(path) else ""
    if node is None:
        raise ValueError(
            f"{path} of {tree.uri} is missing, though the table lists it: the store is damaged, write it again from "
            "its source"
        )
    if node == "array":
        categories = tree.attribute(path, "categories")
        if categories is not None:  # of anndata 0.7: a reference in HDF5, a path from the table in Zarr
            target = _within(path.rpartition("/")[0], categories, path, tree)
            return _with_parts(tree, Column("categorical", path, categories=target))
        if encoding in ("", "array", "string-array"):
            return Column("plain", path)
    elif encoding == "categorical":
        return _with_parts(tree, Column("categorical", f"{path}/codes", categories=f"{path}/categories"))
    elif encoding.startswith("nullable-"):
        return _with_parts(tree, Column("masked", f"{path}/values", mask=f"{path}/mask"))
    found = f"as {encoding!r}" if encoding else "without encoding-type"
    raise ValueError(
        f"{path} of {tree.uri} is {'an array' if node == 'array' else 'a group'} stored {found}: columns of "
        "categories, numbers, booleans or texts are read; it is damaged, or should be removed from the table"
    )


def _within(table: str, target: object, path: str, tree: Tree) -> str:
    text = str(target)
    found = text.removeprefix("/") if text.startswith("/") else f"{table}/{text}"
    if not isinstance(target, str) or ".." in found.split("/"):
        raise ValueError(
            f"the attribute 'categories' of {path} of {tree.uri} is {printable(target)!r}: the array of its categories "
            "in this file is needed; restore the file from a copy"
        )
    return found


def _with_parts(tree: Tree, column: Column) -> Column:
    for part in filter(None, (column.values, column.categories, column.mask)):
        if tree.kind(part) != "array":
            raise ValueError(
                f"{part} of {tree.uri} is missing or no array: the store is damaged, write it again from its source"
            )
        if encoding_of(tree, part) not in ("", "array", "string-array"):
            raise ValueError(
                f"{part} of {tree.uri} is stored as {encoding_of(tree, part)!r}: an array is needed; write the store "
                "again from its source"
            )
    return column


def index_path(tree: Tree, table: str) -> str:
    """Return the path of the row names of ``obs`` or ``var``.

    Raises
    ------
    ValueError
        If `table` is not a data frame written by anndata 0.7 or later.
    """
    if tree.kind(table) != "group" or encoding_of(tree, table) != "dataframe":
        raise ValueError(
            f"{table} of {tree.uri} is no data frame of AnnData 0.7 or later (encoding-type 'dataframe' is needed): "
            "read it with anndata and save it again"
        )
    name = tree.attribute(table, "_index")
    if not isinstance(name, str):
        raise ValueError(  # noqa: TRY004
            f"{table} of {tree.uri} does not name its index (attribute '_index'): restore it from a copy"
        )
    return f"{table}/{name}"


def column_order(tree: Tree, table: str) -> list[str]:
    """Return the names of the columns of ``obs`` or ``var``, in the order of the file.

    Raises
    ------
    ValueError
        If the attribute that lists them is damaged.
    """
    names = tree.attribute(table, "column-order")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{table} of {tree.uri} does not list its columns (attribute 'column-order'): restore it from a copy or "
            "write the store again"
        )
    return names


class Names:
    """Row names of ``obs`` or ``var``, read by range: strings, categories, or nullable strings."""

    def __init__(self, tree: Tree, table: str, open_array: OpenArray) -> None:
        column = find_column(tree, index_path(tree, table))
        self._uri, self._array = tree.uri, open_array(column.values)
        self.path = column.values
        self.shape = (_length(self._array, column.values, tree.uri),)
        self._categories = read_names(open_array, column.categories, tree.uri) if column.categories else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.object_]:
        start, stop, _ = rows.indices(len(self))
        stored = read_range(self._array, start, stop, self._uri)
        if self._categories is None:
            return texts(stored, self.path, self._uri)
        wrong = (stored < 0) | (stored >= len(self._categories))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(
                f"{self.path} of {self._uri} holds no name at row {start + at}: name every row, save again"
            )
        return texts(np.asarray(self._categories, dtype=object)[stored], self.path, self._uri)


def read_names(open_array: OpenArray, path: str, uri: str) -> Sequence[Any]:
    """Read all categories or names of an array, as strings, numbers or booleans.

    Raises
    ------
    ValueError
        If it cannot be read, or has more than `MAX_NAMES` values.
    """
    array = open_array(path)
    length = _length(array, path, uri)
    if length > MAX_NAMES:
        raise ValueError(
            f"{path} of {uri} has {length:,} values, at most {MAX_NAMES:,} are read: the store is damaged, or this is "
            "no column of categories"
        )
    values = read_range(array, 0, length, uri)
    return list(values) if values.dtype.kind in "iufb" else list(texts(values, path, uri))


def texts(stored: NDArray[Any], path: str, uri: str) -> NDArray[np.object_]:
    """Return names, stored as bytes, strings or numbers, as strings.

    Raises
    ------
    ValueError
        If bytes are not UTF-8.
    """
    try:
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in stored.tolist()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} of {uri} is not UTF-8 ({error}): it is damaged, restore it from a copy or write the store again"
        ) from error
    result = np.empty(len(names), dtype=object)
    result[:] = names
    return result


def _length(array: Any, path: str, uri: str) -> int:
    if len(array.shape) != 1:
        raise ValueError(f"{path} of {uri} has shape {tuple(array.shape)}: one value a row is needed, save it again")
    return int(array.shape[0])
