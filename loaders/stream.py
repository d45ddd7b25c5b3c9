"""Minibatches from a store: one thread reads the next window while another deals out this one."""

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffers
from .data import CellData, ColumnValues, minibatch
from .minibatch import MiniBatch
from .plan import Plan, Split, check_world_size, lane_span, micro_sizes, split_rows, window_rows
from .rows import CsrRows, row_runs

T = TypeVar("T")

_MINIBATCHES_AHEAD = 4
_MICRO_PER_LANE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Window:
    """Cells in memory: runs of neighbouring rows, one below the other."""

    low_r: NDArray[np.int64]
    """First row of each run."""
    at_r: NDArray[np.int64]
    """Where it lies in the two others."""
    counts: CsrRows
    columns: ColumnValues

    def take(self, row_n: NDArray[np.int64], buffers: Buffers | None = None) -> tuple[CsrRows, ColumnValues]:
        """Copy the rows `row_n`, in that order; a row may stand there several times."""
        run_n = np.searchsorted(self.low_r, row_n, side="right") - 1
        place_n = row_n - self.low_r[run_n] + self.at_r[run_n]
        return self.counts.take(place_n, buffers), self.columns.take(place_n)


def train_stream(
    data: CellData,
    plan: Plan,
    *,
    rank: int,
    world_size: int,
    epoch: int,
    step: int,
    n_epochs: int,
    timeout_s: float = 240.0,
) -> Iterator[MiniBatch]:
    """Yield this rank's part of every global minibatch from (`epoch`, `step`) to the end of epoch ``n_epochs - 1``.

    Nothing before that position is read.

    Raises
    ------
    ValueError
        If `world_size` does not divide the lanes, or a row is no raw count.
    TimeoutError
        If a window has not come within `timeout_s` seconds.
    """
    check_world_size(plan.lanes, world_size)
    lanes = range(rank, plan.lanes, world_size)

    def windows() -> Iterator[tuple[int, int, dict[int, NDArray[np.int64]], _Window]]:
        first = step // plan.window_steps
        for at in range(epoch, n_epochs):
            for number in range(first if at == epoch else 0, plan.windows_per_epoch):
                rows = {lane: window_rows(plan, at, lane, number) for lane in lanes}
                yield at, number, rows, _read(data, np.unique(np.concatenate(list(rows.values()))))

    def minibatches() -> Iterator[MiniBatch]:
        buffers = Buffers()
        for at, number, rows, window in ahead(windows(), 1, timeout_s):
            begin = number * plan.window_steps
            first = max(begin, step) if at == epoch else begin
            for index in range(first, min(begin + plan.window_steps, plan.steps_per_epoch)):
                yield _deal(data, plan, window, rows, begin, index, at, buffers)

    yield from ahead(minibatches(), _MINIBATCHES_AHEAD, timeout_s)


def split_stream(
    data: CellData,
    plan: Plan,
    split: Split,
    *,
    rank: int,
    world_size: int,
    chunk_cells: int = 1024,
    timeout_s: float = 240.0,
) -> Iterator[MiniBatch]:
    """Yield this rank's share of a split in the store's own order, in chunks dealt out in turn."""
    total = plan.split_cells(split)
    chunks = range(rank, -(-total // chunk_cells), world_size)

    def minibatches() -> Iterator[MiniBatch]:
        for chunk in chunks:
            row_n = np.sort(split_rows(plan, split, chunk * chunk_cells, min((chunk + 1) * chunk_cells, total)))
            yield rows_minibatch(data, row_n, step=chunk)

    yield from ahead(minibatches(), 1, timeout_s)


def row_stream(data: CellData, ranges: Iterator[tuple[int, int]], *, timeout_s: float = 240.0) -> Iterator[MiniBatch]:
    """Yield the cells of each row range in turn, in the store's own order."""
    yield from ahead((rows_minibatch(data, np.arange(*span), step=span[0]) for span in ranges), 1, timeout_s)


def rows_minibatch(data: CellData, row_n: NDArray[np.int64], *, step: int = 0) -> MiniBatch:
    """Read the rising rows `row_n` as one minibatch, for inference."""
    counts, columns = _read(data, row_n).take(row_n)
    n = len(row_n)
    return minibatch(data, counts, columns, row_n, epoch=0, step=step, micro_n=(n,), micro_keys=(0,), global_cells=n)


def ahead(items: Generator[T] | Iterator[T], depth: int, timeout_s: float) -> Iterator[T]:
    """Yield `items`, which a thread makes while those before are used.

    Parameters
    ----------
    depth
        How many are made, or being made, beside the one in use.
    timeout_s
        Longest wait for one.

    Raises
    ------
    TimeoutError
        If one has not come in time. An error in making one is raised here.
    """
    room = threading.Semaphore(depth)
    made: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
    left = threading.Event()

    def make() -> None:
        try:
            while room.acquire() and not left.is_set():
                item = next(items, made)
                made.put(None if item is made else (item,))  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 -- whatever it was, the trainer must hear of it
            made.put(error)

    # A daemon: a read that never returns must not keep the process from ending.
    threading.Thread(target=make, name="reader", daemon=True).start()
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
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item[0]
    finally:
        left.set()
        room.release()


def _read(data: CellData, row_n: NDArray[np.int64]) -> _Window:
    """Read the rising rows `row_n`, and the few between them, with few contiguous reads."""
    runs = row_runs(row_n)
    low_r, high_r = np.array(runs, dtype=np.int64).reshape(-1, 2).T
    at_r = np.concatenate([[0], np.cumsum(high_r - low_r)[:-1]])
    return _Window(low_r, at_r, *data.read(runs))


def _deal(
    data: CellData,
    plan: Plan,
    window: _Window,
    rows_by_lane: dict[int, NDArray[np.int64]],
    begin: int,
    index: int,
    epoch: int,
    buffers: Buffers,
) -> MiniBatch:
    """Cut the cells of step `index` out of the window that starts at step `begin`."""
    parts: list[NDArray[np.int64]] = []
    sizes: list[int] = []
    keys: list[int] = []
    for lane, row_n in rows_by_lane.items():
        origin = lane_span(plan, lane, begin)[0]
        low, high = lane_span(plan, lane, index)
        parts.append(row_n[low - origin : high - origin])
        micro = micro_sizes(high - low, plan.micro_cells)
        sizes.extend(micro)
        keys.extend(lane * _MICRO_PER_LANE + number for number in range(len(micro)))
    row_n = np.concatenate(parts)
    counts, columns = window.take(row_n, buffers)
    return minibatch(
        data,
        counts,
        columns,
        row_n,
        epoch=epoch,
        step=index,
        micro_n=tuple(sizes),
        micro_keys=tuple(keys),
        global_cells=plan.step_cells(index),
    )
