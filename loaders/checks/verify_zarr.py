"""The arrays of a Zarr store, looked at one by one for damage: each can be read whatever became of the others."""

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.chunked_array import ChunkedArray, decoder_of
from dist_scvi.loaders.arrays.csr_rows import CsrRows, count_bits
from dist_scvi.loaders.arrays.objects import LocalObjects
from dist_scvi.loaders.arrays.obs_columns import read_range
from dist_scvi.loaders.arrays.obs_table import attribute, index_of
from dist_scvi.loaders.arrays.pack_manifest import MEMBER, Manifest, PackSums, packed_root, read_manifest, read_sums
from dist_scvi.loaders.checks.lost_rows import Losses, bisect_damage, budget, steps, without

_READ_ENTRIES = 1 << 22
"""Entries read at once."""
_CHECKED = ("crc32", "crc32c", "adler32", "fletcher32", "gzip", "zlib")
"""Codecs that carry a checksum; zstd does if it is asked to."""
_RESTORE = "restore it from a copy or pack the store again"

Torn = tuple[int, int, str]
"""First entry that is lost, last + 1, and why."""
Check = Callable[[NDArray[Any], int], None]
"""Called with values that could be read, and where they begin."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ZarrParts:
    """The arrays of an AnnData in a Zarr folder, each of which can be read whatever became of the others."""

    root: zarr.Group
    folder: Path
    counts: tuple[str, ...]
    """Names of the arrays of the matrix: ``data``, ``indices`` and ``indptr``, or the dense one."""
    index: str
    n_cells: int

    def array(self, name: str) -> Any:
        """Open an array."""
        return self.root[name]

    def absent(self, name: str) -> Iterator[Torn]:
        """Give the ranges of an array whose file is not there, and the name of the file."""
        array = self.array(name)
        length = array.shards or array.chunks
        grid = tuple(-(-size // step) for size, step in zip(array.shape, length, strict=True))
        for place in np.ndindex(grid):
            key = f"{name}/{array.metadata.encode_chunk_key(place)}"
            file = self.folder / key
            if not file.exists() or not file.stat().st_size:
                yield place[0] * length[0], min((place[0] + 1) * length[0], array.shape[0]), key

    def torn(self, name: str, check: Check | None = None) -> Iterator[Torn]:
        """Give what is lost of an array; `check` is called with all the rest."""
        array = self.array(name)
        lost = [] if self.may_lack(name) else list(self.absent(name))
        for low, high, key in lost:
            found = f"{key} is missing or empty (entries {low} to {high - 1})"
            yield low, high, f"{found}: restore it from a copy or write the store again"

        decode = decoder_of(array)
        absent_is_fill = self.may_lack(name)
        reader = decode and ChunkedArray(array, LocalObjects(self.folder), decode, absent_is_fill=absent_is_fill)
        reader = reader or array

        def read(start: int, stop: int) -> None:
            values = read_range(reader, start, stop, str(self.folder))
            if check is not None:
                check(values, start)

        chunk, probes = int(array.chunks[0]), budget()
        for start, stop in steps(array.shape[0], max(chunk, _READ_ENTRIES // chunk * chunk)):
            for low, high in without(start, stop, [(low, high) for low, high, _ in lost]):
                yield from bisect_damage(read, low, high, chunk, probes)

    def may_lack(self, name: str) -> bool:
        """Whether anndata leaves out chunks of an array: those of obs columns in which all is 0."""
        column = name.startswith("obs/") and name != self.index and not name.endswith("/categories")
        return column and not self.array(name).fill_value

    def rows(self, low: int, high: int, unknown: Iterable[tuple[int, int]] = ()) -> tuple[int, int]:
        """Give the rows that the entries ``[low, high)`` belong to, without looking at the `unknown` row starts."""
        known = [range(*span) for span in without(0, self.n_cells + 1, unknown)]
        ends = list(itertools.accumulate(len(rows) for rows in known))

        def row_at(place: int) -> int:
            part = bisect.bisect_right(ends, place)
            return known[part][place - ends[part]]

        def begin(place: int) -> int:
            return self.begin(row_at(place))

        first = bisect.bisect_right(range(ends[-1]), low, key=begin) - 1
        last = bisect.bisect_left(range(ends[-1]), high, key=begin)
        return row_at(first) if first >= 0 else 0, row_at(last) if last < ends[-1] else self.n_cells

    def begin(self, row: int) -> int:
        """Give where the entries of a row begin."""
        return int(read_range(self.array(self.counts[-1]), row, row + 1, str(self.folder))[0])

    def obs_arrays(self) -> list[str]:
        """Names of all arrays of obs."""
        table: Any = self.root["obs"]
        members = table.members(max_depth=None)
        return sorted(f"obs/{name}" for name, node in members if isinstance(node, zarr.Array))

    def unproven(self) -> Iterator[str]:
        """Say what could be damaged and not be seen."""
        arrays = [*self.counts, *self.obs_arrays()]
        bare = [name for name in arrays if not _has_checksum(self.array(name))]
        if bare:
            yield (
                f"{', '.join(bare)} carry no checksum: a flipped bit in them is found only if it breaks decoding or "
                "makes an impossible value"
            )
        for name in filter(self.may_lack, arrays):
            for low, high, key in self.absent(name):
                yield f"{key} is not there (rows {low} to {high - 1}): all is 0 in it, or it was lost"


def open_parts(source: str | Path, layer: str | None) -> ZarrParts | None:
    """Open the arrays of a store one by one; None if it is no Zarr folder, or so damaged that its metadata are lost."""
    path = Path(source).expanduser().resolve()
    if not path.is_dir():
        return None
    name = {None: "X", "raw/X": "raw/X"}.get(layer, f"layers/{layer}")
    try:
        root = zarr.open_group(path, mode="r")
        if packed_root(root) is not root and len(list(root.group_keys())) == 1:  # a collection of one for annbatch
            path = path / MEMBER
            root = zarr.open_group(path, mode="r")
        index = index_of(root["obs"], str(path))
        parts = tuple(f"{name}/{part}" for part in ("data", "indices", "indptr"))
        counts = (name,) if isinstance(root[name], zarr.Array) else parts
        if all(isinstance(root[one], zarr.Array) for one in counts):
            return ZarrParts(root, path, counts, str(index.path), int(index.shape[0]))
    except (FileNotFoundError, KeyError, ValueError, TypeError, AttributeError):
        pass
    return None


def verify_arrays(parts: ZarrParts, losses: Losses, progress: Progress | None) -> None:
    """Look at the arrays of the counts one by one. What they hold cannot be checked so, only whether it can be read."""
    n = parts.n_cells
    unknown: list[tuple[int, int]] = []
    for done, name in enumerate(reversed(parts.counts), 1):  # row starts first, for they say whose entries are lost
        for low, high, why in parts.torn(name):
            if len(parts.counts) == 1:
                losses.add(name, low, high, why)
            elif name == parts.counts[-1]:
                unknown.append((low, high))
                losses.add(name, max(0, low - 1), min(high, n), why)
            else:
                losses.add(name, *parts.rows(low, high, unknown), why)
        if progress is not None:
            progress(n * done // len(parts.counts), n)


def verify_zarr_obs(parts: ZarrParts, losses: Losses) -> None:
    """Look at the arrays of obs one by one."""
    n = parts.n_cells
    table: Any = parts.root["obs"]
    for key in attribute(table, "column-order"):
        if key not in table:
            losses.add(f"obs/{key}", 0, n, "it is not there: write the store again from its source")
    for name in parts.obs_arrays():
        vocabulary = name.endswith("/categories")
        shown = "obs names" if name == parts.index else name
        length = parts.array(name).shape[0]
        if not vocabulary and length != n:
            losses.add(name, 0, n, f"it has {length} values for {n} cells: write the store again from its source")
        for low, high, why in parts.torn(name, _code_check(parts, name, losses)):
            losses.add(shown, *((0, n) if vocabulary else (low, high)), why)


def _code_check(parts: ZarrParts, name: str, losses: Losses) -> Check | None:
    """Give what notes codes that are of no category, if the array holds codes."""
    column = name.removesuffix("/codes")
    if column == name or f"{column}/categories" not in parts.root:
        return None
    n_categories = parts.array(f"{column}/categories").shape[0]

    def check(code_n: NDArray[Any], start: int) -> None:
        wrong = np.flatnonzero((code_n < -1) | (code_n >= n_categories))
        for run in np.split(wrong, np.flatnonzero(np.diff(wrong) > 1) + 1) if len(wrong) else ():
            found = f"code {code_n[run[0]]} for {n_categories} categories: write the store again from its source"
            losses.add(name, start + int(run[0]), start + int(run[-1]) + 1, found)

    return check


class PackedSums:
    """Entries and counts of each block of rows, to be compared with those that were packed."""

    def __init__(self, parts: ZarrParts, manifest: Manifest, packed: PackSums) -> None:
        self._parts, self._manifest, self._packed = parts, manifest, packed
        self._cells, self._entries, self._counts = np.zeros((3, len(packed.block_entries)), dtype=np.int64)

    def add(self, rows: CsrRows, start: int) -> None:
        """Add the rows from `start` on."""
        block_n = np.arange(start, start + rows.n_cells) // self._manifest.block_cells
        np.add.at(self._cells, block_n, 1)
        np.add.at(self._entries, block_n, np.diff(rows.indptr))
        np.add.at(self._counts, block_n, replace(rows, counts_e=count_bits(rows.counts_e)).library_n())

    def compare(self, losses: Losses) -> None:
        """Add the chunks whose counts, or else the blocks whose entries, are not those packed."""
        size, n = self._manifest.block_cells, self._manifest.n_cells
        whole = self._cells == np.minimum(size, n - size * np.arange(len(self._cells)))
        wrong = (self._entries != self._packed.block_entries) | (self._counts != self._packed.block_counts)
        for block in np.flatnonzero(whole & wrong).tolist():
            start, stop = block * size, min((block + 1) * size, n)
            chunks = list(self._wrong_chunks(start, stop))
            for low, high, found in chunks:
                losses.add("X/data", max(low, start), min(high, stop), found)
            if not chunks:
                found = f"{self._entries[block]} entries with {self._counts[block]} counts in all"
                packed = f"{self._packed.block_entries[block]} with {self._packed.block_counts[block]} were packed"
                losses.add("X", start, stop, f"{found}, {packed}: {_RESTORE}")

    def _wrong_chunks(self, start: int, stop: int) -> Iterator[tuple[int, int, str]]:
        """Give the rows of the chunks, of those under the rows given, whose counts are not those packed."""
        size, parts = self._manifest.chunk_entries, self._parts
        for chunk in range(parts.begin(start) // size, -(-parts.begin(stop) // size)):
            low, high = chunk * size, min((chunk + 1) * size, self._manifest.n_entries)
            counts_e = read_range(parts.array("X/data"), low, high, str(parts.folder))
            total = int(count_bits(counts_e).sum(dtype=np.int64))
            packed = self._packed.chunk_counts[chunk]
            if total != packed:
                yield *parts.rows(low, high), f"{total} counts in chunk {chunk}, {packed} were packed: {_RESTORE}"


def packed_sums(parts: ZarrParts, losses: Losses) -> PackedSums | None:
    """Give what compares the sums of a store that was packed; None for another."""
    try:
        manifest = read_manifest(parts.root) if parts.counts[0] == "X/data" else None
        if manifest is None:
            return None
        packed = read_sums(parts.root)
    except ValueError as error:
        losses.add("uns/dist_scvi_pack", 0, 0, str(error))
        return None
    needed = (-(-parts.n_cells // manifest.block_cells), manifest.n_cells)
    if (len(packed.block_entries), parts.n_cells) != needed:
        found = f"it tells of {manifest.n_cells} cells, there are {parts.n_cells}: {_RESTORE}"
        losses.add("uns/dist_scvi_pack", 0, 0, found)
        return None
    return PackedSums(parts, manifest, packed)


def _has_checksum(array: Any) -> bool:
    """Whether one of the codecs of a Zarr array carries a checksum."""
    codecs = (*array.filters, *array.compressors)
    return any(
        str(getattr(codec, "codec_id", type(codec).__name__)).lower().removesuffix("codec") in _CHECKED
        or getattr(codec, "checksum", False)
        for codec in codecs
    )
