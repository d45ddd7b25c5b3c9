"""Minibatches from a store: while one window is in use, threads read the next one and plan the one after it."""

import atexit
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.csr_rows import CsrRows, row_runs
from dist_scvi.loaders.data import CellData, ColumnValues, minibatch
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.order.plan import Plan, Split, check_world_size, lane_span, micro_sizes, split_rows, window_rows
from dist_scvi.loaders.read_limits import READ_TIMEOUT_S

T = TypeVar("T")
Reads = tuple[list[tuple[int, int]], NDArray[np.int64]]

_MINIBATCHES_AHEAD = 4
_LAST_WORDS_S = 5.0
_READERS: dict[threading.Thread, tuple[threading.Event, threading.Semaphore]] = {}
"""Running reader threads, each with the event and the semaphore that end it."""
_MICRO_PER_LANE = 1 << 20


@dataclass(frozen=True, slots=True)
class Window:
    """Rows in training order: those of the first step, lane by lane, then those of the second step, and so on."""

    epoch: int
    steps: range
    lengths: dict[int, list[int]]
    """Cells of each lane in each step."""
    row_n: NDArray[np.int64]


def train_stream(
    data: CellData,
    plan: Plan,
    *,
    rank: int,
    world_size: int,
    epoch: int,
    step: int,
    n_epochs: int,
    timeout_s: float = READ_TIMEOUT_S,
) -> Iterator[MiniBatch]:
    """Yield this rank's part of every global minibatch from (`epoch`, `step`) to the end of epoch ``n_epochs - 1``.

    Rows before that position are not read.

    Raises
    ------
    ValueError
        If `world_size` does not divide the lanes, or a row holds a value that is not a raw count.
    TimeoutError
        If a window does not arrive within `timeout_s` seconds.
    """
    check_world_size(plan.lanes, world_size)
    steps, lanes = plan.steps_per_epoch, range(rank, plan.lanes, world_size)
    yield from lane_stream(data, plan, lanes, epoch * steps + step, n_epochs * steps, timeout_s=timeout_s)


def lane_stream(
    data: CellData, plan: Plan, lanes: range, first: int, stop: int, *, timeout_s: float = READ_TIMEOUT_S
) -> Iterator[MiniBatch]:
    """Yield the minibatches of `lanes` in the steps ``[first, stop)``, counted from the first step of epoch 0."""

    def plan_windows() -> Iterator[tuple[Window, Reads]]:
        for window in windows(plan, lanes, first, stop):
            yield window, reads_of(window.row_n)

    def read_windows() -> Iterator[tuple[Window, CsrRows, ColumnValues]]:
        for window, reads in prefetch(plan_windows(), 1, timeout_s):
            yield window, *data.read(*reads, hashed=True)

    yield from minibatches_of(data, plan, read_windows(), timeout_s=timeout_s)


def windows(plan: Plan, lanes: range, first: int, stop: int) -> Iterator[Window]:
    """Yield the windows of `lanes` in the steps ``[first, stop)``, counted from the first step of epoch 0."""
    while first < stop:
        epoch, step = divmod(first, plan.steps_per_epoch)
        end = min((step // plan.window_steps + 1) * plan.window_steps, plan.steps_per_epoch, step + stop - first)
        yield _lay_out(plan, lanes, epoch, range(step, end))
        first += end - step


def minibatches_of(
    data: CellData, plan: Plan, read_windows: Iterator[tuple[Window, CsrRows, ColumnValues]], *, timeout_s: float
) -> Iterator[MiniBatch]:
    """Yield the minibatches of windows that are in memory, while a thread reads the next window."""

    def minibatches() -> Iterator[MiniBatch]:
        for window, counts, columns in prefetch(read_windows, 1, timeout_s):
            yield from _deal(data, plan, window, counts, columns)

    # A thread of its own cuts the minibatches, so that this work and the change of windows overlap with training.
    yield from prefetch(minibatches(), _MINIBATCHES_AHEAD, timeout_s)


def split_stream(
    data: CellData,
    plan: Plan,
    split: Split,
    *,
    rank: int,
    world_size: int,
    chunk_cells: int = 1024,
    timeout_s: float = READ_TIMEOUT_S,
) -> Iterator[MiniBatch]:
    """Yield this rank's share of a split in the order of the store, one of every `world_size` chunks."""
    total = plan.split_cells(split)
    chunks = range(rank, -(-total // chunk_cells), world_size)

    def minibatches() -> Iterator[MiniBatch]:
        for chunk in chunks:
            row_n = np.sort(split_rows(plan, split, chunk * chunk_cells, min((chunk + 1) * chunk_cells, total)))
            yield rows_minibatch(data, row_n, step=chunk)

    yield from prefetch(minibatches(), 1, timeout_s)


def row_stream(
    data: CellData, ranges: Iterator[tuple[int, int]], *, timeout_s: float = READ_TIMEOUT_S
) -> Iterator[MiniBatch]:
    """Yield the cells of each row range, in the order of the store."""
    yield from prefetch((rows_minibatch(data, np.arange(*span), step=span[0]) for span in ranges), 1, timeout_s)


def rows_minibatch(data: CellData, row_n: NDArray[np.int64], *, step: int = 0) -> MiniBatch:
    """Read the increasing rows `row_n` as one minibatch, for inference."""
    counts, columns = data.read(*reads_of(row_n))
    n = len(row_n)
    return minibatch(data, counts, columns, row_n, epoch=0, step=step, micro_n=(n,), micro_keys=(0,), global_cells=n)


def reads_of(row_n: NDArray[np.int64]) -> Reads:
    """Return the contiguous row ranges that contain `row_n`, and the position of each row in the joined ranges."""
    runs = row_runs(np.sort(row_n))
    low_r, high_r = np.array(runs, dtype=np.int64).reshape(-1, 2).T
    run_n = np.searchsorted(low_r, row_n, side="right") - 1
    at_r = np.concatenate([[0], np.cumsum(high_r - low_r)[:-1]])
    return runs, row_n - low_r[run_n] + at_r[run_n]


def prefetch(items: Generator[T] | Iterator[T], depth: int, timeout_s: float) -> Iterator[T]:
    """Yield `items`, which a thread produces while earlier ones are in use.

    A thread rather than a process: decompression releases the GIL, and a window from another process would have to be
    copied.

    Parameters
    ----------
    depth
        Largest number of items that are ready or in production, in addition to the one in use.
    timeout_s
        Longest wait for one item.

    Raises
    ------
    TimeoutError
        If an item does not arrive in time. An error raised in the thread is raised here.
    """
    # A semaphore rather than a bounded queue: it also counts the item in production, so that at most `depth` windows
    # are in memory in addition to the one in use. For the same reason the queue below needs no bound.
    room = threading.Semaphore(depth)
    made: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
    left = threading.Event()

    def make() -> None:
        try:
            while room.acquire() and not left.is_set():
                item = next(items, made)
                made.put(None if item is made else (item,))  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 -- any error has to reach the consumer, which waits for an item
            made.put(error)
        finally:
            if isinstance(items, Generator):
                # `items` may itself read from `prefetch`: closing it runs its `finally` and ends that thread too. It
                # is closed here because a generator can be closed only while no other thread runs it.
                items.close()
            _READERS.pop(threading.current_thread(), None)

    # A daemon thread: a read that never returns must not prevent the process from exiting.
    reader = threading.Thread(target=make, name="reader", daemon=True)
    _READERS[reader] = (left, room)
    reader.start()
    try:
        while True:
            try:
                item = made.get(timeout=timeout_s)
            except queue.Empty:
                raise TimeoutError(
                    f"the store has not delivered its next rows in {timeout_s:.0f} s: is its storage alive?"
                ) from None
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            if isinstance(item, BaseException):  # raised as it is, SystemExit would end this process without a message
                raise RuntimeError(f"the thread that reads ended: {item!r}") from item  # noqa: TRY004
            room.release()
            yield item[0]
    finally:
        _dismiss((left, room))
        # The wait lets a read finish: a thread stopped in the middle of a read may still own a lock of HDF5, which the
        # exit of the process then waits for. It is bounded because the read may never return.
        reader.join(_LAST_WORDS_S)


def _dismiss(signals: tuple[threading.Event, threading.Semaphore]) -> None:
    left, room = signals
    # In this order: the thread checks `left` after it acquires `room`, and would otherwise produce one more item.
    left.set()
    room.release()


@atexit.register
def _end_readers() -> None:
    """End readers that are still running: a thread stopped within native code would abort the process."""
    # A copy: each reader removes itself from _READERS when it ends.
    readers = list(_READERS.items())
    for _, signals in readers:
        _dismiss(signals)
    for reader, _ in readers:
        reader.join(_LAST_WORDS_S)


def _lay_out(plan: Plan, lanes: range, epoch: int, steps: range) -> Window:
    """Return the rows of `lanes` in some steps of one window."""
    window = steps.start // plan.window_steps
    parts: list[list[NDArray[np.int64]]] = []
    for lane in lanes:
        origin = lane_span(plan, lane, window * plan.window_steps)[0]
        row_n = window_rows(plan, epoch, lane, window)
        parts.append([row_n[slice(*(edge - origin for edge in lane_span(plan, lane, step)))] for step in steps])
    lengths = {lane: [len(piece) for piece in part] for lane, part in zip(lanes, parts, strict=True)}
    return Window(epoch, steps, lengths, np.concatenate([part[at] for at in range(len(steps)) for part in parts]))


def _deal(data: CellData, plan: Plan, window: Window, counts: CsrRows, columns: ColumnValues) -> Iterator[MiniBatch]:
    """Cut a window into its minibatches, as views."""
    low = 0
    for at, step in enumerate(window.steps):
        micro = {lane: micro_sizes(lengths[at], plan.micro_cells) for lane, lengths in window.lengths.items()}
        high = low + sum(map(sum, micro.values()))
        yield minibatch(
            data,
            counts.part(low, high),
            columns.take(slice(low, high)),
            window.row_n[low:high],
            epoch=window.epoch,
            step=step,
            micro_n=tuple(size for sizes in micro.values() for size in sizes),
            micro_keys=tuple(lane * _MICRO_PER_LANE + k for lane, sizes in micro.items() for k in range(len(sizes))),
            global_cells=plan.step_cells(step),
        )
        low = high
