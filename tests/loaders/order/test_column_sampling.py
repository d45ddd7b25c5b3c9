"""Splits by columns are disjoint and keep categories whole; masses are in proportion to the weights."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import sparse

from dist_scvi.loaders import open_store
from dist_scvi.loaders.arrays.obs_columns import Categorical, Numeric
from dist_scvi.loaders.order.column_sampling import holdout_split, make_sampling, named_split, open_sampling
from dist_scvi.loaders.order.seeded_split import LEFT_OUT, TEST, TRAIN, VALIDATION, SeededSplit

STEP = 1 << 20


def column(codes, names=None, key="donor") -> Categorical:
    codes = np.asarray(codes)
    names = names or [f"d{code}" for code in range(codes.max() + 1)]
    return Categorical(key, tuple(names), codes, np.arange(len(names), dtype=np.int32))


def numbers(values, key="weight") -> Numeric:
    return Numeric(key, np.asarray(values, dtype=np.float32))


CODES = st.lists(st.integers(-1, 6), min_size=1, max_size=300).filter(lambda codes: len(set(codes) - {-1}) >= 3)


@given(CODES, st.sampled_from([(0.9, 0.1), (0.8, 0.1), (0.5, 0.5), (0.34, 0.33), (0.01, 0.98)]), st.integers(0, 9))
@settings(deadline=None)
def test_whole_categories_go_to_one_split_each_and_every_wanted_split_gets_some(codes, shares, seed):
    splits = holdout_split(column(codes), len(codes), *shares, seed=seed)
    split_n = splits.split_of(0, len(codes))
    for code in set(codes):
        assert len(set(split_n[np.array(codes) == code])) == 1
    assert_array_equal(split_n == LEFT_OUT, np.array(codes) == -1)
    wanted = {TRAIN, VALIDATION} | ({TEST} if sum(shares) < 0.999 else set())
    assert set(split_n) - {LEFT_OUT} == wanted
    names = [name for split in (TRAIN, VALIDATION, TEST) for name in splits.categories(split)]
    assert sorted(names) == list(splits.column.vocabulary)


def test_held_out_categories_come_near_to_their_share_and_change_with_the_seed():
    codes = np.repeat(np.arange(100), np.random.default_rng(0).integers(5, 200, 100))
    chosen = set()
    for seed in range(5):
        splits = holdout_split(column(codes), len(codes), 0.8, 0.1, seed=seed)
        share = np.bincount(splits.split_of(0, len(codes)), minlength=3) / len(codes)
        np.testing.assert_allclose(share, [0.8, 0.1, 0.1], atol=0.001)
        chosen.add(tuple(splits.categories(VALIDATION)))
    assert len(chosen) == 5


def test_a_category_of_exactly_the_share_fits():
    for seed in range(5):
        splits = holdout_split(column(np.repeat(np.arange(10), 100)), 1000, 0.8, 0.1, seed=seed)
        assert [len(splits.categories(split)) for split in (TRAIN, VALIDATION, TEST)] == [8, 1, 1]
        splits = holdout_split(column(np.repeat([0, 1, 2], [800, 99, 101])), 1000, 0.8, 0.099, seed=seed)
        assert splits.categories(TEST) == ["d2"]


def test_one_large_category_does_not_take_the_place_of_the_small_ones():
    codes = np.repeat([0, 1, 2, 3], [600, 50, 250, 100])
    for seed in range(8):
        assert holdout_split(column(codes), 1000, 0.9, 0.1, seed=seed).categories(TRAIN)[:1] == ["d0"]


def test_where_all_categories_are_too_large_the_smallest_is_held_out():
    codes = np.repeat([0, 1, 2], [40, 35, 25])
    assert holdout_split(column(codes), 100, 0.95, 0.05, seed=1).categories(VALIDATION) == ["d2"]


def test_which_categories_are_held_out_never_changes():
    codes = np.repeat(np.arange(12), 10)
    splits = holdout_split(column(codes), 120, 0.7, 0.2, seed=5)
    assert (splits.categories(VALIDATION), splits.categories(TEST)) == (["d6", "d8"], ["d0"])


@pytest.mark.parametrize(("codes", "found"), [([0] * 9, 1), ([0] * 5 + [2] * 5, 2)])
def test_a_column_of_fewer_categories_than_splits_is_refused(codes, found):
    with pytest.raises(ValueError, match=rf"obs column 'donor' has {found} categories with cells: 3 are needed, one"):
        holdout_split(column(codes), len(codes), 0.8, 0.1, seed=0)


def test_named_splits_are_taken_by_name_in_any_case_and_cells_without_one_are_left_out():
    names = ["Train", "VAL", "test", "unused", "valid", "validation"]
    splits = named_split(column([0, 1, 2, -1, 4, 5, 0], names), 7)
    assert_array_equal(splits.split_of(0, 7), [TRAIN, VALIDATION, TEST, LEFT_OUT, VALIDATION, VALIDATION, TRAIN])
    assert_array_equal(splits.split_of(3, 5), [LEFT_OUT, VALIDATION])


def test_other_names_of_splits_are_refused():
    with pytest.raises(
        ValueError, match=r"obs column 'donor' holds 'a', 'b': 'train', 'validation' and 'test' are nee"
    ):
        named_split(column([0, 1, 2], ["a", "b", "train"]), 3)
    with pytest.raises(ValueError, match=r"obs column 'donor' holds no cell of 'train'"):
        named_split(column([1, 1], ["train", "val"]), 2)


@given(CODES, st.data())
@settings(deadline=None)
def test_the_rows_of_the_splits_are_disjoint_and_cover_all_but_those_left_out(codes, data):
    splits = holdout_split(column(codes), len(codes), 0.6, 0.2, seed=1)
    sampling = make_sampling(splits)
    split_n = splits.split_of(0, len(codes))
    for split in (TRAIN, VALIDATION, TEST):
        cells = sampling.split_cells(split)
        low = data.draw(st.integers(0, cells))
        high = data.draw(st.integers(low, cells))
        assert_array_equal(sampling.rows(split, low, high), np.flatnonzero(split_n == split)[low:high])
    assert_array_equal(sampling.masses(0, len(codes)), split_n == TRAIN)


def test_rows_of_a_split_are_found_over_pages_that_hold_none_of_it():
    codes = np.repeat([0, 1, 0, 1, 0], [100_000, 10, 200_000, 70_000, 9])
    sampling = make_sampling(named_split(column(codes, ["train", "val"]), len(codes)))
    rows = np.flatnonzero(codes == 1)
    assert sampling.split_cells(VALIDATION) == len(rows)
    for low, high in ((0, 10), (5, 12), (9, 10), (10, 70_010), (60_000, 60_001), (0, 70_010), (4, 4)):
        assert_array_equal(sampling.rows(VALIDATION, low, high), rows[low:high])


def test_a_weight_is_taken_in_steps_of_the_largest_of_train():
    splits = named_split(column([0, 0, 0, 0, 1], ["train", "val"]), 5)
    sampling = make_sampling(splits, weight=numbers([4.0, 1.0, 0.0, 1e-9, 99.0]))
    assert sampling.masses(0, 5).tolist() == [STEP, STEP // 4, 0, 1, 0]
    assert sampling.masses(1, 3).tolist() == [STEP // 4, 0]


def test_balanced_categories_have_equal_mass_among_the_training_cells():
    splits = named_split(column(np.repeat([0, 1], [111, 50]), ["train", "val"]), 161)
    kind = column(np.repeat([0, 1, 2, 0], [1, 10, 100, 50]), ["a", "b", "c"])
    mass_n = make_sampling(splits, balance=kind).masses(0, 161)
    total = np.bincount(kind.codes(0, 161), weights=mass_n)
    np.testing.assert_allclose(total, STEP, rtol=1e-4)
    assert not mass_n[111:].any()


def test_weights_and_balance_multiply():
    kind = column([0, 0, 1, 1, 1, 1], ["a", "b", "absent"])
    mass_n = make_sampling(SeededSplit(6, 1.0, 0.0, 0), weight=numbers([2, 1, 2, 1, 0, 1]), balance=kind).masses(0, 6)
    assert mass_n.tolist() == [STEP, STEP // 2, STEP // 2, STEP // 4, 0, STEP // 4]


def test_a_seeded_split_can_be_weighted():
    splits = SeededSplit(1000, 0.9, 0.05, 4)
    sampling = make_sampling(splits, weight=numbers(np.full(1000, 3.0)))
    assert_array_equal(sampling.masses(0, 1000), STEP * (splits.split_of(0, 1000) == TRAIN))
    assert [sampling.split_cells(split) for split in (TRAIN, VALIDATION, TEST)] == [900, 50, 50]


def test_weights_that_cannot_be_used_are_refused():
    whole = SeededSplit(3, 1.0, 0.0, 0)
    with pytest.raises(ValueError, match=r"obs column 'weight' is -0\.5 at row 2: weights >= 0 are needed"):
        make_sampling(whole, weight=numbers([1, 2, -0.5]))
    with pytest.raises(ValueError, match="obs column 'weight' is nan at row 1"):
        make_sampling(whole, weight=numbers([1, np.nan, 0]))
    with pytest.raises(ValueError, match="obs column 'weight' is 0 in every training cell"):
        make_sampling(named_split(column([0, 0, 1], ["train", "val"]), 3), weight=numbers([0, 0, 5]))
    with pytest.raises(ValueError, match="obs column 'donor' has no value at row 1"):
        make_sampling(whole, balance=column([0, -1, 0]))


@pytest.fixture(scope="module")
def store():
    rows = np.arange(400)
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical([f"d{row // 40}" for row in rows]),
            "part": pd.Categorical(np.where(rows % 4 == 0, "val", "train")),
            "weight": (rows % 3).astype(np.float32),
        },
        index=[f"c{row}" for row in rows],
    )
    return open_store(AnnData(sparse.csr_matrix((400, 3), dtype=np.float32), obs=obs))


def test_columns_of_a_store_are_opened_by_name(store):
    assert open_sampling(store, seed=0, train_size=0.8) is None
    held_out = open_sampling(store, seed=0, holdout_key="donor", train_size=0.8, validation_size=0.1)
    assert [held_out.split_cells(split) for split in (TRAIN, VALIDATION, TEST)] == [320, 40, 40]
    named = open_sampling(store, seed=0, split_key="part", weight_key="weight", balance_key="donor")
    assert [named.split_cells(split) for split in (TRAIN, VALIDATION, TEST)] == [300, 100, 0]
    assert named.masses(0, 6).tolist() == [0, STEP // 2, STEP, 0, 0, STEP]
    seeded = open_sampling(store, seed=0, weight_key="weight")
    assert_array_equal(
        seeded.masses(0, 400) > 0, (SeededSplit(400, 0.9, 0.1, 0).split_of(0, 400) == 0) & (np.arange(400) % 3 > 0)
    )


@pytest.mark.parametrize("given_too", [{"holdout_key": "donor"}, {"train_size": 0.9}, {"validation_size": 0.1}])
def test_a_column_of_splits_leaves_nothing_else_to_choose(store, given_too):
    with pytest.raises(
        ValueError, match=rf"split_key='part' says which cells are held out: leave out {next(iter(given_too))}"
    ):
        open_sampling(store, seed=0, split_key="part", **given_too)
