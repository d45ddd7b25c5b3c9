"""Systematic draws from a line of masses: every row as often as it weighs, found by one number for each block."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from dist_scvi.loaders.arrays.obs_columns import Categorical, Numeric
from dist_scvi.loaders.order.column_sampling import holdout_split, make_sampling
from dist_scvi.loaders.order.keyed_hash import hash_keys
from dist_scvi.loaders.order.plan import make_plan, split_rows
from dist_scvi.loaders.order.seeded_split import TRAIN, SeededSplit, order_of_blocks
from dist_scvi.loaders.order.weighted_order import WeightedOrder
from tests.loaders.order.lane_rows import minibatch_rows


def line_of(weights, block_cells=8, *, seed=0, train_size=1.0) -> WeightedOrder:
    weight = Numeric("weight", np.asarray(weights, dtype=np.float32))
    splits = SeededSplit(len(weights), train_size, 1 - train_size, seed)
    return WeightedOrder(make_sampling(splits, weight=weight), block_cells, seed)


def slow_draws(line: WeightedOrder, block_cells: int, seed: int, epoch: int) -> list[int]:
    """Every draw of an epoch in whole numbers of any length, with an array of all masses."""
    n_cells = line.sampling.n_cells
    n_blocks = -(-n_cells // block_cells)
    order = order_of_blocks(np.arange(n_blocks), n_blocks, seed, epoch)
    row_n = np.concatenate([np.arange(b * block_cells, min((b + 1) * block_cells, n_cells)) for b in order])
    stop_n = np.cumsum(line.sampling.masses(0, n_cells)[row_n])
    length, n_draws = int(stop_n[-1]), line.sampling.split_cells(TRAIN)
    offset = hash_keys(seed, 5, epoch) % length
    places = [(draw * length + offset) // n_draws for draw in range(n_draws)]
    return row_n[np.searchsorted(stop_n, places, side="right")].tolist()


WEIGHTS = st.lists(st.sampled_from([0.0, 0.0, 1e-6, 0.3, 1.0, 7.0, 1e4]), min_size=1, max_size=200).filter(any)


@given(WEIGHTS, st.integers(1, 30), st.integers(0, 9), st.integers(0, 9), st.data())
@settings(deadline=None)
def test_any_part_of_the_draws_is_that_of_the_whole_line(weights, block_cells, seed, epoch, data):
    line = line_of(weights, block_cells, seed=seed)
    draws = slow_draws(line, block_cells, seed, epoch)
    low = data.draw(st.integers(0, len(draws) - 1))
    high = data.draw(st.integers(low + 1, len(draws)))
    assert line.draws(epoch, low, high).tolist() == draws[low:high]


@given(WEIGHTS, st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None)
def test_a_row_is_drawn_as_often_as_it_weighs_rounded_down_or_up(weights, block_cells, epoch):
    line = line_of(weights, block_cells)
    mass_n = line.sampling.masses(0, len(weights))
    times = np.bincount(line.draws(epoch, 0, len(weights)), minlength=len(weights))
    assert (np.abs(times * mass_n.sum() - len(weights) * mass_n) < mass_n.sum()).all()


def test_over_epochs_the_rows_are_drawn_in_proportion_to_their_weights():
    weights = np.random.default_rng(0).gamma(0.5, size=300)
    line = line_of(weights, 16, train_size=0.8)
    mass_n = line.sampling.masses(0, 300)
    expected = 240 * mass_n / mass_n.sum()
    times = sum(np.bincount(line.draws(epoch, 0, 240), minlength=300) for epoch in range(400)) / 400
    # a fractional expectation f is met by a coin of variance f (1 - f) <= 1 / 4
    assert np.sqrt(np.mean((times - expected) ** 2)) < 0.5 / np.sqrt(400)
    assert not times[mass_n == 0].any()


def test_equal_weights_draw_every_training_row_once():
    line = line_of(np.full(1000, 2.5), 7, train_size=0.9)
    for epoch in range(3):
        assert_array_equal(np.sort(line.draws(epoch, 0, 900)), line.sampling.rows(TRAIN, 0, 900))


class Wide:
    """A hundred million rows, of which every second weighs 2**20 and the others 1, in blocks of a thousand."""

    n_cells = 10**8
    pattern = np.tile(np.array([1 << 20, 1]), 1 << 17)

    def __init__(self, n_draws: int) -> None:
        self.n_draws, self.asked = n_draws, 0

    def split_cells(self, split: int) -> int:
        return self.n_draws

    def masses(self, start: int, stop: int) -> np.ndarray:
        self.asked += stop - start
        return self.pattern[: stop - start]


def test_draws_are_exact_where_their_products_exceed_64_bits():
    n_draws, n_blocks, pair = 10**9 + 7, 10**5, (1 << 20) + 1  # as many draws as a billion cells make
    line = WeightedOrder(Wide(n_draws), 1000, 3)
    length = n_blocks * 500 * pair
    assert n_draws * length > 2**63
    order = order_of_blocks(np.arange(n_blocks), n_blocks, 3, 11)
    offset = hash_keys(3, 5, 11) % length
    for low in (0, 123_456_789, n_draws - 4):
        expected = []
        for draw in range(low, low + 4):
            block, rest = divmod((draw * length + offset) // n_draws, 500 * pair)
            expected.append(int(order[block]) * 1000 + 2 * (rest // pair) + (rest % pair >= 1 << 20))
        assert line.draws(11, low, low + 4).tolist() == expected


def test_a_place_among_a_hundred_million_rows_is_found_by_the_masses_of_its_blocks_alone():
    wide = Wide(10**8)
    line = WeightedOrder(wide, 1000, 0)
    assert line.n_blocks == 10**5
    assert wide.asked == wide.n_cells  # once, when the line is made
    wide.asked = 0
    for low in (0, 77_777_777, 10**8 - 20_000):
        assert len(line.draws(4, low, low + 20_000)) == 20_000
    assert wide.asked <= 3 * 22_000
    plan_windows = line._stops.cache_info()
    assert (plan_windows.misses, plan_windows.hits) == (1, 2)


class Counting:
    """A column that counts the values it was asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.asked = values, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.asked += len(self.values[rows])
        return self.values[rows]

    def __len__(self) -> int:
        return len(self.values)


def test_seeking_by_a_column_reads_it_for_the_rows_of_one_window_alone() -> None:
    n_cells = 400_000
    stored = Counting(np.repeat(np.arange(400, dtype=np.int16), 1000))
    donor = Categorical("donor", tuple(f"d{code:03d}" for code in range(400)), stored, np.arange(400, dtype=np.int32))
    sampling = make_sampling(holdout_split(donor, n_cells, 0.9, 0.1, seed=0))
    plan = make_plan(
        n_cells=n_cells, n_entries=9, n_genes=9, batch_size=128, lanes=4, window_cells=4096, sampling=sampling
    )
    stored.asked = 0
    assert len(minibatch_rows(plan, 7, plan.steps_per_epoch - 1, 3)) >= 2
    assert stored.asked <= 2 * 4096 // 4
    stored.asked = 0
    split_rows(plan, "validation", 30_000, 31_000)
    assert stored.asked <= 2 * (1 << 16)


def test_blocks_count_by_their_masses_in_the_diversity_of_a_window():
    even = line_of(np.ones(1000), 10)
    assert (even.n_blocks, even.block_draws) == (100, pytest.approx(10))
    uneven = line_of(np.repeat([1.0, 0.0, 9.0], [100, 800, 100]), 10)
    assert uneven.n_blocks == 20
    assert uneven.block_draws == pytest.approx(1000 * (10 * 0.01**2 + 10 * 0.09**2))


def test_the_digest_tells_other_masses_and_other_splits():
    weights = np.arange(1, 101)
    lines = [
        line_of(weights),
        line_of(weights[::-1]),
        line_of(np.ones(100), train_size=0.9),
        line_of(np.ones(100), train_size=0.9, seed=1),
    ]
    assert len({line.digest for line in lines}) == 4
    assert line_of(weights).digest == lines[0].digest
