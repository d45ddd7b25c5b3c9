"""Metadata and small arrays of a Zarr v3 group, made in memory and written as files of an atlas."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from dist_scvi.atlas.store.manifest import ArrayInfo
from dist_scvi.loaders.arrays.anndata_layout import code_type, finish_table, new_array, new_strings

_DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}


class ZarrTree:
    """A group whose large arrays have their chunks written separately.

    All numeric arrays are uncompressed, so that a range of rows is a range of bytes, and chunked by rows.

    Parameters
    ----------
    folder
        Path of the group in the atlas.
    attributes
        Attributes of the group.
    """

    def __init__(self, folder: str, attributes: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self._objects: dict[str, Any] = {}
        self.root = zarr.create_group(MemoryStore(self._objects), zarr_format=3, attributes=attributes or {})
        self.arrays: dict[str, ArrayInfo] = {}

    def files(self) -> dict[str, bytes]:
        """Return all files that are in memory, by their path in the atlas."""
        return {f"{self.folder}/{name}": content.to_bytes() for name, content in self._objects.items()}

    def new_dict(self, name: str) -> None:
        """Create a group of arrays as anndata has them in obsm, layers or uns."""
        self.root.create_group(name, attributes=_DICT)

    def new_array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, chunk_rows: int) -> "zarr.Array[Any]":
        """Create a numeric array without chunks."""
        kind = np.dtype(dtype)
        array = new_array(self.root, name, shape, kind, chunk_rows=max(1, chunk_rows), codecs=())
        self._describe(name, kind.newbyteorder("<").str, shape, max(1, chunk_rows))
        return array

    def new_texts(self, name: str, length: int, chunk_rows: int) -> "zarr.Array[Any]":
        """Create an array of texts without chunks."""
        chunk_rows = max(1, min(chunk_rows, length))
        array = new_strings(self.root, name, length, chunk_rows=chunk_rows, codecs=[ZstdCodec(level=1)])
        self._describe(name, "str", (length,), chunk_rows)
        return array

    def write_array(self, name: str, values: NDArray[Any]) -> None:
        """Create a small array with its values."""
        self.new_array(name, values.shape, values.dtype, len(values))[...] = values

    def write_texts(self, name: str, texts: Sequence[str]) -> None:
        """Create a small array of texts."""
        self.new_texts(name, len(texts), len(texts))[...] = np.array([*texts, None], dtype=object)[:-1]

    def new_categorical(self, name: str, categories: Sequence[str], length: int, chunk_rows: int) -> None:
        """Create a categorical column with its categories and without codes."""
        attributes = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
        self.root.create_group(name, attributes=attributes)
        self.write_texts(f"{name}/categories", categories)
        self.new_array(f"{name}/codes", (length,), code_type(len(categories)), chunk_rows)

    def write_table(self, name: str, index: Sequence[str], table: pd.DataFrame) -> None:
        """Create a small data frame; columns of numbers and bools keep their type, others become texts."""
        self.root.create_group(name)
        self.write_texts(f"{name}/_index", index)
        for key in table.columns:
            column = table[key]
            if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufb":
                self.write_array(f"{name}/{key}", column.to_numpy())
            else:
                self.write_texts(f"{name}/{key}", ["" if pd.isna(value) else str(value) for value in column])
        self.finish_table(name, list(table.columns))

    def finish_table(self, name: str, columns: Sequence[str]) -> None:
        """Mark a group as a data frame."""
        table = self.root[name]
        assert isinstance(table, zarr.Group)
        finish_table(table, columns)

    def _describe(self, name: str, dtype: str, shape: tuple[int, ...], chunk_rows: int) -> None:
        self.arrays[f"{self.folder}/{name}"] = ArrayInfo(dtype=dtype, shape=shape, chunk_rows=chunk_rows)
