"""An AnnData on disk, in Zarr or HDF5: both provide a tree of named arrays, and one class reads both."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.anndata_tree import MAX_NAMES, Names, OpenArray, Tree, encoding_of
from dist_scvi.loaders.arrays.chunked_array import ChunkedArray
from dist_scvi.loaders.arrays.csr import Buffers, keep_rows, read_chosen, read_rows
from dist_scvi.loaders.arrays.csr_rows import CsrRows, GeneChoice, concatenate, from_arrays, from_dense
from dist_scvi.loaders.arrays.obs_columns import Categorical, DamagedError, Numeric, PagedArray, Ranges, read_range
from dist_scvi.loaders.arrays.obs_table import ObsTable, read_columns
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.loaders.cell_store import check_not_empty, check_var_names
from dist_scvi.loaders.stores.memory_store import FrameTable

_RAW = "raw/X"
_ROOTS = ("", "anndata")


class FileTree(Tree, Protocol):
    """The tree of a file, with a description of arrays whose chunks are not all stored."""

    lacking: dict[str, str]


class AnnDataStore:
    """The counts and obs of an AnnData file.

    Parameters
    ----------
    tree
        The opened file.
    open_array
        Opens the array at a path of `tree`; for Zarr with native decompression and a check that no chunk is missing.
    layer
        Name in ``layers``, ``raw/X``, or None for ``X``.
    version
        Returns a text that changes when the file is written again.
    shuffled
        Whether the rows are in a random order.
    packed
        Returns the digest of the seed and the sums of a packed store.
    close
        Closes the file.
    obs, var_names
        Used instead of those in the file.
    """

    fractional = False

    def __init__(
        self,
        tree: FileTree,
        open_array: OpenArray,
        *,
        layer: str | None,
        version: Callable[[], str],
        shuffled: bool = False,
        packed: Callable[[], str] | None = None,
        close: Callable[[], None] = lambda: None,
        obs: FrameTable | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        uri = tree.uri
        self.uri, self.layer, self.shuffled = uri, layer, shuffled
        self._packed, self._close = packed, close
        self._version, self._first_version = version, version()
        self._tree, self._array, self._buffers = tree, open_array, Buffers()
        self._check_root()
        self._path = {None: "X", _RAW: _RAW}.get(layer, f"layers/{layer}")
        if tree.kind(self._path) is None:
            present = ", ".join(map(printable, self.layers())) or "none"
            raise ValueError(f"{uri} has no {self._path}: layers present are {present}; set data.layer")
        self._where = f"{self._path} of {uri}"
        self._obs = obs if obs is not None else ObsTable(tree, open_array, uri=uri)
        self._var = "raw/var" if layer == _RAW else "var"
        self.n_cells = self._obs.n_cells
        self.var_names = self._read_var_names() if var_names is None else check_var_names(var_names, uri)
        check_not_empty(self.n_cells, len(self.var_names), self._where)
        self._open_matrix()

    def _check_root(self) -> None:
        encoding = encoding_of(self._tree, "")
        if encoding not in _ROOTS or not (self._tree.kind("obs") and self._tree.kind("var")):
            names = self._tree.names("")
            listed = ", ".join(map(printable, names[:20])) or "nothing"
            raise ValueError(f"{self.uri} is no AnnData: groups 'obs' and 'var' are needed, found {listed}")

    def _read_var_names(self) -> NDArray[np.object_]:
        names = Names(self._tree, self._var, self._array)
        if len(names) > MAX_NAMES:
            raise ValueError(
                f"{self._var} of {self.uri} claims {len(names):,} genes, at most {MAX_NAMES:,} are read: the store is "
                "damaged, restore it from a copy"
            )
        return check_var_names(names[:], self.uri)

    def _open_matrix(self) -> None:
        encoding = encoding_of(self._tree, self._path)
        group = self._tree.kind(self._path) == "group"
        if encoding == "csr_matrix" and group:
            self._open_csr()
        elif encoding in ("array", "") and not group:
            self._dense = self._array(self._path)
            self._check_shape(tuple(self._dense.shape))
            self.n_entries = self.n_cells * len(self.var_names)
            self.chunk_cells = int((self._dense.chunks or (1,))[0])
        else:
            raise ValueError(
                f"{self._where} is stored as {encoding or 'a group without encoding-type'}, rows cannot be read from "
                f"it: {self._conversion()}"
            )

    def _conversion(self) -> str:
        """Return advice on how to store this matrix by rows."""
        if self.layer == _RAW:
            return (
                "convert it once with raw = adata.raw.to_adata(); raw.X = scipy.sparse.csr_matrix(raw.X); adata.raw = "
                "raw and save again"
            )
        matrix = "adata.X" if self.layer is None else f'adata.layers["{printable(self.layer)}"]'
        return f"convert it once with {matrix} = scipy.sparse.csr_matrix({matrix}) and save again"

    def limits(self) -> tuple[str, ...]:
        """Return a description of the chunks that are not stored; see `CellStore`."""
        return tuple(f"{path} of {self.uri}: {found}" for path, found in self._tree.lacking.items())

    def read(self, start: int, stop: int) -> CsrRows:
        """Read the counts of rows ``[start, stop)``; see `CellStore`."""
        return self.read_ranges([(start, stop)])

    def read_ranges(
        self, ranges: Ranges, order: NDArray[np.int64] | None = None, choice: GeneChoice | None = None
    ) -> CsrRows:
        """Read several ranges of rows; see `CellStore`."""
        # The file may be replaced during a run of days: row starts in the cache would not match new entries.
        if self._is_another():
            raise DamagedError(
                f"{self.uri} was written again since it was opened: what is read now may not fit what was read before; "
                "start again"
            )
        if self._dense is not None:
            rows = concatenate([self._read_dense(start, stop) for start, stop in ranges])
            return keep_rows(rows.take(order), choice)
        starts = [self._row_starts(start, stop) for start, stop in ranges]
        read = self._read_directly(starts, order, choice)
        if read is not None:
            return read
        rows = concatenate([self._read_exactly(*one) for one in zip(ranges, starts, strict=True)])
        return keep_rows(rows.take(order), choice)

    def _read_directly(
        self, starts: list[NDArray[np.int64]], order: NDArray[np.int64] | None, choice: GeneChoice | None
    ) -> CsrRows | None:
        """Read in all threads, or return None if the rows need the slower, more detailed reader."""
        if not (isinstance(self._data, ChunkedArray) and isinstance(self._indices, ChunkedArray)) or self.fractional:
            return None  # the compiled loops narrow to integers
        if choice is not None:
            rows = read_chosen(self._data, self._indices, starts, choice)
            return rows and rows.take(order)
        # `read_rows` copies each row to one place only. Rows requested several times are copied again afterwards.
        given_twice = order is not None and len(order) > 0 and np.bincount(order).max() > 1
        direct, after = (None, order) if given_twice else (order, None)
        rows = read_rows(self._data, self._indices, starts, direct, len(self.var_names), self._buffers)
        return rows and rows.take(after)

    def _is_another(self) -> bool:
        """Return whether the file is no longer the one that was opened."""
        try:
            return self._version() != self._first_version
        except FileNotFoundError:
            return True

    def _read_dense(self, start: int, stop: int) -> CsrRows:
        dense_ng = read_range(self._dense, start, stop, self.uri)
        return from_dense(dense_ng, first_row=start, where=self._where, fractional=self.fractional)

    def _read_exactly(self, span: tuple[int, int], starts: NDArray[np.int64]) -> CsrRows:
        """Read one range of rows with large counts accepted; errors name the row."""
        low, high = int(starts[0]), int(starts[-1])
        data_e = read_range(self._data, low, high, self.uri)
        indices_e = read_range(self._indices, low, high, self.uri)
        return self._checked(data_e, indices_e, starts - low, span[0])

    def _row_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the start of each row of ``[start, stop)``, and the end of the last."""
        starts = np.asarray(self._indptr[start : stop + 1]).astype(np.int64)
        falls = np.diff(starts) < 0
        # A row has each gene at most once. Without this bound, a damaged start could request 10^15 entries at once.
        falls |= np.diff(starts) > len(self.var_names)
        if falls.any() or starts[0] < 0 or starts[-1] > self.n_entries:
            row = start + int(np.argmax(falls))
            raise ValueError(
                f"{self._path}/indptr of {self.uri} is damaged at row {row}: it must rise from 0 to {self.n_entries}, "
                f"by {len(self.var_names)} a row at most; restore it from a copy or write the store again"
            )
        return starts

    def obs_columns(self) -> list[str]:
        """Return the names of the obs columns, in the order of the file."""
        return self._obs.columns()

    def categorical(self, key: str) -> Categorical:
        """Open an obs column as categories; see `CellStore`."""
        return self._obs.categorical(key)

    def numeric(self, key: str) -> Numeric:
        """Open an obs column as numbers; see `CellStore`."""
        return self._obs.numeric(key)

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Return the names of the cells ``[start, stop)``."""
        return self._obs.names(start, stop)

    def read_var(self) -> pd.DataFrame:
        """Columns of the genes; see `CellStore`."""
        return read_columns(self._tree, self._var, self._array, self.var_names)

    def layers(self) -> list[str]:
        """Return the names of the layers."""
        names = self._tree.names("layers") if self._tree.kind("layers") == "group" else []
        return [*names, *([_RAW] if self._tree.kind(_RAW) else [])]

    def packed_digest(self) -> str | None:
        """Return the digest of the seed and the sums of a packed store; see `CellStore`."""
        return self._packed and self._packed()

    def marked_genes(self, key: str) -> list[str] | None:
        """Names of the genes for which the boolean column `key` of var is true; None if there is no such column."""
        path = f"{self._var}/{key}"
        if self._tree.kind(path) is None:
            return None
        array = self._array(path) if self._tree.kind(path) == "array" else None
        if array is None or array.dtype != bool or tuple(array.shape) != (len(self.var_names),):
            kind = "a group" if array is None else f"{array.dtype}, shape {tuple(array.shape)}"
            raise ValueError(
                f"var column '{printable(key)}' of {self.uri} holds {kind}: a boolean for each of "
                f"{len(self.var_names)} genes is needed"
            )
        return [str(name) for name in self.var_names[read_range(array, 0, len(self.var_names), self.uri)]]

    def close(self) -> None:
        """Close the file."""
        self._close()

    _dense: Any = None

    def _open_csr(self) -> None:
        shape = self._tree.attribute(self._path, "shape")
        if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
            raise ValueError(f"{self._where} does not say its shape (attribute 'shape'): restore it from a copy")
        self._check_shape(tuple(shape))
        self._data, self._indices = self._array(f"{self._path}/data"), self._array(f"{self._path}/indices")
        self._indptr = PagedArray(self._array(f"{self._path}/indptr"), self.uri)
        self.n_entries = int(self._data.shape[0])
        self.chunk_cells = max(1, self.n_cells * int((self._data.chunks or (1,))[0]) // max(1, self.n_entries))
        lengths = (len(self._indptr), int(self._indices.shape[0]))
        if lengths != (self.n_cells + 1, self.n_entries):
            raise ValueError(
                f"{self._where} disagrees with itself: data holds {self.n_entries} entries, indices {lengths[1]}, "
                f"indptr {lengths[0]} for {self.n_cells} cells (needed {self.n_cells + 1}); write the store again from "
                "its source"
            )
        first, last = int(self._indptr[0:1][0]), int(self._indptr[self.n_cells : self.n_cells + 1][0])
        if (first, last) != (0, self.n_entries):
            raise ValueError(
                f"{self._path}/indptr of {self.uri} runs from {first} to {last}, there are {self.n_entries} entries: "
                "the store is damaged or half written, write it again from its source"
            )

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if shape != (self.n_cells, len(self.var_names)):
            raise ValueError(
                f"{self._where} has shape {shape} but obs has {self.n_cells} rows and var {len(self.var_names)}: "
                "write the store again from its source"
            )

    def _checked(
        self, data_e: NDArray[Any], indices_e: NDArray[Any], indptr: NDArray[np.int64], first_row: int
    ) -> CsrRows:
        return from_arrays(
            data_e,
            indices_e,
            indptr,
            n_genes=len(self.var_names),
            first_row=first_row,
            where=self._where,
            fractional=self.fractional,
        )
