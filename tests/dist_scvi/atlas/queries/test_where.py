"""Filters: the same cells as pandas chooses, counted by clause, in a language that runs nothing."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_scvi.atlas.queries.filter_language import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES, parse
from dist_scvi.atlas.queries.where import choose_cells, where

AS_PANDAS = [
    "label == 'T'",
    "label != 'T' and batch == \"b1\"",
    "label in ['T', 'NK'] and n_counts > 90",
    "not (label in ('T',) or n_counts <= 80.5)",
    "donor != 'd1'",
    "donor not in ['d1', 'd2',]",
    "60 < n_counts <= 100 or site == 'x' and batch == 'b0'",
    "age >= -1e1 and not not label == 'B'",
]


@pytest.mark.parametrize("text", AS_PANDAS)
def test_a_filter_keeps_the_cells_that_pandas_keeps(atlas, text):
    chosen = where(atlas, text)
    expected = atlas.obs.frame.reset_index(drop=True).query(text).index
    np.testing.assert_array_equal(chosen.rows(atlas), expected)
    assert chosen.n_cells == len(expected)
    assert str(parse(chosen.text)) == chosen.text


def test_numbers_match_categories_and_order_those_that_are_numbers(atlas):
    cluster = atlas.obs.frame["cluster"].astype(int)
    np.testing.assert_array_equal(choose_cells(atlas, "cluster == 3").rows(atlas), np.flatnonzero(cluster == 3))
    np.testing.assert_array_equal(choose_cells(atlas, "cluster > 1.0").rows(atlas), np.flatnonzero(cluster > 1))


def test_a_missing_value_is_found_by_is_none_alone(atlas):
    missing = atlas.obs.frame["donor"].isna().to_numpy()
    np.testing.assert_array_equal(choose_cells(atlas, "donor is None").rows(atlas), np.flatnonzero(missing))
    np.testing.assert_array_equal(choose_cells(atlas, "donor is not None").rows(atlas), np.flatnonzero(~missing))


def test_each_clause_reports_the_cells_it_keeps_alone_and_after_those_before_it(atlas):
    frame = atlas.obs.frame
    clauses = where(atlas, "label == 'T' and n_counts > 90").clauses
    first, second = frame["label"] == "T", frame["n_counts"] > 90
    assert clauses["cells"].tolist() == [first.sum(), second.sum()]
    assert clauses["kept"].tolist() == [first.sum(), (first & second).sum()]
    assert clauses["clause"].tolist() == ["label == 'T'", "n_counts > 90"]


def test_a_filter_over_the_columns_of_the_leaves_reads_no_cell(atlas):
    chosen = where(atlas, "label == 'T' and site != 'x'")
    frame = atlas.obs.frame
    expected = np.flatnonzero((frame["label"] == "T") & (frame["site"] != "x"))
    assert chosen.leaf_l is not None
    assert chosen.n_cells == len(expected)
    np.testing.assert_array_equal(chosen.rows(atlas), expected)


def test_rows_masks_mappings_and_filters_choose_the_same_cells(atlas):
    rows = choose_cells(atlas, "label == 'T' and donor == 'd1'").rows(atlas)
    mask = np.isin(np.arange(atlas.n_cells), rows)
    for cells in (rows[::-1], mask, {"label": ["T"], "donor": "d1"}):
        np.testing.assert_array_equal(choose_cells(atlas, cells).rows(atlas), rows)
    within = choose_cells(atlas, "donor == 'd1'", within=choose_cells(atlas, "label == 'T'"))
    np.testing.assert_array_equal(within.rows(atlas), rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labl == 'T'", "did you mean 'label'"),
        ("label == 't'", "did you mean 'T'"),
        ("label in ['T', 'Nk']", "did you mean 'NK'"),
        ("site == 'plasma'", "it has 'x', 'y', 'z'"),
        ("label > 3", "have no order"),
        ("n_counts == 'many'", "holds numbers, not 'many'"),
        ("label == 'T' and n_counts > 1e9", "n_counts > 1000000000.0 keeps 0"),
        ("", "needed there"),
        ("label", "no value True"),
        ("label == ", "the end: a number, a text"),
        ("label = 'T'", "at character 7"),
        ("label == 'T' garbage", "'and', 'or' or the end"),
        ("label == 'T", "at character 10"),
        ("label in 'T'", "a list such as"),
        ("label in ['T'", "',' or ']'"),
        ("(label == 'T'", "')'"),
        ("__import__('os').system('true') == 1", "at character 11"),
        ("label == T", "a number, a text"),
        ("[x for x in y]", "is needed there"),
        ("label.str.len() > 1", "at character 14"),
    ],
)
def test_what_is_not_a_filter_over_these_columns_is_refused_in_one_line(atlas, text, message):
    with pytest.raises(ValueError, match=r".") as caught:
        choose_cells(atlas, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(" * (MAX_DEPTH + 2) + "a == 1" + ")" * (MAX_DEPTH + 2), "levels deep"),
        ("(" * 90_000, "levels deep"),
        ("a == '" + "x" * MAX_CHARACTERS + "'", "characters"),
        ("a in [" + "1," * (MAX_VALUES + 1) + "]", "values"),
        ("not " * 20_000, "needed there"),
    ],
)
def test_length_depth_and_values_are_bounded(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_a_value_error(text):
    try:
        condition = parse(text)
    except ValueError:
        return
    assert parse(str(condition)) == condition


def test_an_obs_of_true_and_false_may_stand_alone(atlas, monkeypatch):
    frame = atlas.obs.frame.assign(doublet=pd.Categorical(atlas.obs.frame["n_counts"] > 90))
    monkeypatch.setattr(type(atlas.obs), "frame", frame, raising=False)
    object.__setattr__(atlas.obs, "frame", frame)
    many = np.flatnonzero(frame["n_counts"] > 90)
    np.testing.assert_array_equal(choose_cells(atlas, "doublet").rows(atlas), many)
    np.testing.assert_array_equal(choose_cells(atlas, "`doublet` == True").rows(atlas), many)
