"""The stream of labelled cells: every one once in a pass, or so many of each label, whoever asks and from where."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_scvi.loaders import CellData, Plan
from dist_scvi.loaders import labelled_stream as labelled
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.labelled_stream import LabelSample, labelled_plan, labelled_stream
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.order.column_sampling import open_sampling
from dist_scvi.loaders.stream import train_stream
from tests.loaders.labelled_cells import labelled_rows, open_cells, pass_rows, plan_of, some_cells
from tests.loaders.order.lane_rows import minibatch_rows


def steps_of(data: CellData, plan: Plan, world_size: int, first: int, n: int) -> Iterator[tuple[MiniBatch, ...]]:
    streams = [
        labelled_stream(data, plan, rank=rank, world_size=world_size, first_step=first, n_steps=n)
        for rank in range(world_size)
    ]
    return zip(*streams, strict=True)


def micro_rows(parts: tuple[MiniBatch, ...]) -> dict[int, list[int]]:
    """Rows of each micro-minibatch by its number; a number that comes twice is an error."""
    found: dict[int, list[int]] = {}
    for part in parts:
        stops = np.cumsum(part.micro_n)
        assert part.n_cells == sum(part.micro_n)
        for key, stop, size in zip(part.micro_keys, stops, part.micro_n, strict=True):
            assert key not in found
            found[key] = part.row_n[stop - size : stop].tolist()
    return found


@given(
    st.integers(60, 400),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.sampled_from([(1, 8), (2, 4), (4, 32), (8, 64), (8, 16)]),
    st.sampled_from([16, 64, 10_000]),
    st.integers(0, 3),
)
@settings(max_examples=60)
def test_a_pass_deals_out_every_labelled_training_cell_once(n_cells, share, sizes, window_cells, number) -> None:
    data = some_cells(n_cells, share, seed=n_cells)
    plan = plan_of(data, lanes=sizes[0], batch_size=sizes[1])
    expected = labelled_rows(data, plan)
    if len(expected) < 2:
        return
    passes = labelled_plan(data, plan, window_cells=window_cells)
    steps = pass_rows(passes, number)
    assert sorted(np.concatenate(steps).tolist()) == expected
    assert [len(row_n) for row_n in steps] == [passes.step_cells(step) for step in range(len(steps))]
    assert {len(row_n) for row_n in steps[:-1]} <= {plan.batch_size}
    assert len(steps[0]) >= min(plan.batch_size, len(expected))
    assert min(map(len, steps)) >= 2 * passes.lanes


@pytest.mark.parametrize("window_cells", [64, 10_000])
@pytest.mark.parametrize("n_samples_per_label", [None, 9])
def test_a_step_is_the_same_for_every_number_of_workers(window_cells: int, n_samples_per_label: int | None) -> None:
    data = some_cells(700, 0.5)
    plan = plan_of(data)
    passes = labelled_plan(data, plan, n_samples_per_label=n_samples_per_label, window_cells=window_cells)
    n_steps = 2 * passes.steps_per_epoch + 1
    alone = list(steps_of(data, passes, 1, 0, n_steps))
    for world_size in (2, 4):
        for one, parts in zip(alone, steps_of(data, passes, world_size, 0, n_steps), strict=True):
            assert micro_rows(parts) == micro_rows(one)
            assert {part.global_cells for part in parts} == {one[0].n_cells}
            assert {(part.epoch, part.step) for part in parts} == {(one[0].epoch, one[0].step)}
    for at, (part,) in enumerate(alone):
        assert (part.epoch, part.step) == divmod(at, passes.steps_per_epoch)
        np.testing.assert_array_equal(part.row_n, pass_rows(passes, part.epoch)[part.step])


def test_the_cells_come_with_their_counts_and_labels() -> None:
    data = some_cells(700, 0.5)
    label_n = data.columns_of([(0, 700)]).label_n
    for window_cells in (64, 10_000):
        passes = labelled_plan(data, plan_of(data), window_cells=window_cells)
        for (part,) in steps_of(data, passes, 1, 0, passes.steps_per_epoch + 2):
            counts_n3 = part.to("cpu").counts_ng.numpy()
            np.testing.assert_array_equal(counts_n3[:, 0] + 97 * counts_n3[:, 1], part.row_n)
            np.testing.assert_array_equal(part.label_n, label_n[part.row_n])
            assert part.label_n.min() >= 0


@given(st.integers(0, 40), st.integers(0, 12), st.sampled_from([64, 10_000]), st.sampled_from([None, 3, 20]))
@settings(max_examples=25)
def test_a_stream_that_begins_anywhere_goes_on_as_one_that_came_there(first, n_steps, window_cells, n_samples) -> None:
    data = some_cells(500, 0.6)
    passes = labelled_plan(
        data, plan_of(data), n_samples_per_label=n_samples, window_cells=window_cells, redraw_steps=7
    )
    whole = [part for (part,) in steps_of(data, passes, 1, 0, first + n_steps)]
    rest = [part for (part,) in steps_of(data, passes, 1, first, n_steps)]
    assert len(rest) == n_steps
    for mine, theirs in zip(rest, whole[first:], strict=True):
        assert (mine.epoch, mine.step, mine.micro_keys) == (theirs.epoch, theirs.step, theirs.micro_keys)
        np.testing.assert_array_equal(mine.row_n, theirs.row_n)


@given(st.lists(st.integers(-1, 3), min_size=40, max_size=300), st.integers(1, 40), st.integers(0, 5), st.data())
@settings(max_examples=60)
def test_a_pass_draws_exactly_as_many_of_each_label_as_are_wanted(codes, n_samples, number, data) -> None:
    page_rows, page_counts = data.draw(st.sampled_from([(1024, 1 << 21), (7, 1 << 21), (1, 30)]))
    cells = open_cells(np.array(codes))
    plan = plan_of(cells, lanes=2)
    wanted = labelled_rows(cells, plan)
    label_n = cells.columns_of([(0, len(codes))]).label_n
    cells_l = np.bincount(label_n[wanted], minlength=3)
    if np.minimum(cells_l, n_samples).sum() < 2:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelled, "_PAGE_ROWS", page_rows)
        patch.setattr(labelled, "_PAGE_COUNTS", page_counts)
        passes = labelled_plan(cells, plan, n_samples_per_label=n_samples)
    drawn = np.concatenate(pass_rows(passes, number))
    assert len(set(drawn.tolist())) == len(drawn)
    assert set(drawn.tolist()) <= set(wanted)
    np.testing.assert_array_equal(np.bincount(label_n[drawn], minlength=3), np.minimum(cells_l, n_samples))


def test_over_passes_the_cells_of_a_label_are_drawn_equally_often_and_with_any_other() -> None:
    data = some_cells(400, 0.5)
    plan = plan_of(data)
    passes = labelled_plan(data, plan, n_samples_per_label=5)
    label_n = data.columns_of([(0, 400)]).label_n
    draws = [np.concatenate(pass_rows(passes, number)) for number in range(600)]
    times = np.bincount(np.concatenate(draws), minlength=400)
    for label in range(3):
        of_label = np.array([row for row in labelled_rows(data, plan) if label_n[row] == label])
        expected = 600 * 5 / len(of_label)
        # the counts of a fair draw are scattered as those of so many coins
        assert np.std(times[of_label]) == pytest.approx(np.sqrt(expected * (1 - 5 / len(of_label))), rel=0.3)
    beside = {row for drawn in draws if draws[0][0] in drawn for row in drawn.tolist()}
    assert len(beside) > 0.95 * len(labelled_rows(data, plan))


def test_a_draw_is_kept_for_as_many_steps_as_asked_for_and_shuffled_in_every_pass() -> None:
    data = some_cells(2000, 0.5)
    plan = plan_of(data)
    passes = labelled_plan(data, plan, n_samples_per_label=40, redraw_steps=3 * 4)
    assert passes.steps_per_epoch == 4  # 120 cells by 32
    orders = [np.concatenate(pass_rows(passes, number)).tolist() for number in range(6)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2]) != sorted(orders[3])
    assert sorted(orders[3]) == sorted(orders[5])
    assert len({tuple(order) for order in orders}) == 6
    anew = labelled_plan(data, plan, n_samples_per_label=40)
    assert len({tuple(sorted(np.concatenate(pass_rows(anew, number)).tolist())) for number in range(6)}) == 6


def test_a_label_that_is_held_out_as_a_whole_is_no_hindrance() -> None:
    label_n = np.repeat([1, 2, 3], 50)
    data = open_cells(label_n, split=np.where(label_n == 3, "validation", "train"))
    plan = plan_of(
        data,
        sampling=open_sampling(data.store, seed=0, split_key="split"),
        train_size=None,
        validation_size=None,
    )
    passes = labelled_plan(data, plan, n_samples_per_label=10)
    drawn = np.concatenate(pass_rows(passes, 0))
    assert np.bincount(label_n[drawn], minlength=4).tolist() == [0, 10, 10, 0]


def test_a_cell_of_weight_zero_is_in_no_pass_and_any_other_once_whatever_it_weighs() -> None:
    row_n = np.arange(300)
    data = some_cells(300, 0.6, weight=(row_n % 3).astype(float))
    plan = plan_of(
        data,
        sampling=open_sampling(data.store, seed=0, train_size=0.9, weight_key="weight"),
        train_size=None,
        validation_size=None,
    )
    drawn = np.concatenate(pass_rows(labelled_plan(data, plan), 0))
    assert sorted(drawn.tolist()) == labelled_rows(data, plan)
    assert (drawn % 3 > 0).all()
    assert {1, 2} == set((drawn % 3).tolist())


@pytest.mark.parametrize("split_key", [None, "split"])
def test_the_labelled_cells_come_in_an_order_of_their_own(split_key: str | None) -> None:
    data = open_cells(np.ones(4000, dtype=int), split=np.full(4000, "train"))
    sampling = open_sampling(data.store, seed=0, split_key=split_key)
    shares = {"train_size": None, "validation_size": None} if sampling else {}
    plan = plan_of(data, batch_size=400, window_cells=400, sampling=sampling, **shares)
    for window_cells in (400, 10_000):
        passes = labelled_plan(data, plan, window_cells=window_cells)
        beside = [
            len(set(minibatch_rows(plan, 0, step, 0)) & set(minibatch_rows(passes, 0, step, 0))) for step in range(5)
        ]
        assert max(beside) <= 40  # of 100, where chance gives 2.5 to 3.6


def test_a_cell_goes_to_another_lane_in_another_pass() -> None:
    data = open_cells(np.ones(500, dtype=int))
    passes = labelled_plan(data, plan_of(data, batch_size=256))
    lanes = [
        {row for step in range(2) for row in minibatch_rows(passes, number, step, 0).tolist()} for number in (0, 1)
    ]
    assert len(lanes[0] & lanes[1]) < 0.5 * len(lanes[0])  # a quarter by chance


def test_a_short_pass_mixes_all_its_cells_in_every_lane() -> None:
    data = open_cells(np.repeat([1, 2, 3], 100))
    passes = labelled_plan(data, plan_of(data, lanes=4, batch_size=256, train_size=1.0, validation_size=0.0))
    for lane in range(4):
        labels = data.columns_of([(0, 300)]).label_n[minibatch_rows(passes, 0, 0, lane)]
        assert np.bincount(labels, minlength=3).min() >= 8


@pytest.mark.parametrize(
    ("n_labelled", "lanes", "batch_size"),
    [
        (2, 1, 2),
        (3, 1, 3),
        (15, 1, 15),
        (16, 2, 16),
        (31, 3, 30),
        (63, 7, 63),
        (64, 8, 64),
        (127, 8, 120),
        (300, 8, 128),
    ],
)
def test_few_cells_fill_a_few_lanes_and_make_one_step(n_labelled: int, lanes: int, batch_size: int) -> None:
    data = open_cells(np.where(np.arange(400) < n_labelled, 1, 0))
    plan = plan_of(data, lanes=8, batch_size=128, train_size=1.0, validation_size=0.0)
    passes = labelled_plan(data, plan)
    assert (passes.lanes, passes.batch_size) == (lanes, batch_size)
    assert passes.steps_per_epoch == max(1, -(-n_labelled // 128))
    assert passes.step_cells(0) == min(n_labelled, 128)


def test_a_lane_narrower_than_a_micro_minibatch_is_filled_before_the_next() -> None:
    data = open_cells(np.where(np.arange(400) < 47, 1, 0))
    options = {"micro_cells": 128, "train_size": 1.0, "validation_size": 0.0}
    passes = labelled_plan(data, plan_of(data, lanes=8, batch_size=128, **options))
    assert (passes.lanes, passes.batch_size, passes.steps_per_epoch) == (2, 46, 1)
    assert sorted(np.concatenate(pass_rows(passes, 3)).tolist()) == list(range(47))


def test_a_worker_without_labelled_cells_yields_minibatches_that_have_none() -> None:
    data = open_cells(np.where(np.arange(400) < 17, 1, 0))
    plan = plan_of(data, lanes=4, batch_size=64, train_size=1.0, validation_size=0.0)
    passes = labelled_plan(data, plan)
    assert passes.lanes == 2
    for parts in steps_of(data, passes, 4, 3, 2):
        assert [part.n_cells for part in parts] == [8, 9, 0, 0]
        assert {part.global_cells for part in parts} == {17}
        assert parts[3].micro_n == parts[3].micro_keys == ()
        tensors = parts[3].to("cpu")
        assert tensors.counts_ng.shape == (0, 3)
        assert len(tensors.place_e) == len(tensors.library_n) == len(tensors.covariates.label_n) == 0
        assert {(part.epoch, part.step) for part in parts} == {(parts[0].epoch, 0)}


def test_no_number_of_a_micro_minibatch_is_one_of_the_main_stream() -> None:
    data = some_cells(500, 1.0)
    plan = plan_of(data)
    passes = labelled_plan(data, plan)
    main = next(train_stream(data, plan, rank=0, world_size=1, epoch=0, step=0, n_epochs=1))
    (part,) = next(steps_of(data, passes, 1, 0, 1))
    assert not set(main.micro_keys) & set(part.micro_keys)


class Noting:
    """A store that notes what is read."""

    def __init__(self, data: CellData) -> None:
        self._store, self.reads = data.store, list[int]()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def read_ranges(self, ranges: list[tuple[int, int]], order: np.ndarray) -> object:
        self.reads.append(len(order))
        return self._store.read_ranges(ranges, order)


def test_cells_that_stay_the_same_are_read_once() -> None:
    data = some_cells(2000, 0.1)
    plan = plan_of(data)
    noting = Noting(data)
    held = replace(data, store=noting)
    passes = labelled_plan(data, plan)
    assert passes.windows_per_epoch == 1
    assert len(list(steps_of(held, passes, 1, 5, 40))) == 40
    assert noting.reads == [passes.n_train]
    noting.reads.clear()
    drawn = labelled_plan(data, plan, n_samples_per_label=10, redraw_steps=10)
    assert len(list(steps_of(held, drawn, 1, 100, 30))) == 30
    assert noting.reads == [30, 30, 30]
    noting.reads.clear()
    next(islice(steps_of(held, drawn, 1, 0, 10_000), 5, None))
    assert len(noting.reads) <= 3  # the one in use and the next


class Regular:
    """Five million rows of twenty labels, of which any is known by its number."""

    n_cells = 5_000_000
    label = Categorical("type", tuple(f"t{code:02d}" for code in range(20)), [], np.arange(20, dtype=np.int32))

    def __init__(self) -> None:
        self.asked = 0

    def labels(self, start: int, stop: int) -> np.ndarray:
        self.asked += stop - start
        return (np.arange(start, stop) % 20).astype(np.int32)


def test_a_draw_reads_the_labels_of_the_pages_of_its_cells_alone() -> None:
    split = Regular()
    sample = LabelSample(split, 5, seed=0)
    assert (sample.size, split.asked) == (100, split.n_cells)
    split.asked = 0
    row_n = sample.rows(3)
    assert np.bincount(row_n % 20, minlength=20).tolist() == [5] * 20
    assert (np.diff(row_n) > 0).all()
    assert split.asked <= 100 * 1024
