"""The stream yields what the plan says, for any number of workers and from any place, and waits only so long."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from dist_scvi.loaders import CellData, Plan, make_plan, open_data
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.stream import lane_stream, prefetch, row_stream, rows_minibatch, split_stream, train_stream
from tests.loaders.order.lane_rows import minibatch_rows

N_CELLS, N_GENES = 333, 11


def expected_counts(row_n: np.ndarray) -> np.ndarray:
    return (row_n[:, None] * 7 + np.arange(N_GENES) * 3) % 5


@pytest.fixture(scope="module")
def data() -> CellData:
    rows = np.arange(N_CELLS)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical.from_codes(rows % 3, ["c", "a", "b"]),
            "label": pd.Categorical.from_codes(np.where(rows % 4 == 0, -1, rows % 2), ["x", "y"]),
            "site": pd.Categorical.from_codes(rows % 2, ["s", "t"]),
            "age": rows.astype(np.float32),
        },
        index=[f"c{row}" for row in rows],
    )
    return open_data(
        AnnData(sparse.csr_matrix(expected_counts(rows).astype(np.float32)), obs=obs),
        batch_key="batch",
        labels_key="label",
        categorical_covariate_keys=["site"],
        continuous_covariate_keys=["age"],
    )


def plan_of(lanes: int = 4, window_cells: int = 64) -> Plan:
    return make_plan(
        n_cells=N_CELLS,
        n_entries=3000,
        n_genes=N_GENES,
        batch_size=32,
        lanes=lanes,
        window_cells=window_cells,
        micro_cells=4,
    )


def check_contents(data: CellData, part: MiniBatch) -> None:
    tensors = part.to("cpu")
    np.testing.assert_array_equal(tensors.counts_ng, expected_counts(part.row_n))
    np.testing.assert_array_equal(part.library_n, expected_counts(part.row_n).sum(1))
    np.testing.assert_array_equal(part.batch_n, np.array([2, 0, 1])[part.row_n % 3])  # sorted: a, b, c
    np.testing.assert_array_equal(part.label_n, np.where(part.row_n % 4 == 0, -1, part.row_n % 2))
    np.testing.assert_array_equal(part.categorical_nc[:, 0], part.row_n % 2)
    np.testing.assert_array_equal(part.continuous_nc[:, 0], part.row_n)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_global_minibatch_holds_the_same_cells_for_every_number_of_workers(data: CellData, world_size: int) -> None:
    plan = plan_of()
    streams = [
        train_stream(data, plan, rank=rank, world_size=world_size, epoch=0, step=0, n_epochs=2)
        for rank in range(world_size)
    ]
    n_steps = 0
    for parts in zip(*streams, strict=True):
        lanes = {int(key) >> 20: None for part in parts for key in part.micro_keys}
        expected = [minibatch_rows(plan, parts[0].epoch, parts[0].step, lane) for lane in lanes]
        np.testing.assert_array_equal(np.concatenate([part.row_n for part in parts]), np.concatenate(expected))
        assert sorted(lanes) == list(range(plan.lanes))
        assert {part.global_cells for part in parts} == {sum(part.n_cells for part in parts)}
        for part in parts:
            assert sum(part.micro_n) == part.n_cells
            check_contents(data, part)
        n_steps += 1
    assert n_steps == 2 * plan.steps_per_epoch


@given(st.integers(0, 2), st.integers(0, 8), st.sampled_from([32, 64, 1000]))
@settings(deadline=None, max_examples=25)
def test_a_stream_that_begins_anywhere_goes_on_as_one_that_came_there(epoch: int, step: int, window: int) -> None:
    data = open_data(AnnData(sparse.csr_matrix(expected_counts(np.arange(N_CELLS)).astype(np.float32))))
    plan = plan_of(window_cells=window)
    whole = list(train_stream(data, plan, rank=0, world_size=1, epoch=0, step=0, n_epochs=3))
    rest = list(train_stream(data, plan, rank=0, world_size=1, epoch=epoch, step=step, n_epochs=3))
    for mine, theirs in zip(rest, whole[epoch * plan.steps_per_epoch + step :], strict=True):
        assert (mine.epoch, mine.step) == (theirs.epoch, theirs.step)
        np.testing.assert_array_equal(mine.row_n, theirs.row_n)


class Counting:
    """A store that notes what is read."""

    def __init__(self, data: CellData) -> None:
        self._store, self.read_rows = data.store, set[int]()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def read_ranges(self, ranges: list[tuple[int, int]], order: np.ndarray | None = None) -> object:
        self.read_rows |= {row for span in ranges for row in range(*span)}
        return self._store.read_ranges(ranges, order)


def test_seeking_to_the_last_window_reads_nothing_of_the_others(data: CellData) -> None:
    n_cells = 20_000
    wide = AnnData(sparse.csr_matrix((n_cells, 3), dtype=np.float32))
    opened = open_data(wide)
    counting = Counting(opened)
    plan = make_plan(n_cells=n_cells, n_entries=0, n_genes=3, batch_size=40, lanes=1, window_cells=400, block_cells=20)
    last = plan.steps_per_epoch - 1
    parts = list(
        train_stream(replace(opened, store=counting), plan, rank=0, world_size=1, epoch=0, step=last, n_epochs=1)
    )
    assert [part.step for part in parts] == [last]
    assert len(counting.read_rows) < 2000


@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([32, 96, 1000]))
@settings(deadline=None, max_examples=25)
def test_any_steps_of_some_lanes_are_those_of_the_plan(first: int, n_steps: int, window: int) -> None:
    data = open_data(AnnData(sparse.csr_matrix(expected_counts(np.arange(N_CELLS)).astype(np.float32))))
    plan = plan_of(window_cells=window)
    parts = list(lane_stream(data, plan, range(1, 4, 2), first, first + n_steps))
    assert len(parts) == n_steps
    for at, part in enumerate(parts, first):
        assert (part.epoch, part.step) == divmod(at, plan.steps_per_epoch)
        lanes = [minibatch_rows(plan, part.epoch, part.step, lane) for lane in (1, 3)]
        np.testing.assert_array_equal(part.row_n, np.concatenate(lanes))


def test_nothing_is_read_beyond_the_last_step(data: CellData) -> None:
    counting = Counting(data)
    plan = plan_of(window_cells=1000)
    parts = list(lane_stream(replace(data, store=counting), plan, range(4), 0, 2))
    wanted = {row for part in parts for row in part.row_n.tolist()}
    assert len(wanted) == 64
    # rows between two that are wanted are read along; of the last none is
    assert max(counting.read_rows) == max(wanted)
    assert min(counting.read_rows) == min(wanted)


def test_each_worker_serves_its_share_of_a_split_in_the_order_of_the_store(data: CellData) -> None:
    plan = plan_of()
    shares = [
        [part.row_n for part in split_stream(data, plan, "validation", rank=rank, world_size=2, chunk_cells=10)]
        for rank in range(2)
    ]
    rows = np.concatenate([row for share in shares for row in share])
    assert len(rows) == len(set(rows)) == plan.split_cells("validation")
    for share in shares:
        assert (np.diff(np.concatenate(share)) > 0).all()


def test_row_ranges_come_in_their_order_with_their_contents(data: CellData) -> None:
    parts = list(row_stream(data, iter([(0, 5), (300, 333), (7, 8)])))
    assert [part.row_n.tolist() for part in parts] == [list(range(5)), list(range(300, 333)), [7]]
    for part in parts:
        check_contents(data, part)


def test_chosen_rows_are_read_as_one_minibatch(data: CellData) -> None:
    part = rows_minibatch(data, np.array([1, 200, 201, 332]))
    check_contents(data, part)
    assert part.n_cells == 4


def test_a_reader_that_does_not_answer_is_waited_for_no_longer_than_allowed(data: CellData) -> None:
    release = threading.Event()

    class Stuck(Counting):
        def read_ranges(self, ranges: list[tuple[int, int]], order: np.ndarray | None = None) -> object:
            release.wait(20)
            return super().read_ranges(ranges, order)

    stream = train_stream(
        replace(data, store=Stuck(data)), plan_of(), rank=0, world_size=1, epoch=0, step=0, n_epochs=1, timeout_s=0.2
    )
    with pytest.raises(TimeoutError, match=r"not delivered its next rows in 0 s"):
        next(stream)
    release.set()


def test_an_error_of_the_reader_reaches_the_trainer() -> None:
    counts = expected_counts(np.arange(3000)).astype(np.float32)
    counts[170, 3] = -1  # between the rows that are probed when the store is opened
    data = open_data(AnnData(sparse.csr_matrix(counts)))
    with pytest.raises(ValueError, match=r"holds -1\.0 at row 170, gene 3: SCVI needs raw counts"):
        list(row_stream(data, iter([(0, 1000)])))


@pytest.mark.parametrize("when", ["at once", "while it is used"])
def test_a_process_may_end_while_a_reader_is_at_work(when: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from dist_scvi.loaders.stream import prefetch\n"
        "def items():\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"
        "        yield sum(range(20_000))\n"
        "stream = prefetch(items(), 2, 5.0)\n" + ("next(stream)\n" if when != "at once" else "")
    )
    ended = subprocess.run([sys.executable, script], timeout=60, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_reader_ends_when_its_stream_is_left(data: CellData) -> None:
    stream = train_stream(data, plan_of(), rank=0, world_size=1, epoch=0, step=0, n_epochs=50)
    next(stream)
    before = {thread for thread in threading.enumerate() if thread.name == "reader"}
    stream.close()
    for thread in before:
        thread.join(20)
        assert not thread.is_alive()


def test_whoever_leaves_waits_for_the_read_that_is_under_way() -> None:
    reading, done = threading.Event(), []

    def slow() -> Iterator[int]:
        for number in range(9):
            if number:
                reading.set()
                time.sleep(0.3)
            done.append(number)
            yield number

    items = prefetch(slow(), 2, timeout_s=20)
    assert next(items) == 0
    assert reading.wait(20)
    items.close()
    left = list(done)
    assert not [thread for thread in threading.enumerate() if thread.name == "reader" and thread.is_alive()]
    time.sleep(0.5)
    assert done == left
