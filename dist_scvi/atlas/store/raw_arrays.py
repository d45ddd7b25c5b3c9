"""Arrays of a minified atlas: uncompressed Zarr chunks, read by byte range, each file checked once when first read.

Shape letters in this file
    n   rows
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.store.manifest import ArrayInfo
from dist_scvi.atlas.store.names import MANIFEST
from dist_scvi.loaders.arrays.codecs import decode_texts
from dist_scvi.loaders.arrays.objects import Objects
from dist_scvi.loaders.arrays.obs_columns import DamagedError

Rows = slice | NDArray[np.int64] | None
"""Rows of an atlas: all, a range, or a list in any order."""

# Rows closer than this are read with one request: 4,096 rows of 20 bytes take as long as the request itself.
_GAP_ROWS, _REMOTE_GAP_ROWS = 4096, 1 << 17


class CheckedFiles:
    """The files that a manifest lists. Each is hashed when a part of it is first read, and not again.

    Thus the first read of a chunk reads all of it; later reads read only their range. All methods may be called from
    many threads; a file may then be hashed twice, with the same result.
    """

    def __init__(self, objects: Objects, listed: Mapping[str, tuple[int, str]]) -> None:
        self.objects, self._listed = objects, listed
        self._checked: set[str] = set()

    def read(self, name: str, start: int, length: int) -> memoryview:
        """Read a range of a file, into memory that the next read of this thread may reuse.

        Raises
        ------
        DamagedError
            If the file is missing, or differs from the manifest.
        """
        if name in self._checked:
            try:
                return self.objects.read(name, start, length)
            except (FileNotFoundError, ValueError) as error:
                raise self._damaged(name, f"cannot be read ({error})") from error
        return self.read_whole(name)[start : start + length]

    def read_whole(self, name: str) -> memoryview:
        """Read a file; see `read`."""
        if name not in self._listed:
            raise self._damaged(name, f"is not named in {MANIFEST}")
        size, digest = self._listed[name]
        found = self.objects.size(name)
        if found != size:
            problem = "is missing" if found is None else f"has {found} bytes, {MANIFEST} says {size}"
            raise self._damaged(name, problem)
        content = memoryview(self.objects.read_whole(name))
        if hashlib.sha256(content).hexdigest() != digest:
            raise self._damaged(name, f"is damaged or of another atlas: its SHA-256 is not that in {MANIFEST}")
        self._checked.add(name)
        return content

    def _damaged(self, name: str, problem: str) -> DamagedError:
        return DamagedError(f"{self.objects.uri}/{name} {problem}; restore it from a copy or minify again")


class RawArray:
    """A numeric array of an atlas; also the ``stored`` of an obs column.

    Raises
    ------
    DamagedError
        If the manifest describes no such array.
    """

    def __init__(self, files: CheckedFiles, name: str, arrays: Mapping[str, ArrayInfo]) -> None:
        self.name, self._files = name, files
        try:
            info = arrays[name]
            self.dtype = np.dtype(info.dtype)
        except (KeyError, TypeError) as error:
            raise DamagedError(f"{MANIFEST} of {files.objects.uri} describes no array {name} ({error!r})") from error
        self.shape, self.chunks = info.shape, (info.chunk_rows, *info.shape[1:])
        self._row_bytes = self.dtype.itemsize * int(np.prod(info.shape[1:], dtype=np.int64))
        self._key_end = "/0" * (len(info.shape) - 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(len(self))
        return self.read(start, stop)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read the rows ``[start, stop)``."""
        out_n = np.empty((max(0, stop - start), *self.shape[1:]), dtype=self.dtype)
        step = self.chunks[0]
        for low in range(start // step * step, stop, step) if stop > start else ():
            first, last = max(low, start), min(low + step, stop)
            content = self._files.read(
                f"{self.name}/c/{low // step}{self._key_end}",
                (first - low) * self._row_bytes,
                (last - first) * self._row_bytes,
            )
            values = np.frombuffer(content, dtype=self.dtype)
            out_n[first - start : last - start] = values.reshape(last - first, *self.shape[1:])
        return out_n

    def take(self, rows: Rows) -> NDArray[Any]:
        """Read rows in the order given; a row may be given several times."""
        if rows is None:
            return self.read(0, len(self))
        if isinstance(rows, slice):
            return self[rows]
        # Each row is read once and in ascending order, whatever the order of the request: near rows then share a read.
        unique_n, place_n = np.unique(rows, return_inverse=True)
        out_n = np.empty((len(unique_n), *self.shape[1:]), dtype=self.dtype)
        gap = _REMOTE_GAP_ROWS if self._files.objects.remote else _GAP_ROWS
        for first, last in near_runs(unique_n, min(gap, self.chunks[0])):
            low, high = int(unique_n[first]), int(unique_n[last - 1]) + 1
            out_n[first:last] = self.read(low, high)[unique_n[first:last] - low]
        return out_n[place_n]


def near_runs(row_n: NDArray[np.int64], gap: int) -> Iterator[tuple[int, int]]:
    """Split ascending rows at gaps of more than `gap` rows: yield the first index and the last + 1 of each part."""
    cuts = np.flatnonzero(np.diff(row_n) > gap) + 1
    borders = [0, *cuts.tolist(), len(row_n)] if len(row_n) else [0]
    yield from itertools.pairwise(borders)


class TextArray:
    """An array of texts of an atlas; a few decoded chunks are cached."""

    def __init__(self, files: CheckedFiles, name: str, arrays: Mapping[str, ArrayInfo]) -> None:
        if name not in arrays:
            raise DamagedError(f"{MANIFEST} of {files.objects.uri} describes no array {name}")
        self.name, self._files, self._info = name, files, arrays[name]
        self._chunk = lru_cache(2)(self._read_chunk)

    def __len__(self) -> int:
        return self._info.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.object_]:
        start, stop, _ = rows.indices(len(self))
        step = self._info.chunk_rows
        parts = [
            self._chunk(low // step)[max(0, start - low) : stop - low]
            for low in range(start // step * step, stop, step)
            if stop > start
        ]
        return np.concatenate([np.zeros(0, dtype=object), *parts])

    def take(self, rows: Rows) -> NDArray[np.object_]:
        """Read rows in the order given."""
        if rows is None or isinstance(rows, slice):
            return self[rows or slice(None)]
        unique_n, place_n = np.unique(rows, return_inverse=True)
        step = self._info.chunk_rows
        out_n = np.empty(len(unique_n), dtype=object)
        for chunk in np.unique(unique_n // step).tolist():
            first, last = np.searchsorted(unique_n, [chunk * step, (chunk + 1) * step])
            out_n[first:last] = self._chunk(chunk)[unique_n[first:last] - chunk * step]
        return out_n[place_n]

    def _read_chunk(self, chunk: int) -> NDArray[np.object_]:
        return decode_texts(self._files.read_whole(f"{self.name}/c/{chunk}"))
