"""The plan of a pass over labelled cells: how they are listed, what decides their order, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from dist_scvi.loaders.labelled_stream import LabelledSplit, ListedOrder, labelled_plan
from dist_scvi.loaders.order.weighted_order import WeightedOrder
from tests.loaders.labelled_cells import open_cells, pass_rows, plan_of, some_cells


def test_many_labelled_cells_are_read_block_by_block_and_few_are_listed() -> None:
    data = some_cells(3000, 0.9)
    plan = plan_of(data)
    assert isinstance(labelled_plan(data, plan, window_cells=320).line, WeightedOrder)
    assert isinstance(labelled_plan(data, plan, window_cells=320, n_samples_per_label=3000).line, WeightedOrder)
    assert isinstance(labelled_plan(data, plan, window_cells=320, n_samples_per_label=300).line, ListedOrder)
    assert isinstance(labelled_plan(data, plan).line, ListedOrder)


def test_the_digest_tells_other_labels_and_other_numbers_of_them() -> None:
    one, other = some_cells(500, 0.5), some_cells(500, 0.5, seed=1)
    plans = [labelled_plan(data, plan_of(data), n_samples_per_label=n) for data in (one, other) for n in (None, 3, 4)]
    assert len({plan.line.digest for plan in plans}) == 6


def test_a_seed_gives_another_split_order_and_draw() -> None:
    data = some_cells(500, 1.0)
    drawn = [
        np.concatenate(pass_rows(labelled_plan(data, plan_of(data, seed=seed), n_samples_per_label=20), 0))
        for seed in (0, 1)
    ]
    assert len(set(drawn[0].tolist()) & set(drawn[1].tolist())) < 30


def test_the_split_says_nothing_of_rows_that_have_no_label_or_are_held_out() -> None:
    data = some_cells(200, 0.5)
    split = LabelledSplit(data.label, plan_of(data))
    label_n = data.columns_of([(0, 200)]).label_n
    np.testing.assert_array_equal(split.labels(30, 170), np.where(split.plan.trains_on(0, 200), label_n, -1)[30:170])
    np.testing.assert_array_equal(split.split_of(30, 170) == 0, split.labels(30, 170) >= 0)


def test_cells_without_labels_are_refused_with_what_to_change() -> None:
    data = open_cells(np.ones(100, dtype=int))
    with pytest.raises(ValueError, match=r"opened without labels: name the obs column that holds them as labels_key"):
        labelled_plan(replace(data, label=None), plan_of(data))
    data = open_cells(np.where(np.arange(100) % 2, 0, -1))
    expected = (
        r"none of the training cells has a label in obs column 'type' \(labels_key\), where unlabeled_category='\?' is "
        r"none: at least two are needed"
    )
    for n_samples in (None, 5):
        with pytest.raises(ValueError, match=expected):
            labelled_plan(data, plan_of(data), n_samples_per_label=n_samples)
    data = open_cells((np.arange(100) == 50).astype(int))
    with pytest.raises(ValueError, match=r"1 of the training cells has a label .* at least two are needed"):
        labelled_plan(data, plan_of(data, train_size=1.0, validation_size=0.0))


def test_numbers_that_make_no_draw_are_refused() -> None:
    data = open_cells(np.ones(100, dtype=int))
    with pytest.raises(ValueError, match="n_samples_per_label=0: 1 or more are needed, or None for all cells"):
        labelled_plan(data, plan_of(data), n_samples_per_label=0)
    with pytest.raises(ValueError, match="redraw_steps=0: 1 or more are needed"):
        labelled_plan(data, plan_of(data), redraw_steps=0)
    with pytest.raises(ValueError, match=r"n_samples_per_label=1 draws one cell in all, .* 'type' .* raise it"):
        labelled_plan(data, plan_of(data), n_samples_per_label=1)
