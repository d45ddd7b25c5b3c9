"""The only module that uses parts of zarr without a stable API: metadata, codecs, chunk keys, pipelines.

zarr 3.4 replaced two enumerations of zarr 3.1 (byte order, place of a shard index) by strings; code that compared their
members read shard indices at the wrong end and reported intact stores as damaged. Therefore this module uses the
metadata document (``to_dict``), whose form the Zarr specification defines, and never zarr's codec classes.
"""

import asyncio
import math
import re
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import LocalStore, ObjectStore

from dist_scvi.loaders.arrays.bounded_json import check_bytes, parse_json_object
from dist_scvi.loaders.arrays.objects import read_file
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.loaders.arrays.remote import storage_errors, zarr_store_of

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

SUPPORTED = ((3, 1), (3, 5))
"""Tested versions of zarr: from the first, below the second."""
METADATA_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata", ".zarray")


def check_zarr_version(version: str) -> None:
    """Refuse an untested version of zarr, which could read a store incorrectly or report it as damaged.

    Raises
    ------
    ImportError
        If it is outside of `SUPPORTED`.
    """
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    low, high = (".".join(map(str, edge)) for edge in SUPPORTED)
    if not SUPPORTED[0] <= found < SUPPORTED[1]:
        state = "not supported yet" if found >= SUPPORTED[1] else "no longer supported"
        raise ImportError(f"zarr {version} is {state} by this version of dist_scvi: pip install 'zarr>={low},<{high}'")


check_zarr_version(zarr.__version__)

SETTINGS = threading.Lock()
"""Locked while this process changes zarr's configuration for an array that it opens, or creates one to write to."""


@contextmanager
def reading_metadata(where: str) -> Iterator[None]:
    """Report metadata that zarr cannot parse as a `ValueError`; use it only around calls that parse metadata.

    zarr validates a document by building its classes from it: a missing field raises KeyError, one of another type
    TypeError or AttributeError, one too large OverflowError. Found by flipping bits of such documents; the tests repeat
    it.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, NotImplementedError) as error:
        raise ValueError(
            f"the metadata of {where} cannot be read ({type(error).__name__}: {printable(error)}): they are damaged; "
            "restore them from a copy or write the store again"
        ) from error


def open_zarr_group(where: str | Path, storage_options: Mapping[str, str] | None = None) -> zarr.Group | None:
    """Open the Zarr group in the folder, or below the URL, `where`; None if there is none.

    Raises
    ------
    ValueError
        If its metadata are damaged or exceed the budget of `parse_json`.
    """
    store = zarr_store_of(where, storage_options)
    if isinstance(store, LocalStore):
        check_documents(Path(where))
    elif isinstance(store, ObjectStore):
        store = _CheckedObjects(store.store, read_only=True)
    with storage_errors(where), reading_metadata(str(where)):
        try:
            return zarr.open_group(store, mode="r")
        except FileNotFoundError:
            return None


def open_node(root: zarr.Group, path: str) -> "zarr.Group | zarr.Array[Any] | None":
    """Open the group or array at `path`, None if there is none.

    Raises
    ------
    ValueError
        If its metadata are damaged.
    """
    where = f"{path} of {uri_of(root)}"
    try:
        with reading_metadata(where):
            return _member(root, path)
    except ValueError as error:
        if not isinstance(error.__cause__, KeyError):
            raise
        return None


def _member(root: zarr.Group, path: str) -> "zarr.Group | zarr.Array[Any]":
    if root.metadata.consolidated_metadata is not None:
        try:
            return root[path]
        except KeyError:
            # zarr 3.1 to 3.4 lose one of two columns that differ only in case when they nest consolidated metadata.
            root = zarr.open_group(root.store_path, mode="r", use_consolidated=False)
    if isinstance(root.store, LocalStore):
        check_documents(root.store.root / root.path / path)
    return root[path]


def check_documents(folder: Path) -> None:
    """Check the metadata documents of a local group or array by the budget of `parse_json`, before zarr parses them.

    zarr itself raises a RecursionError at 1,000 levels, and blocks without end on a named pipe.

    Raises
    ------
    ValueError
        If one exceeds the budget, is not JSON or not a regular file.
    """
    for name in METADATA_FILES:
        path = folder / name
        content = read_file(path)
        if content is not None:
            parse_json_object(content, str(path))


class _CheckedObjects(ObjectStore):  # type: ignore[type-arg]  # generic in newer versions only
    """Object storage whose metadata documents are checked, as by `check_documents`, before zarr parses them."""

    async def get(
        self, key: str, prototype: "BufferPrototype", byte_range: "ByteRequest | None" = None
    ) -> "Buffer | None":
        # A size and a body: two requests for each document. The body alone could have any length.
        if key.rpartition("/")[2] not in METADATA_FILES:
            return await super().get(key, prototype, byte_range)
        try:
            check_bytes(await self.getsize(key), key)  # before it is received
        except FileNotFoundError:
            return None
        found = await super().get(key, prototype, byte_range)
        if found is not None:
            parse_json_object(found.to_bytes(), key)
        return found


def uri_of(node: "zarr.Group | zarr.Array[Any]") -> str:
    """Return the folder or URL of a group or array, for messages."""
    return str(node.store_path).removeprefix("file://")


@dataclass(frozen=True, slots=True)
class Codec:
    """One codec of an array, as in its metadata."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the chunks of an array are stored."""

    zarr_format: int
    codecs: tuple[Codec, ...]
    """Codecs of a chunk, in the order in which writing applies them."""
    index_codecs: tuple[Codec, ...] | None
    """Codecs of the index of a shard; None if chunks are not sharded."""
    index_at_end: bool
    outer_codecs: int
    """Codecs applied to whole shards, in addition to sharding itself."""

    @property
    def all_codecs(self) -> tuple[Codec, ...]:
        """The codecs of chunks and of the shard index."""
        return (*self.codecs, *(self.index_codecs or ()))


def layout_of(array: "zarr.Array[Any]") -> Layout:
    """Return the layout of an array of Zarr v2 or v3."""
    document: Any = array.metadata.to_dict()
    if document["zarr_format"] == 2:
        configs = (*(document["filters"] or ()), *filter(None, [document["compressor"]]))
        codecs = tuple(Codec(config["id"], {k: v for k, v in config.items() if k != "id"}) for config in configs)
        return Layout(2, codecs, None, index_at_end=False, outer_codecs=0)
    codecs = _codecs(document["codecs"])
    sharding = next((codec for codec in codecs if codec.name == "sharding_indexed"), None)
    if sharding is None:
        return Layout(3, codecs, None, index_at_end=False, outer_codecs=0)
    inner, index = (_codecs(sharding.options[key]) for key in ("codecs", "index_codecs"))
    at_end = sharding.options.get("index_location", "end") == "end"
    return Layout(3, inner, index, index_at_end=at_end, outer_codecs=len(codecs) - 1)


def _codecs(documents: Sequence[Mapping[str, Any]]) -> tuple[Codec, ...]:
    return tuple(Codec(one["name"], dict(one.get("configuration") or {})) for one in documents)


def chunk_key(array: "zarr.Array[Any]", place: tuple[int, ...]) -> str:
    """Return the name, below the array, of the object that holds a chunk or shard."""
    return str(array.metadata.encode_chunk_key(place))


def with_native_codecs(root: zarr.Group, array: "zarr.Array[Any]") -> "zarr.Array[Any]":
    """Open an array again so that the native threads of zarrs decompress it, if they can.

    Arrays with crc32c stay with zarr itself: zarrs 0.2.3 skips that checksum when it reads a part of a chunk. So do
    big-endian arrays, which it does not read.
    """
    codecs = layout_of(array).all_codecs
    foreign = not array.dtype.isnative or any(codec.options.get("endian") == "big" for codec in codecs)
    if foreign or not isinstance(root.store, LocalStore) or any(codec.name == "crc32c" for codec in codecs):
        return array
    # An array object keeps the pipeline with which it was created, so that other users of zarr are not affected. Two
    # threads that set and restore the process-wide setting at once would leave it changed.
    with SETTINGS, zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Array is unsupported by ZarrsCodecPipeline")
        opened = _member(root, array.path.removeprefix(f"{root.path}/") if root.path else array.path)
        assert isinstance(opened, zarr.Array)
        return opened


def open_to_write(path: Path) -> "zarr.Array[Any]":
    """Open an existing array that stores chunks of fill values alone too: readers here report absent ones as lost.

    zarr itself writes them: zarrs 0.2.3 omits such chunks.
    """
    # Array.with_config would need no lock; zarr 3.1.3 lacks it, and open_array ignores its `config`.
    with SETTINGS, zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(path, mode="r+")


@dataclass(frozen=True, slots=True)
class Absent:
    """Rows of which at least one chunk or shard is not stored."""

    start: int
    stop: int
    key: str
    """Key, below the root, of the first absent object."""
    all_absent: bool
    """Whether none of the chunks of these rows is stored."""


def absent_chunks(array: "zarr.Array[Any]") -> tuple[list[Absent], int, int]:
    """Return the rows whose chunks are not stored, the number of absent objects, and the number of all objects.

    The cost is that of listing the existing files, for any number of chunks that the metadata claim. zarr's own count
    of initialized chunks visits each chunk of the grid, 10^10 of them for a claim of 10^15 entries.
    """
    length = array.shards or array.chunks
    grid = tuple(-(-size // step) for size, step in zip(array.shape, length, strict=True))
    keys = _stored_keys(array)
    stored: Counter[int] = Counter()
    for key in keys:
        place = tuple(map(int, re.findall(r"\d+", key)))
        inside = len(place) == len(grid) and all(at < end for at, end in zip(place, grid, strict=True))
        if inside and chunk_key(array, place) == key:
            stored[place[0]] += 1
    total, per_row = math.prod(grid), math.prod(grid[1:])
    gaps, at = [], 0

    def add(low: int, high: int, *, all_absent: bool) -> None:
        key = f"{array.path}/{_first_absent(array, low, grid[1:], keys)}"
        gaps.append(Absent(low * length[0], min(high * length[0], array.shape[0]), key, all_absent))

    for row in sorted(stored):
        if at < row:
            add(at, row, all_absent=True)
        if stored[row] < per_row:
            add(row, row + 1, all_absent=False)
        at = row + 1
    if at < grid[0] and per_row:
        add(at, grid[0], all_absent=True)
    return gaps, total - stored.total(), total


def _first_absent(array: "zarr.Array[Any]", row: int, grid: tuple[int, ...], keys: set[str]) -> str:
    for flat in range(math.prod(grid)):
        place, rest = [], flat
        for size in reversed(grid):
            place.append(rest % size)
            rest //= size
        key = chunk_key(array, (row, *reversed(place)))
        if key not in keys:
            return key
    raise AssertionError


def _stored_keys(array: "zarr.Array[Any]") -> set[str]:
    """Return the keys of an async store; also works in a notebook, whose event loop is running already."""
    prefix = f"{array.path}/"

    async def listed() -> set[str]:
        return {key.removeprefix(prefix) async for key in array.store.list_prefix(prefix)}

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(listed())).result()
