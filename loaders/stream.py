"""Minibatches from a store: one thread reads the next window while this one is used."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .data import CellData, ColumnValues, minibatch
from .minibatch import MiniBatch
from .plan import Plan, Split, check_world_size, lane_span, micro_sizes, split_rows, window_rows
from .rows import CsrRows, concatenate, row_runs

P = TypeVar("P")
T = TypeVar("T")

_MICRO_PER_LANE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Window:
    """Cells in memory, by rising row."""

    row_n: NDArray[np.int64]
    counts: CsrRows
    columns: ColumnValues


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

    def windows() -> Iterator[tuple[int, int]]:
        first = step // plan.window_steps
        for at in range(epoch, n_epochs):
            for window in range(first if at == epoch else 0, plan.windows_per_epoch):
                yield at, window

    def load(place: tuple[int, int]) -> tuple[int, int, list[NDArray[np.int64]], _Window]:
        rows = [window_rows(plan, place[0], lane, place[1]) for lane in lanes]
        return *place, rows, _read(data, np.sort(np.concatenate(rows)))

    for at, number, rows, window in _ahead(load, windows(), timeout_s):
        begin = number * plan.window_steps
        first = max(begin, step) if at == epoch else begin
        for index in range(first, min(begin + plan.window_steps, plan.steps_per_epoch)):
            yield _deal(data, plan, window, dict(zip(lanes, rows, strict=True)), begin, index, at)


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

    def load(chunk: int) -> MiniBatch:
        row_n = np.sort(split_rows(plan, split, chunk * chunk_cells, min((chunk + 1) * chunk_cells, total)))
        return _whole(data, _read(data, row_n), chunk)

    yield from _ahead(load, iter(chunks), timeout_s)


def row_stream(data: CellData, ranges: Iterator[tuple[int, int]], *, timeout_s: float = 240.0) -> Iterator[MiniBatch]:
    """Yield the cells of each row range in turn, in the store's own order."""

    def load(span: tuple[int, int]) -> MiniBatch:
        return _whole(data, _read(data, np.arange(*span)), span[0])

    yield from _ahead(load, ranges, timeout_s)


def rows_minibatch(data: CellData, row_n: NDArray[np.int64]) -> MiniBatch:
    """Read the rising rows `row_n` as one minibatch."""
    return _whole(data, _read(data, row_n), 0)


def _ahead(load: Callable[[P], T], places: Iterator[P], timeout_s: float) -> Iterator[T]:
    """Yield ``load(place)`` for each place, loading one ahead in a thread."""
    reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
    try:
        coming = [reader.submit(load, place) for place in itertools.islice(places, 1)]
        while coming:
            try:
                loaded = coming.pop().result(timeout_s)
            except FutureTimeoutError:
                raise TimeoutError(
                    f"the store has not delivered its next rows in {timeout_s:.0f} s: is its disk alive?"
                ) from None
            coming = [reader.submit(load, place) for place in itertools.islice(places, 1)]
            yield loaded
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def _read(data: CellData, row_n: NDArray[np.int64]) -> _Window:
    """Read the rising rows `row_n` with few contiguous reads."""
    parts = [data.store.read(low, high).take(part - low) for low, high, part in row_runs(row_n)]
    return _Window(row_n, concatenate(parts), data.columns_of(row_n))


def _deal(
    data: CellData,
    plan: Plan,
    window: _Window,
    rows_by_lane: dict[int, NDArray[np.int64]],
    begin: int,
    index: int,
    epoch: int,
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
    place_n = np.searchsorted(window.row_n, row_n)
    return minibatch(
        data,
        window.counts.take(place_n),
        window.columns.take(place_n),
        row_n,
        epoch=epoch,
        step=index,
        micro_n=tuple(sizes),
        micro_keys=tuple(keys),
        global_cells=plan.step_cells(index),
    )


def _whole(data: CellData, window: _Window, step: int) -> MiniBatch:
    """Make one minibatch, for inference, of all cells of `window`."""
    n = len(window.row_n)
    return minibatch(
        data,
        window.counts,
        window.columns,
        window.row_n,
        epoch=0,
        step=step,
        micro_n=(n,),
        micro_keys=(0,),
        global_cells=n,
    )
