"""An AnnData on disk, in Zarr or HDF5: both give a tree of named arrays, and one class reads either."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.loaders.arrays.buffers import Buffers
from dist_scvi.loaders.arrays.chunked_array import ChunkedArray
from dist_scvi.loaders.arrays.csr import keep_rows, read_chosen, read_rows
from dist_scvi.loaders.arrays.csr_rows import CsrRows, GeneChoice, concatenate, from_arrays
from dist_scvi.loaders.arrays.obs_columns import Categorical, DamagedError, Numeric, PagedArray, Ranges, read_range
from dist_scvi.loaders.arrays.obs_table import ObsTable, attribute, index_of, read_whole
from dist_scvi.loaders.cell_store import check_not_empty, check_var_names

_RAW = "raw/X"


class AnnDataStore:
    """The counts and obs of an AnnData file.

    Parameters
    ----------
    root
        The opened file, a ``zarr.Group`` or ``h5py.File``.
    array
        Opens the numeric array at a path of `root`; the Zarr side adds native decompression and a check that no chunk
        is missing.
    uri
        Where it lies, for messages.
    layer
        Name in ``layers``, ``raw/X``, or None for ``X``.
    version
        Tells of the state of the file; another answer than at first means that it was written again.
    shuffled
        The rows lie in a random order.
    packed
        Returns the digest of the seed and the sums of a packed store.
    """

    fractional = False

    def __init__(
        self,
        root: Any,
        array: Callable[[str], Any],
        *,
        uri: str,
        layer: str | None,
        version: Callable[[], str],
        shuffled: bool = False,
        packed: Callable[[], str] | None = None,
    ) -> None:
        if attribute(root, "encoding-type") != "anndata" and not ("obs" in root and "var" in root):
            raise ValueError(f"{uri} is no AnnData: groups 'obs' and 'var' are needed, found {_names(root)}")
        self.uri, self.layer, self.shuffled = uri, layer, shuffled
        self._packed = packed
        self._version, self._first_version = version, version()
        self._root, self._array, self._buffers = root, array, Buffers()
        self._path = {None: "X", _RAW: _RAW}.get(layer, f"layers/{layer}")
        if self._path not in root:
            present = ", ".join(self.layers()) or "none"
            raise ValueError(f"{uri} has no {self._path}: layers present are {present}; set data.layer")
        self._where = f"{self._path} of {uri}"
        self._obs = ObsTable(root, array, uri=uri)
        var = root["raw/var"] if layer == _RAW else root["var"]
        self._var = var
        self.var_names = check_var_names(read_whole(index_of(var, uri), uri), uri)
        self.n_cells = self._obs.n_cells
        check_not_empty(self.n_cells, len(self.var_names), self._where)
        matrix = root[self._path]
        encoding = attribute(matrix, "encoding-type")
        if encoding == "csr_matrix":
            self._open_csr(matrix)
        elif encoding in ("array", None) and hasattr(matrix, "shape"):
            self._dense = array(self._path)
            self._check_shape(tuple(self._dense.shape))
            self.n_entries = self.n_cells * len(self.var_names)
            self.chunk_cells = int((self._dense.chunks or (1,))[0])
        else:
            raise ValueError(
                f"{self._where} is stored as {encoding}, rows cannot be read from it: convert it once with "
                "adata.X = scipy.sparse.csr_matrix(adata.X) and save again"
            )

    def read(self, start: int, stop: int) -> CsrRows:
        """Read the counts of rows ``[start, stop)``; see `CellStore`."""
        return self.read_ranges([(start, stop)])

    def read_ranges(
        self, ranges: Ranges, order: NDArray[np.int64] | None = None, choice: GeneChoice | None = None
    ) -> CsrRows:
        """Read several ranges of rows; see `CellStore`."""
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
        """Read by all threads, if the arrays can be and nothing in them calls for a closer look."""
        if not (isinstance(self._data, ChunkedArray) and isinstance(self._indices, ChunkedArray)) or self.fractional:
            return None  # the compiled loops narrow to integers
        if choice is not None:
            rows = read_chosen(self._data, self._indices, starts, choice)
            return rows and rows.take(order)
        given_twice = order is not None and len(order) > 0 and np.bincount(order).max() > 1
        direct, after = (None, order) if given_twice else (order, None)
        rows = read_rows(self._data, self._indices, starts, direct, len(self.var_names), self._buffers)
        return rows and rows.take(after)

    def _is_another(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        try:
            return self._version() != self._first_version
        except FileNotFoundError:
            return True

    def _read_dense(self, start: int, stop: int) -> CsrRows:
        dense = sparse.csr_matrix(read_range(self._dense, start, stop, self.uri))
        return self._checked(dense.data, dense.indices, dense.indptr.astype(np.int64), start)

    def _read_exactly(self, span: tuple[int, int], starts: NDArray[np.int64]) -> CsrRows:
        """Read one range of rows whose counts may be large, or wrong: then the place is named."""
        low, high = int(starts[0]), int(starts[-1])
        data_e = read_range(self._data, low, high, self.uri)
        indices_e = read_range(self._indices, low, high, self.uri)
        return self._checked(data_e, indices_e, starts - low, span[0])

    def _row_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Read where the rows ``[start, stop)`` begin, and where the last one ends."""
        starts = np.asarray(self._indptr[start : stop + 1]).astype(np.int64)
        falls = np.diff(starts) < 0
        if falls.any() or starts[0] < 0 or starts[-1] > self.n_entries:
            row = start + int(np.argmax(falls))
            raise ValueError(
                f"{self._path}/indptr of {self.uri} is damaged at row {row}: it must rise from 0 to {self.n_entries}"
            )
        return starts

    def obs_columns(self) -> list[str]:
        """Names of the obs columns, in the order of the file."""
        return self._obs.columns()

    def categorical(self, key: str) -> Categorical:
        """Open an obs column as categories; see `CellStore`."""
        return self._obs.categorical(key)

    def numeric(self, key: str) -> Numeric:
        """Open an obs column as numbers; see `CellStore`."""
        return self._obs.numeric(key)

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names of the cells ``[start, stop)``."""
        return self._obs.names(start, stop)

    def read_var(self) -> pd.DataFrame:
        """Columns of the genes; see `CellStore`."""
        var: pd.DataFrame = read_whole(self._var, self.uri)
        return var.set_axis(self.var_names)

    def layers(self) -> list[str]:
        """Names of the layers."""
        names = sorted(self._root["layers"].keys()) if "layers" in self._root else []
        return [*names, *([_RAW] if _RAW in self._root else [])]

    def packed_digest(self) -> str | None:
        """Return the digest of the seed and the sums of a packed store; see `CellStore`."""
        return self._packed and self._packed()

    def marked_genes(self, key: str) -> list[str] | None:
        """Names of the genes for which the boolean column `key` of var is set; None if there is no such column."""
        if key not in self._var:
            return None
        marked_g = read_whole(self._var[key], self.uri)
        if marked_g.dtype != bool:
            raise ValueError(f"var column '{key}' of {self.uri} holds {marked_g.dtype}: booleans are needed")
        return [str(name) for name in self.var_names[marked_g]]

    def close(self) -> None:
        """Close the file."""
        if hasattr(self._root, "close"):
            self._root.close()

    _dense: Any = None

    def _open_csr(self, matrix: Any) -> None:
        self._check_shape(tuple(int(size) for size in attribute(matrix, "shape")))
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


def _names(group: Any) -> str:
    return ", ".join(sorted(group.keys())) or "nothing"
