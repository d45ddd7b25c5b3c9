"""Order is arithmetic: every training cell once an epoch, the same global minibatches for any number of workers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_scvi.loaders.arrays.obs_columns import Categorical, Numeric
from dist_scvi.loaders.order.column_sampling import Sampling, holdout_split, make_sampling, named_split
from dist_scvi.loaders.order.plan import (
    Plan,
    check_world_size,
    lane_span,
    make_plan,
    micro_sizes,
    split_rows,
    window_rows,
)
from dist_scvi.loaders.order.seeded_split import LEFT_OUT, SeededSplit
from dist_scvi.loaders.order.weighted_order import WeightedOrder
from tests.loaders.order.lane_rows import minibatch_rows


@st.composite
def samplings(draw: st.DrawFn, n_cells: int, *, weighted: bool = False) -> Sampling:
    """A split by shares, by donors or by name, whose train split has at least a third of the cells."""
    noise = np.random.default_rng(draw(st.integers(0, 99)))
    donor = Categorical("donor", tuple("abcdefghi"), noise.integers(0, 9, n_cells), np.arange(9, dtype=np.int32))
    part_n = np.where(np.arange(n_cells) % 3 == 0, 1, noise.integers(-1, 3, n_cells))
    part = Categorical("part", ("test", "train", "val"), part_n, np.arange(3, dtype=np.int32))
    splits = draw(
        st.sampled_from(
            [
                holdout_split(donor, n_cells, 0.8, 0.1, seed=draw(st.integers(0, 9))),
                named_split(part, n_cells),
                SeededSplit(n_cells, 0.8, 0.1, 3),
            ]
        )
    )
    if not weighted:
        return make_sampling(splits)
    weight = Numeric("weight", noise.gamma(0.3, size=n_cells).astype(np.float32) + np.float32(1e-3))
    return make_sampling(splits, weight=weight, balance=draw(st.sampled_from([None, donor])))


@st.composite
def plans(draw: st.DrawFn, *, weighted: bool = False) -> Plan:
    lanes = draw(st.sampled_from([1, 2, 3, 4, 8]))
    n_cells = draw(st.integers(9 * lanes + 60, 1500))
    sampling = draw(samplings(n_cells, weighted=True)) if weighted else draw(st.none() | samplings(n_cells))
    shares = (
        {}
        if sampling
        else {
            "train_size": draw(st.sampled_from([0.75, 0.9, 0.99, 1.0])),
            "validation_size": draw(st.sampled_from([0.0, None])),
        }
    )
    return make_plan(
        n_cells=n_cells,
        n_entries=n_cells * 30,
        n_genes=100,
        batch_size=lanes * draw(st.integers(2, 40)),
        lanes=lanes,
        micro_cells=draw(st.integers(2, 64)),
        seed=draw(st.integers(0, 1000)),
        window_cells=draw(st.integers(1, 2000)),
        block_cells=draw(st.none() | st.integers(1, 90)) if sampling else None,
        sampling=sampling,
        **shares,
    )


def small(**changes: object) -> Plan:
    options = {"n_cells": 50, "n_entries": 500, "n_genes": 9, "batch_size": 8, "lanes": 2, "window_cells": 16}
    return make_plan(**(options | changes))  # type: ignore[arg-type]


def step_rows(plan: Plan, epoch: int, step: int) -> list[np.ndarray]:
    return [minibatch_rows(plan, epoch, step, lane) for lane in range(plan.lanes)]


def epoch_rows(plan: Plan, epoch: int) -> np.ndarray:
    windows = [(lane, window) for lane in range(plan.lanes) for window in range(plan.windows_per_epoch)]
    return np.concatenate([window_rows(plan, epoch, lane, window) for lane, window in windows])


@given(plans(), st.integers(0, 60), st.integers(0, 60))
@settings(deadline=None)
def test_the_rows_said_to_be_trained_on_are_those_of_an_epoch(plan, start, length):
    stop = min(start + length, plan.n_cells)
    trained = np.isin(np.arange(start, stop), split_rows(plan, "train", 0, plan.n_train))
    np.testing.assert_array_equal(plan.trains_on(start, stop), trained)


def test_a_training_cell_of_weight_zero_is_not_trained_on():
    weight = Numeric("weight", np.array([0.0, 1e-9, 3.0, 0.0] * 25, dtype=np.float32))
    plan = small(n_cells=100, sampling=make_sampling(SeededSplit(100, 0.8, 0.2, 0), weight=weight))
    train = np.equal(plan.line.sampling.splits.split_of(0, 100), 0)
    np.testing.assert_array_equal(plan.trains_on(0, 100), train & (np.arange(100) % 4 % 3 > 0))


@given(plans(), st.integers(0, 5))
@settings(deadline=None, max_examples=100)
def test_every_training_cell_comes_exactly_once_an_epoch(plan: Plan, epoch: int) -> None:
    rows = epoch_rows(plan, epoch)
    assert len(rows) == plan.n_train
    np.testing.assert_array_equal(np.sort(rows), np.sort(split_rows(plan, "train", 0, plan.n_train)))


@given(plans())
@settings(deadline=None, max_examples=150)
def test_the_splits_share_out_all_cells(plan: Plan) -> None:
    parts = [split_rows(plan, split, 0, plan.split_cells(split)) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [plan.split_cells(split) for split in ("train", "validation", "test")]
    covered = np.arange(plan.n_cells)
    if plan.line:
        covered = np.flatnonzero(plan.line.sampling.splits.split_of(0, plan.n_cells) != LEFT_OUT)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), covered)


@given(plans() | plans(weighted=True))
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


@given(plans() | plans(weighted=True))
@settings(deadline=None, max_examples=30)
def test_windows_hold_what_the_steps_deal_out(plan: Plan) -> None:
    for lane in range(plan.lanes):
        minibatches_of = [minibatch_rows(plan, 3, step, lane) for step in range(plan.steps_per_epoch)]
        windows = [window_rows(plan, 3, lane, window) for window in range(plan.windows_per_epoch)]
        np.testing.assert_array_equal(np.concatenate(minibatches_of), np.concatenate(windows))


@given(plans(weighted=True), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_a_weighted_row_comes_as_often_as_expected_rounded_down_or_up(plan: Plan, epoch: int) -> None:
    rows = epoch_rows(plan, epoch)
    assert plan.line is not None
    mass_n = plan.line.sampling.masses(0, plan.n_cells)
    times = np.bincount(rows, minlength=plan.n_cells) * mass_n.sum()
    assert len(rows) == plan.n_train
    assert (np.abs(times - plan.n_train * mass_n) < mass_n.sum()).all()


@given(plans() | plans(weighted=True), st.integers(0, 3), st.data())
@settings(deadline=None, max_examples=50)
def test_a_global_minibatch_is_the_same_for_every_number_of_workers_and_wherever_a_run_began(
    plan: Plan, epoch: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    world_size = data.draw(st.sampled_from([size for size in range(1, plan.lanes + 1) if plan.lanes % size == 0]))
    shares = [
        [minibatch_rows(plan, epoch, step, lane) for lane in range(rank, plan.lanes, world_size)]
        for rank in range(world_size)
    ]
    fresh = replace(plan, line=WeightedOrder(plan.line.sampling, plan.block_cells, plan.seed) if plan.line else None)
    for lane, row_n in enumerate(step_rows(fresh, epoch, step)):
        np.testing.assert_array_equal(shares[lane % world_size][lane // world_size], row_n)


def test_a_plan_tells_the_shares_that_a_column_gave() -> None:
    codes = np.repeat([0, 1, 2], [60, 25, 15])
    donor = Categorical("donor", ("a", "b", "c"), codes, np.arange(3, dtype=np.int32))
    plan = small(n_cells=100, sampling=make_sampling(holdout_split(donor, 100, 0.6, 0.2, seed=0)))
    assert (plan.train_size, plan.validation_size) == (0.6, 0.15)
    assert [plan.split_cells(split) for split in ("train", "validation", "test")] == [60, 15, 25]


def test_blocks_of_large_mass_make_a_window_less_diverse() -> None:
    def blocks(weight_n: np.ndarray) -> int | None:
        sampling = make_sampling(SeededSplit(4000, 1.0, 0.0, 0), weight=Numeric("weight", weight_n.astype(np.float32)))
        return small(n_cells=4000, window_cells=800, block_cells=10, sampling=sampling).blocks_in_window

    assert blocks(np.ones(4000)) == 80
    assert blocks(np.repeat([1, 0], 2000)) == 40
    assert blocks(np.repeat([9, 1], 2000)) == 49  # 80 (9 + 1) ** 2 / (2 (9 ** 2 + 1 ** 2))


def test_a_row_of_large_weight_is_spread_over_its_window() -> None:
    weight = np.ones(4000, dtype=np.float32)
    weight[1234] = 200
    sampling = make_sampling(SeededSplit(4000, 1.0, 0.0, 0), weight=Numeric("weight", weight))
    plan = make_plan(
        n_cells=4000, n_entries=9, n_genes=9, batch_size=100, lanes=2, window_cells=2000, sampling=sampling
    )
    often = [
        sum(np.count_nonzero(row == 1234) for row in step_rows(plan, 0, step)) for step in range(plan.steps_per_epoch)
    ]
    assert sum(often) in (190, 191)
    assert 1 < max(often) < 30


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


def test_the_order_of_weighted_draws_is_frozen() -> None:
    column = Categorical("part", ("train", "val"), np.arange(50) % 5 // 4, np.arange(2, dtype=np.int32))
    weight = Numeric("weight", np.arange(50) % 3 + np.float32(0.5))
    plan = small(sampling=make_sampling(named_split(column, 50), weight=weight), block_cells=7)
    table = {
        (0, 0): [[46, 45, 31, 47], [2, 1, 6, 5]],
        (0, 1): [[48, 28, 32, 43], [0, 3, 7, 8]],
        (1, 0): [[8, 45, 46, 43], [5, 20, 17, 2]],
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


def large(**changes: object) -> Plan:
    options = {"n_cells": 10**8, "n_entries": 10**8 * 200, "n_genes": 2000, "batch_size": 1024, "lanes": 8}
    return make_plan(**(options | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_cells", [1, 64, 160])
def test_a_window_on_a_sorted_store_mixes_at_least_four_blocks_for_every_cell_of_a_minibatch(chunk_cells: int) -> None:
    plan, longer = large(chunk_cells=chunk_cells), large(chunk_cells=chunk_cells, block_cells=60)
    assert plan.blocks_in_window is not None
    assert plan.blocks_in_window >= 4 * plan.batch_size
    assert plan.diverse
    assert plan.block_cells == 40
    assert not longer.diverse  # no longer block would have done


@pytest.mark.parametrize(("chunk_cells", "block_cells"), [(1, 320), (64, 1020), (256, 4080), (4096, 4080)])
def test_a_shuffled_store_is_read_in_blocks_of_many_chunks(chunk_cells: int, block_cells: int) -> None:
    plan = large(chunk_cells=chunk_cells, shuffled=True)
    assert plan.block_cells == block_cells
    assert plan.diverse
    assert plan.blocks_in_window is not None
    assert plan.blocks_in_window >= 16


def test_a_small_window_on_a_shuffled_store_still_mixes_sixteen_blocks() -> None:
    plan = large(chunk_cells=256, shuffled=True, window_cells=8192)
    assert plan.blocks_in_window in (16, 17)
    assert plan.block_cells == 560


def test_where_no_block_makes_a_window_diverse_the_plan_says_so_and_reads_no_crumbs() -> None:
    plan = large(chunk_cells=256, window_cells=8192)
    assert not plan.diverse
    assert plan.block_cells == 60  # a quarter of a chunk, in whole strata
    assert 4 < plan.read_amplification < 7
    assert large(window_cells=8192).block_cells == 20
    assert small(window_cells=10**6).diverse  # a window that holds the whole epoch


def test_without_held_out_cells_blocks_have_any_length() -> None:
    plan = small(train_size=1.0, block_cells=7)
    np.testing.assert_array_equal(np.sort(epoch_rows(plan, 0)), np.arange(50))
    assert large(train_size=1.0).block_cells % 20


@pytest.mark.parametrize(
    ("block_cells", "chunk_cells", "lanes"), [(20, 1, 4), (20, 64, 4), (100, 64, 1), (100, 64, 8), (1000, 64, 8)]
)
def test_the_predicted_rows_decompressed_are_those_of_the_chunks_touched(
    block_cells: int, chunk_cells: int, lanes: int
) -> None:
    plan = make_plan(
        n_cells=100_000,
        n_entries=10**6,
        n_genes=9,
        batch_size=64,
        lanes=lanes,
        window_cells=6400,
        block_cells=block_cells,
        chunk_cells=chunk_cells,
    )
    decompressed = 0
    for window in range(plan.windows_per_epoch):
        for lane in range(lanes):
            row_n = np.sort(window_rows(plan, 0, lane, window))
            for block in np.split(row_n, np.flatnonzero(np.diff(row_n // block_cells)) + 1):
                # Chunks are cut by entries: they begin anywhere in a block.
                first, last = (block[[0, -1]] + block[0] // block_cells * 37) // chunk_cells
                decompressed += (last - first + 1) * chunk_cells
    assert decompressed / plan.n_train == pytest.approx(plan.read_amplification, rel=0.04)


def test_a_window_of_the_whole_epoch_decompresses_the_store_once() -> None:
    plan = small(window_cells=10**6, chunk_cells=64)
    assert plan.read_amplification == plan.n_cells / plan.n_train
    assert plan.window_steps == plan.steps_per_epoch


@pytest.mark.parametrize(
    ("batch_size", "lanes", "block_cells", "window_cells", "n_labels"),
    [
        (64, 1, 20, 1280, 8),  # 71 blocks
        (64, 4, 20, 1280, 8),
        (128, 1, 40, 3072, 8),
        (128, 8, 100, 12_800, 12),
        (256, 4, 20, 512, 8),  # a window of two minibatches
        (128, 4, 2000, 200_000, 8),  # a window of the whole epoch
    ],
)
def test_the_predicted_loss_of_entropy_is_what_a_sorted_store_shows(
    batch_size: int, lanes: int, block_cells: int, window_cells: int, n_labels: int
) -> None:
    plan = make_plan(
        n_cells=200_000,
        n_entries=10**6,
        n_genes=9,
        batch_size=batch_size,
        lanes=lanes,
        window_cells=window_cells,
        block_cells=block_cells,
    )
    label = np.arange(plan.n_cells) // 4000 % n_labels  # every block of a single label
    whole = np.bincount(label) / plan.n_cells
    found = []
    for window in range(0, plan.windows_per_epoch - 1 or 1, max(1, plan.windows_per_epoch // 60)):
        rows = [window_rows(plan, 0, lane, window) for lane in range(lanes)]
        for step in range(min(plan.window_steps, 40)):
            low, high = step * plan.lane_cells, (step + 1) * plan.lane_cells
            share = np.bincount(label[np.concatenate([row[low:high] for row in rows])], minlength=n_labels) / batch_size
            found.append(-(share[share > 0] * np.log2(share[share > 0])).sum())
    assert plan.blocks_in_window is None or plan.blocks_in_window >= 28
    lost = -(whole * np.log2(whole)).sum() - np.mean(found)
    assert lost == pytest.approx(plan.entropy_loss_bits(n_labels), abs=0.006)


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
        (
            {"train_size": 0.9, "sampling": make_sampling(SeededSplit(50, 0.8, 0.1, 0))},
            r"train_size=0\.9, validation_size=None: give these to open_sampling instead",
        ),
        ({"block_cells": 0, "train_size": 1.0}, r"block_cells=0 must be a multiple of 1"),
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
    assert (small(), replace(small(), seed=1)) == (small(), small(seed=1))
