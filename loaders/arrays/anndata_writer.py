"""A writer of AnnData in Zarr v3 to which cells are appended, in bounded memory.

Shape letters in this file
    n   cells of one append
    e   stored entries of these cells
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from dist_scvi.loaders.arrays.anndata_layout import (
    check_free,
    code_type,
    finish_table,
    new_array,
    new_categorical,
    new_root,
    new_strings,
    replace_folder,
)
from dist_scvi.loaders.arrays.csr_rows import CsrRows

_CHUNK_CELLS = 64
"""Cells whose entries are decompressed together."""
_CHUNK_ENTRIES = (1024, 1 << 20)
"""Least and most entries of a chunk."""
_SHARD_ENTRIES = 1 << 24
"""Entries of a file: 32 MiB of uint16 counts, 64 MiB of int32 genes, before compression."""
_CHUNK_ROWS = 1 << 13
_SHARD_ROWS = 1 << 20


class AnnDataZarrWriter:
    """A growing AnnData on disk; it appears at `path` complete, when it is closed, or not at all.

    Counts are uint16, or uint32 if one is larger. Genes and row starts are int32 because matrices of scipy need one
    type for both; row starts are int64 from 2**31 entries on. Every chunk has a checksum. Use it as a context manager:
    after an exception all files are removed.

    Parameters
    ----------
    path
        Folder to write.
    var_names
        Gene names, shape (g,).
    categories
        Vocabulary of each categorical obs column.
    numeric
        Names of the obs columns of numbers.
    overwrite
        Replace a Zarr folder at `path`.

    Raises
    ------
    FileExistsError
        If `path` exists and may not be replaced.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        var_names: Sequence[str],
        categories: Mapping[str, Sequence[str]],
        numeric: Sequence[str] = (),
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path).expanduser().resolve()
        check_free(self.path, overwrite=overwrite)
        self.n_cells = 0
        self.n_entries = 0
        self._n_genes = len(var_names)
        self._categories = {key: list(names) for key, names in categories.items()}
        self._numeric = tuple(numeric)
        self._folder = self.path.with_name(f"{self.path.name}.partial")
        if self._folder.exists():  # of a run that was killed
            shutil.rmtree(self._folder)
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._root = new_root(self._folder, list(var_names))
        self._obs, self._x = self._root.create_group("obs"), self._root.create_group("X")
        self._entries: tuple[_Appended, _Appended] | None = None
        self._indptr = _numbers(self._x, "indptr", np.int64, chunk=_CHUNK_ROWS, shard=_SHARD_ROWS)
        self._indptr.append(np.zeros(1, dtype=np.int64))
        self._names = _Appended(
            _CHUNK_ROWS, lambda length, _: new_strings(self._obs, "_index", length, chunk_rows=_CHUNK_ROWS)
        )
        self._columns = {key: self._codes(key) for key in self._categories}
        self._columns |= {
            key: _numbers(self._obs, key, np.float64, chunk=_CHUNK_ROWS, shard=_SHARD_ROWS) for key in self._numeric
        }

    def append(
        self, rows: CsrRows, *, obs_names: Sequence[str] | NDArray[np.object_], obs: Mapping[str, NDArray[Any]]
    ) -> None:
        """Append cells.

        Parameters
        ----------
        rows
            Their counts.
        obs_names
            Their names, shape (n,).
        obs
            Every column: codes into its vocabulary (-1 for a missing value) or numbers, shape (n,).

        Raises
        ------
        ValueError
            If a column is missing, has another length, or contains a code out of range.
        """
        self._check(rows, len(obs_names), obs)
        if rows.n_cells == 0:
            return
        data, indices = self._entries = self._entries or self._open_entries(rows)
        if len(rows.counts_e) and data.dtype == np.uint16 and rows.counts_e.max() >= 1 << 16:
            data = self._retyped("data", data, np.uint32)
            self._entries = data, indices
        data.append(rows.counts_e.astype(data.dtype))
        indices.append(rows.genes_e.astype(indices.dtype))
        self._indptr.append(rows.indptr[1:] + self.n_entries)
        self._names.append(np.asarray(obs_names, dtype=object))
        for key, column in self._columns.items():
            column.append(np.asarray(obs[key]).astype(column.dtype))
        self.n_cells += rows.n_cells
        self.n_entries += len(rows.counts_e)

    def close(self) -> None:
        """Write pending values and move the folder to its path.

        Raises
        ------
        ValueError
            If no cell was added.
        """
        if self._entries is None:
            self.abandon()
            raise ValueError(f"no cell was written to {self.path}: at least one is needed")
        if self.n_entries < 1 << 31:
            self._indptr = self._retyped("indptr", self._indptr, np.int32)
        for column in (*self._entries, self._indptr, self._names, *self._columns.values()):
            column.finish()
        shape = [self.n_cells, self._n_genes]
        self._x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        finish_table(self._obs, list(self._columns))
        replace_folder(self._folder, self.path)

    def abandon(self) -> None:
        """Remove all written files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()
            return
        try:
            self.close()
        except BaseException:
            self.abandon()
            raise

    def _check(self, rows: CsrRows, n_names: int, obs: Mapping[str, NDArray[Any]]) -> None:
        if set(obs) != set(self._columns):
            raise ValueError(f"obs columns {sorted(obs)} were given, {sorted(self._columns)} are needed")
        lengths = {"obs_names": n_names} | {key: len(values) for key, values in obs.items()}
        for key, length in lengths.items():
            if length != rows.n_cells:
                raise ValueError(f"{key} has {length} values for {rows.n_cells} cells: one for each is needed")
        for key, names in self._categories.items():
            codes_n = obs[key]
            if len(codes_n) and not -1 <= codes_n.min() <= codes_n.max() < len(names):
                low, high = codes_n.min(), codes_n.max()
                raise ValueError(f"obs column '{key}' holds codes {low} to {high}: -1 to {len(names) - 1} are needed")
        if len(rows.genes_e) and rows.genes_e.max() >= self._n_genes:
            raise ValueError(f"an entry is of gene {rows.genes_e.max()}: there are {self._n_genes} genes")

    def _open_entries(self, first: CsrRows) -> "tuple[_Appended, _Appended]":
        """Create the arrays of counts and genes, with a chunk length from the entries of the first cells."""
        entries = _CHUNK_CELLS * len(first.counts_e) // first.n_cells
        chunk = min(max(entries, _CHUNK_ENTRIES[0]), _CHUNK_ENTRIES[1])
        shard = _SHARD_ENTRIES // chunk * chunk
        return (
            _numbers(self._x, "data", np.uint16, chunk=chunk, shard=shard),
            _numbers(self._x, "indices", np.int32, chunk=chunk, shard=shard),
        )

    def _retyped(self, name: str, old: "_Appended", dtype: DTypeLike) -> "_Appended":
        """Copy the values written to ``X/name`` so far into an array of another type."""
        new = _numbers(self._x, name, dtype, chunk=old.chunk, shard=old.shard)
        if old.array is not None:
            aside = self._folder / "X" / "aside"
            (self._folder / "X" / name).rename(aside)
            written: Any = self._x["aside"]
            for start in range(0, written.shape[0], old.shard):
                new.append(written[start : start + old.shard].astype(dtype))
            shutil.rmtree(aside)
        for part in old.pending:
            new.append(part.astype(dtype))
        return new

    def _codes(self, key: str) -> "_Appended":
        names = self._categories[key]
        return _Appended(
            _CHUNK_ROWS,
            lambda length, shard: new_categorical(
                self._obs, key, names, length, chunk_rows=_CHUNK_ROWS, shard_rows=shard
            ),
            shard=_SHARD_ROWS,
            dtype=code_type(len(names)),
        )


class _Appended:
    """A one-dimensional array that grows by whole shards; the values of an incomplete shard stay in memory.

    A shard is one file: adding to an incomplete one would rewrite it.

    Parameters
    ----------
    chunk, shard
        Values decompressed together, and values of a file.
    create
        Creates the array on disk, given its first length and the length of a shard. It is called when the first shard
        is full or the array is finished, so that a small array gets a small shard.
    """

    def __init__(
        self,
        chunk: int,
        create: "Callable[[int, int], zarr.Array[Any]]",
        *,
        shard: int | None = None,
        dtype: DTypeLike = object,
    ) -> None:
        self.chunk, self.shard = chunk, shard or chunk
        self.dtype = np.dtype(dtype)
        self.array: zarr.Array[Any] | None = None
        self.pending: list[NDArray[Any]] = []
        self._create = create
        self._waiting = 0

    def append(self, values: NDArray[Any]) -> None:
        """Append `values`."""
        self.pending.append(values)
        self._waiting += len(values)
        if self._waiting >= self.shard:
            joined = np.concatenate(self.pending)
            whole = len(joined) // self.shard * self.shard
            self._store(joined[:whole])
            self.pending, self._waiting = [joined[whole:].copy()], len(joined) - whole

    def finish(self) -> None:
        """Write the values of the incomplete shard."""
        if self._waiting or self.array is None:
            self._store(np.concatenate(self.pending))
            self.pending, self._waiting = [], 0

    def _store(self, values: NDArray[Any]) -> None:
        # zarr's own pipeline: that of zarrs omits chunks that contain only the fill value.
        if self.array is None:
            used = max(1, -(-len(values) // self.chunk)) * self.chunk
            self.array = self._create(len(values), min(self.shard, used))
            self.array[:] = values
        else:
            self.array.append(values)


def _numbers(group: zarr.Group, name: str, dtype: DTypeLike, *, chunk: int, shard: int) -> _Appended:
    def create(length: int, shard_rows: int) -> "zarr.Array[Any]":
        return new_array(group, name, (length,), dtype, chunk_rows=chunk, shard_rows=shard_rows)

    return _Appended(chunk, create, shard=shard, dtype=dtype)
