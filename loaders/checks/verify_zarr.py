"""A check of each array of a Zarr store for damage; each can be read even if others are damaged."""

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.anndata_tree import Column, column_order, find_column, index_path
from dist_scvi.loaders.arrays.chunked_array import ChunkedArray, decoder_of
from dist_scvi.loaders.arrays.csr_rows import CsrRows, count_bits
from dist_scvi.loaders.arrays.objects import LocalObjects
from dist_scvi.loaders.arrays.obs_columns import read_range
from dist_scvi.loaders.arrays.pack_manifest import MEMBER, Manifest, PackSums, packed_root, read_manifest, read_sums
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.loaders.arrays.zarr_access import absent_chunks, layout_of, open_zarr_group
from dist_scvi.loaders.checks.lost_rows import Losses, bisect_damage, budget, steps, without
from dist_scvi.loaders.read_limits import READ_ENTRIES
from dist_scvi.loaders.stores.zarr_store import ZarrTree, may_be_left_out, open_array_of

_CHECKED = ("crc32", "crc32c", "adler32", "fletcher32", "gzip", "zlib")
"""Codecs with a checksum; zstd has one as an option."""
_RESTORE = "restore it from a copy or pack the store again"

Torn = tuple[int, int, str]
"""First entry that is lost, last + 1, and why."""
Check = Callable[[NDArray[Any], int], None]
"""Called with values that were read, and the position of the first."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ZarrParts:
    """The arrays of an AnnData in a Zarr folder; each can be read even if others are damaged."""

    root: zarr.Group
    folder: Path
    counts: tuple[str, ...]
    """Names of the arrays of the matrix: ``data``, ``indices`` and ``indptr``, or the dense one."""
    index: str
    n_cells: int

    def array(self, name: str) -> Any:
        """Open an array.

        Raises
        ------
        ValueError
            If it is missing.
        """
        return open_array_of(self.root, name)

    @property
    def tree(self) -> ZarrTree:
        """The groups and arrays of the folder."""
        return ZarrTree(self.root, str(self.folder))

    def torn(self, name: str, check: Check | None = None) -> Iterator[Torn]:
        """Yield the lost parts of an array; `check` is called with all other values."""
        array = self.array(name)
        absent = absent_chunks(array)[0]
        may_lack = self.may_lack(name)
        for one in () if may_lack else absent:
            found = f"{one.key} is missing (entries {one.start} to {one.stop - 1})"
            yield one.start, one.stop, f"{found}: restore it from a copy or write the store again"

        decode = decoder_of(array)
        reader = decode and ChunkedArray(array, LocalObjects(self.folder), decode, absent_is_fill=may_lack)
        reader = reader or array

        def read(start: int, stop: int) -> None:
            values = read_range(reader, start, stop, str(self.folder))
            if check is not None:
                check(values, start)

        chunk, probes = int(array.chunks[0]), budget()
        step = max(chunk, READ_ENTRIES // chunk * chunk)
        # Cut at the gaps first, so that for metadata that claim 10^15 entries the steps are bounded by existing files.
        gaps = [(one.start, one.stop) for one in absent if one.all_absent or not may_lack]
        for low, high in without(0, array.shape[0], gaps):
            for start, stop in steps(low, high, step):
                yield from bisect_damage(read, start, stop, chunk, probes)

    def may_lack(self, name: str) -> bool:
        """Return whether absent chunks of an array can be chunks of zeros; see `may_be_left_out`."""
        return may_be_left_out(self.array(name), name, one_gene=False)

    def rows(self, low: int, high: int, unknown: Iterable[tuple[int, int]] = ()) -> tuple[int, int]:
        """Return the rows of the entries ``[low, high)``, without reading the `unknown` row starts."""
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
        """Return the first entry of a row."""
        return int(read_range(self.array(self.counts[-1]), row, row + 1, str(self.folder))[0])

    def unproven(self, columns: Iterable[Column]) -> Iterator[str]:
        """Yield the kinds of damage that cannot be detected in the counts, the names and some columns of obs."""
        parts = [part for column in columns for part in (column.values, column.categories, column.mask) if part]
        arrays = [*self.counts, self.index, *parts]
        bare = [name for name in arrays if not _has_checksum(self.array(name))]
        if bare:
            yield (
                f"{', '.join(map(printable, bare))} carry no checksum: a flipped bit in them is found only if it "
                "breaks decoding or makes an impossible value"
            )
        for name in filter(self.may_lack, arrays):
            for one in absent_chunks(self.array(name))[0]:
                yield f"{one.key} is not there (rows {one.start} to {one.stop - 1}): all is 0 in it, or it was lost"

    def columns(self, losses: Losses | None = None) -> dict[str, Column]:
        """Return the columns of obs; those that cannot be opened are added to `losses`."""
        found = {}
        for key in self._listed(losses):
            try:
                found[key] = find_column(self.tree, f"obs/{key}")
            except ValueError as error:
                if losses is not None:
                    losses.add(f"obs/{key}", 0, self.n_cells, str(error))
        return found

    def _listed(self, losses: Losses | None) -> list[str]:
        try:
            return column_order(self.tree, "obs")
        except ValueError as error:
            if losses is not None:
                losses.add("obs", 0, self.n_cells, str(error))
            return []


def open_parts(source: str | Path, layer: str | None) -> ZarrParts | None:
    """Open the arrays of a store separately; None if it is not a Zarr folder, or if its metadata are damaged."""
    path = Path(source).expanduser().resolve()
    if not path.is_dir():
        return None
    name = {None: "X", "raw/X": "raw/X"}.get(layer, f"layers/{layer}")
    try:
        root = open_zarr_group(path)
        member = open_zarr_group(path / MEMBER) if root is not None and packed_root(root) is not root else None
        if member is not None and len(list(path.glob("dataset_*"))) == 1:  # a collection of one for annbatch
            path, root = path / MEMBER, member
        if root is None:
            return None
        tree = ZarrTree(root, str(path))
        index = find_column(tree, index_path(tree, "obs")).values
        parts = tuple(f"{name}/{part}" for part in ("data", "indices", "indptr"))
        counts = (name,) if tree.kind(name) == "array" else parts
        if all(open_array_of(root, one).ndim for one in counts):
            return ZarrParts(root, path, counts, index, int(open_array_of(root, index).shape[0]))
    except ValueError:  # the store cannot be opened either, and `verify_store` reports the error
        pass
    return None


def verify_arrays(parts: ZarrParts, losses: Losses, progress: Progress | None) -> None:
    """Check the arrays of the counts separately: whether they can be read, not whether their values are valid."""
    n = parts.n_cells
    unknown: list[tuple[int, int]] = []
    for done, name in enumerate(reversed(parts.counts), 1):  # row starts first: they map lost entries to rows
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
    """Check the arrays of the names and columns of obs separately."""
    n = parts.n_cells
    for low, high, why in parts.torn(parts.index):
        losses.add("obs names", low, high, why)
    for key, column in parts.columns(losses).items():
        try:
            _verify_column(parts, column, losses)
        except ValueError as error:  # one of its arrays cannot be opened
            losses.add(f"obs/{key}", 0, n, str(error))


def _verify_column(parts: ZarrParts, column: Column, losses: Losses) -> None:
    n = parts.n_cells
    for name in filter(None, (column.values, column.mask)):
        length = parts.array(name).shape[0]
        if length != n:
            losses.add(name, 0, n, f"it has {length} values for {n} cells: write the store again from its source")
            continue
        check = _code_check(parts, column, losses) if column.categories else None
        for low, high, why in parts.torn(name, check):
            losses.add(name, low, high, why)
    for _, _, why in parts.torn(column.categories) if column.categories else ():
        losses.add(column.categories, 0, n, why)


def _code_check(parts: ZarrParts, column: Column, losses: Losses) -> Check:
    """Return a function that adds codes without a category to `losses`."""
    n_categories = parts.array(column.categories).shape[0]

    def check(code_n: NDArray[Any], start: int) -> None:
        wrong = np.flatnonzero((code_n < -1) | (code_n >= n_categories))
        for run in np.split(wrong, np.flatnonzero(np.diff(wrong) > 1) + 1) if len(wrong) else ():
            found = f"code {code_n[run[0]]} for {n_categories} categories: write the store again from its source"
            losses.add(column.values, start + int(run[0]), start + int(run[-1]) + 1, found)

    return check


class PackedSums:
    """Entries and counts of each block of rows, for comparison with those that were packed."""

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
        """Add the chunks whose counts, or else the blocks whose entries, differ from those packed."""
        # Only blocks that were read completely: others are reported as lost already.
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
        """Yield the rows of the chunks within the given rows whose counts differ from those packed."""
        size, parts = self._manifest.chunk_entries, self._parts
        for chunk in range(parts.begin(start) // size, -(-parts.begin(stop) // size)):
            low, high = chunk * size, min((chunk + 1) * size, self._manifest.n_entries)
            counts_e = read_range(parts.array("X/data"), low, high, str(parts.folder))
            summed_e = count_bits(counts_e) if self._manifest.counts_dtype == "float32" else counts_e
            total = int(summed_e.sum(dtype=np.int64))
            packed = self._packed.chunk_counts[chunk]
            if total != packed:
                yield *parts.rows(low, high), f"{total} counts in chunk {chunk}, {packed} were packed: {_RESTORE}"


def packed_sums(parts: ZarrParts, losses: Losses) -> PackedSums | None:
    """Return the `PackedSums` of a packed store; None for any other store."""
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
    """Return whether one of the codecs of a Zarr array has a checksum."""
    return any(
        codec.name.removeprefix("numcodecs.") in _CHECKED or codec.options.get("checksum")
        for codec in layout_of(array).codecs
    )
