"""Order is arithmetic: every training cell once an epoch, the same global minibatches for any number of workers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_scvi.loaders.plan import (
    Plan,
    check_world_size,
    lane_span,
    make_plan,
    micro_sizes,
    minibatch_rows,
    split_rows,
    window_rows,
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    lanes = draw(st.sampled_from([1, 2, 3, 4, 8]))
    n_cells = draw(st.integers(3 * lanes + 2, 1500))
    return make_plan(
        n_cells=n_cells,
        n_entries=n_cells * 30,
        n_genes=100,
        batch_size=lanes * draw(st.integers(2, 40)),
        lanes=lanes,
        micro_cells=draw(st.integers(2, 64)),
        train_size=draw(st.sampled_from([0.75, 0.9, 0.99, 1.0])),
        validation_size=draw(st.sampled_from([0.0, None])),
        seed=draw(st.integers(0, 1000)),
        window_cells=draw(st.integers(1, 2000)),
    )


def small(**changes: object) -> Plan:
    options = {"n_cells": 50, "n_entries": 500, "n_genes": 9, "batch_size": 8, "lanes": 2, "window_cells": 16}
    return make_plan(**(options | changes))  # type: ignore[arg-type]


def step_rows(plan: Plan, epoch: int, step: int) -> list[np.ndarray]:
    return [minibatch_rows(plan, epoch, step, lane) for lane in range(plan.lanes)]


@given(plans(), st.integers(0, 5))
@settings(deadline=None, max_examples=150)
def test_every_training_cell_comes_exactly_once_an_epoch(plan: Plan, epoch: int) -> None:
    rows = np.concatenate([row for step in range(plan.steps_per_epoch) for row in step_rows(plan, epoch, step)])
    assert len(rows) == plan.n_train
    np.testing.assert_array_equal(np.sort(rows), np.sort(split_rows(plan, "train", 0, plan.n_train)))


@given(plans())
@settings(deadline=None, max_examples=150)
def test_the_splits_share_out_all_cells(plan: Plan) -> None:
    parts = [split_rows(plan, split, 0, plan.split_cells(split)) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [plan.split_cells(split) for split in ("train", "validation", "test")]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(plan.n_cells))


@given(plans())
@settings(deadline=None, max_examples=100)
def test_all_lanes_take_as_many_steps_and_none_is_ever_left_with_one_cell(plan: Plan) -> None:
    for step in range(plan.steps_per_epoch):
        sizes = [high - low for low, high in (lane_span(plan, lane, step) for lane in range(plan.lanes))]
        assert min(sizes) >= 2
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == plan.step_cells(step)
        for size in sizes:
            micro = micro_sizes(size, plan.micro_cells)
            assert sum(micro) == size
            assert min(micro) >= 2


@given(plans())
@settings(deadline=None, max_examples=50)
def test_windows_hold_what_the_steps_deal_out(plan: Plan) -> None:
    for lane in range(plan.lanes):
        dealt = [minibatch_rows(plan, 3, step, lane) for step in range(plan.steps_per_epoch)]
        windows = [window_rows(plan, 3, lane, window) for window in range(plan.windows_per_epoch)]
        np.testing.assert_array_equal(np.concatenate(dealt), np.concatenate(windows))


def test_the_order_is_frozen() -> None:
    # A change here changes every run that is resumed: it needs a new version of the checkpoint format.
    plan = small()
    table = {
        (0, 0): [[46, 48, 41, 47], [38, 37, 36, 2]],
        (0, 1): [[40, 43, 45, 42], [1, 33, 34, 0]],
        (1, 0): [[7, 1, 2, 8], [26, 24, 28, 27]],
    }
    for (epoch, step), rows in table.items():
        assert [part.tolist() for part in step_rows(plan, epoch, step)] == rows, (epoch, step)


def test_the_order_changes_with_the_epoch_and_the_seed() -> None:
    orders = {
        tuple(np.concatenate(step_rows(plan, epoch, 0))) for plan in (small(), small(seed=1)) for epoch in range(4)
    }
    assert len(orders) == 8


def test_the_split_depends_on_the_seed_and_the_shares_alone() -> None:
    def held_out(plan: Plan) -> list[int]:
        return split_rows(plan, "validation", 0, plan.split_cells("validation")).tolist()

    other_sizes = small(batch_size=16, lanes=4, window_cells=100, block_cells=40)
    assert held_out(small()) == held_out(other_sizes)
    assert held_out(small()) != held_out(small(seed=1))


def test_a_place_in_a_billion_cells_is_found_without_walking_there() -> None:
    plan = make_plan(n_cells=10**9, n_entries=10**12, n_genes=60_000, batch_size=1024, lanes=8)
    last = minibatch_rows(plan, 7, plan.steps_per_epoch - 1, 7)
    assert len(last) >= 2
    assert last.max() < plan.n_cells
    assert plan.window_steps * plan.batch_size < 10**5  # nothing of the length of the store was made


def test_a_window_on_a_sorted_store_mixes_at_least_four_blocks_for_every_cell_of_a_minibatch() -> None:
    plan = make_plan(n_cells=10**8, n_entries=10**8 * 200, n_genes=2000, batch_size=1024, lanes=8)
    assert plan.blocks_in_window is not None
    assert plan.blocks_in_window >= 4 * plan.batch_size


def test_the_predicted_loss_of_entropy_is_what_a_sorted_store_shows() -> None:
    plan = make_plan(
        n_cells=200_000, n_entries=10**6, n_genes=9, batch_size=64, lanes=1, window_cells=1280, block_cells=20
    )
    label = np.arange(plan.n_cells) // 20 % 8  # every block of a single label
    found = []
    for step in range(0, plan.steps_per_epoch - 1, 10):
        share = np.bincount(label[minibatch_rows(plan, 0, step, 0)], minlength=8) / plan.batch_size
        found.append(-(share[share > 0] * np.log2(share[share > 0])).sum())
    assert plan.blocks_in_window is not None
    assert plan.blocks_in_window >= 64
    assert 3 - np.mean(found) == pytest.approx(plan.entropy_loss_bits(8), abs=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, r"batch_size=9 must be a multiple of lanes=2"),
        ({"batch_size": 2}, r"batch_size=2 must be a multiple of lanes=2 and at least twice it"),
        ({"micro_cells": 1}, r"micro_cells=1: batch normalisation needs at least 2"),
        ({"train_size": 0.0}, r"train_size=0\.0 .*shares of all cells"),
        ({"train_size": 0.9, "validation_size": 0.2}, r"together at most 1"),
        ({"train_size": 0.12345}, r"steps of 0\.001"),
        ({"block_cells": 30}, r"block_cells=30 must be a multiple of 20"),
        ({"n_cells": 3}, r"3 training cells \(of 3\) do not give two to each of 2 lanes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_world_that_does_not_divide_the_lanes_is_refused_with_those_that_do() -> None:
    check_world_size(12, 4)
    with pytest.raises(ValueError, match="5 workers cannot share 12 lanes evenly: use 1, 2, 3, 4, 6, 12"):
        check_world_size(12, 5)


def test_equal_plans_are_equal_records() -> None:
    assert small() == small()
    assert replace(small(), seed=1) == small(seed=1)
