"""One-dimensional Zarr arrays, read by ranges: only the chunks needed, each fetched and decoded once, in parallel.

Shape letters in this file
    r   ranges of entries, in increasing order
    e   the entries of all ranges, joined
"""

import itertools
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.codecs import Decoder, checked_crc32c, decoder
from dist_scvi.loaders.arrays.objects import Objects
from dist_scvi.loaders.arrays.obs_columns import DamagedError
from dist_scvi.loaders.arrays.zarr_access import chunk_key, layout_of
from dist_scvi.loaders.reader_threads import reader_threads

_TASK_CHUNKS = 8
"""Chunks that one task fetches and decodes."""
_LARGEST_CHUNK = 64 << 20
"""Largest decoded chunk in bytes, the buffer of one thread; larger chunks are left to zarr, which can read parts."""
_SHARD_INDICES = 4096
"""Shard indices cached for each array; an index has 16 bytes for each chunk."""
_ABSENT = 2**64 - 1
_WASTE = 1.25
"""Bytes read for each requested byte, up to which the chunks of a shard are fetched by one request."""

Task = Callable[[], None]


class ChunkedArray:
    """A numeric array of a Zarr store, v2 or v3, sharded or not.

    Parameters
    ----------
    array
        The array as zarr opened it; its metadata is used.
    objects
        The files of the store.
    decode
        Decodes its chunks; from `decoder_of`.
    absent_is_fill
        Whether an absent chunk holds the fill value; if not, it is reported as lost.
    """

    def __init__(self, array: Any, objects: Objects, decode: Decoder, *, absent_is_fill: bool = False) -> None:
        self.name, self.dtype, self.shape = str(array.path), array.dtype, (int(array.shape[0]),)
        self.chunks = (int(array.chunks[0]),)
        self.remote = objects.remote
        self._objects, self._decode = objects, decode
        self._chunk_key: Callable[[tuple[int]], str] = partial(chunk_key, array)
        self._fill = array.fill_value if absent_is_fill else None
        self._layout = layout_of(array)
        self._per_object = int(array.shards[0]) // self.chunks[0] if array.shards else 1
        # The cache belongs to the instance: a cached method of the class would keep every array alive.
        self._index = lru_cache(_SHARD_INDICES)(self._read_index)
        # One buffer for each thread: tasks of this array run concurrently and each decodes into its own buffer.
        self._scratch = threading.local()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(len(self))
        out_e = np.empty(max(0, stop - start), dtype=self.dtype)

        def copy(values_e: NDArray[Any], first: int) -> None:
            out_e[first : first + len(values_e)] = values_e

        run_side_by_side(list(self.tasks([(start, stop)], copy)), remote=self.remote)
        return out_e

    def tasks(self, ranges: Iterable[tuple[int, int]], place: Callable[[NDArray[Any], int], None]) -> Iterator[Task]:
        """Divide the reading of `ranges` into tasks for threads.

        Parameters
        ----------
        ranges
            First entry and last + 1 of each, in increasing order, not overlapping.
        place
            Called with values and with their position in the joined ranges. The memory of the values is reused after
            the call returns. Calls come from several threads, in any order.
        """
        # Ranges are cut at fixed multiples of the chunks of a task, and ranges that need the same chunk share a task.
        # So each chunk belongs to one task only, and none is decoded twice.
        at, size = 0, self.chunks[0]
        group: list[tuple[int, int, int]] = []
        for low, high in _cut(ranges, size * _TASK_CHUNKS):
            if group:
                first, last = group[0][0] // size, (group[-1][1] - 1) // size
                if low // size > last or last - first > 2 * _TASK_CHUNKS:
                    yield self._task(group, place)
                    group = []
            group.append((low, high, at))
            at += high - low
        if group:
            yield self._task(group, place)

    def _task(self, spans: list[tuple[int, int, int]], place: Callable[[NDArray[Any], int], None]) -> Task:
        """Return a task that fetches and decodes the chunks of `spans` (first entry, last + 1, position)."""
        size = self.chunks[0]
        first, last = spans[0][0] // size, (spans[-1][1] - 1) // size + 1

        def work() -> None:
            decoded_e = self._scratch_of((last - first) * size)
            for number, raw in self._fetch(first, last):
                begin = (number - first) * size
                self._decode_chunk(number, raw, decoded_e[begin : begin + size])
            for low, high, at in spans:
                place(decoded_e[low - first * size : high - first * size], at)

        return work

    def _key(self, number: int) -> str:
        """Return the key of the object that stores the chunk, or shard, of this number."""
        return f"{self.name}/{self._chunk_key((number,))}"

    def _scratch_of(self, length: int) -> NDArray[Any]:
        """Return this thread's buffer for decoded chunks."""
        if not hasattr(self._scratch, "memory_e") or len(self._scratch.memory_e) < length:
            self._scratch.memory_e = np.empty(length, dtype=self.dtype)
        memory_e: NDArray[Any] = self._scratch.memory_e[:length]
        return memory_e

    def _decode_chunk(self, number: int, raw: Any, out_e: NDArray[Any]) -> None:
        if raw is None:
            if self._fill is None:
                raise self._damaged(number, number + 1, "the chunk is missing")
            out_e[:] = self._fill
            return
        try:
            self._decode.decode(raw, out_e)
        except (ValueError, RuntimeError, TypeError, EOFError, OSError, zlib.error) as error:
            raise self._damaged(number, number + 1, error) from error

    def _damaged(self, first: int, last: int, found: object) -> DamagedError:
        """Return the error for the chunks ``[first, last)``, which are stored in one object."""
        low, high = first * self.chunks[0], min(last * self.chunks[0], len(self)) - 1
        key = self._key(first // self._per_object)
        return DamagedError(
            f"{self.name} of {self._objects.uri} cannot be read at {low} to {high}: {key} is truncated or damaged "
            f"({found}); restore it from a copy or write the store again"
        )

    def _fetch(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
        """Fetch the bytes of the chunks ``[first, last)``, None for an absent chunk."""
        if self._layout.index_codecs is None:
            for number in range(first, last):
                yield number, self._read_whole(number)
            return
        for shard in range(first // self._per_object, (last - 1) // self._per_object + 1):
            origin = shard * self._per_object
            numbers = range(max(first, origin), min(last, origin + self._per_object))
            yield from self._fetch_from_shard(shard, numbers)

    def _read_whole(self, number: int) -> Any:
        try:
            return self._objects.read_whole(self._key(number))
        except FileNotFoundError:
            return None

    def _fetch_from_shard(self, shard: int, numbers: range) -> Iterator[tuple[int, Any]]:
        index = self._index(shard)
        origin = shard * self._per_object
        places = [] if index is None else index[numbers.start - origin : numbers.stop - origin].tolist()
        present = [place for place in places if place[0] != _ABSENT]
        if not present:
            yield from ((number, None) for number in numbers)
            return
        key = self._key(shard)
        # One request costs a round trip, so that neighbouring chunks are fetched together and cut afterwards. Chunks
        # that are far apart are fetched one by one, to avoid reading the bytes between them.
        begin, end = min(present)[0], max(map(sum, present))
        together = end - begin <= _WASTE * sum(length for _, length in present)
        joined = self._objects.read(key, begin, end - begin) if together else None
        for number, (offset, length) in zip(numbers, places, strict=True):
            if offset == _ABSENT:
                yield number, None
            elif joined is not None:
                yield number, joined[offset - begin : offset - begin + length]
            else:
                yield number, self._objects.read(key, offset, length)

    def _read_index(self, shard: int) -> NDArray[np.uint64] | None:
        """Read offset and length of the chunks of a shard, shape (chunks, 2), or None if the shard is absent."""
        key, chunks = self._key(shard), (shard * self._per_object, (shard + 1) * self._per_object)
        size = self._objects.size(key)
        if size is None:
            return None
        summed = any(codec.name == "crc32c" for codec in self._layout.index_codecs or ())
        length = 16 * self._per_object + 4 * summed
        # Without this check the offset of the request for an index at the end would be negative.
        if size < length:
            found = f"it has {size} bytes, the index of its chunks alone takes {length}"
            raise self._damaged(*chunks, found)
        try:
            raw = self._objects.read(key, size - length if self._layout.index_at_end else 0, length)
            index = np.frombuffer(checked_crc32c(raw) if summed else raw, dtype="<u8").reshape(-1, 2).copy()
        except ValueError as error:
            raise self._damaged(*chunks, error) from error
        return index


def decoder_of(array: Any) -> Decoder | None:
    """Return the decoder of a one-dimensional Zarr array of numbers, or None if zarr itself must read the array."""
    if array.ndim != 1 or array.dtype.kind not in "iufb" or array.shape[0] == 0:
        return None
    if array.chunks[0] * array.dtype.itemsize > _LARGEST_CHUNK:
        return None
    layout = layout_of(array)
    sharding = layout.index_codecs or ()
    if layout.outer_codecs or any(codec.name not in ("bytes", "crc32c") for codec in sharding):
        return None
    if any(codec.options.get("endian", "little") != "little" for codec in sharding):
        return None
    return decoder(array.dtype, layout)


def run_side_by_side(tasks: Iterable[Task], *, remote: bool = False) -> None:
    """Run `tasks` in the reader threads of this process. After an error no further task starts, and it is raised."""
    # A shared queue rather than one future for each task: an error has to remove the tasks that have not started.
    left = deque(tasks)

    def work() -> None:
        try:
            for task in iter(partial(_taken, left), None):
                task()
        finally:
            left.clear()

    threads = reader_threads(remote=remote)
    # A single task runs in the calling thread: there is nothing to run in parallel.
    if len(left) <= 1:
        work()
        return
    for worker in [_pool(os.getpid(), threads).submit(work) for _ in range(min(len(left), threads))]:
        worker.result()


def _taken(left: deque[Task]) -> Task | None:
    """Remove and return the next task, None if there is none; thread-safe."""
    # Not `if left: left.popleft()`: another thread can take the last task between the two.
    try:
        return left.popleft()
    except IndexError:
        return None


@lru_cache(2)
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    """Return the thread pool of this process.

    `pid` is part of the cache key because threads do not survive a fork: a pool inherited from the parent process
    would never run a task.
    """
    return ThreadPoolExecutor(threads, f"decoder-{pid}")


def _cut(ranges: Iterable[tuple[int, int]], step: int) -> Iterator[tuple[int, int]]:
    """Cut ranges at the multiples of `step`."""
    for low, high in ranges:
        borders = [low, *range((low // step + 1) * step, high, step), high]
        yield from ((a, b) for a, b in itertools.pairwise(borders) if a < b)
