import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from dist_scvi.loaders.arrays.obs_columns import (
    Numeric,
    PagedArray,
    categorical_from_codes,
    categorical_from_values,
    missing_column,
)


class Counted:
    """A stored array that counts how often it is read."""

    name = "obs/age"

    def __init__(self, length):
        self.shape, self.reads = (length,), 0

    def __getitem__(self, rows):
        self.reads += 1
        return np.arange(self.shape[0])[rows]


@pytest.mark.parametrize("span", [(0, 0), (0, 1), (9, 11), (0, 95), (90, 95), (30, 61), (95, 95), (90, 200)])
def test_pages_join_to_the_range_asked_for(span):
    paged = PagedArray(Counted(95), page_rows=10)
    assert_array_equal(paged[slice(*span)], np.arange(95)[slice(*span)])


def test_a_page_is_read_once_while_it_is_held():
    stored = Counted(100)
    paged = PagedArray(stored, page_rows=10, max_rows=20)
    for start in (0, 3, 12, 5, 19):
        paged[start : start + 1]
    assert stored.reads == 2
    paged[50:51], paged[0:1]
    assert stored.reads == 4


def test_a_page_that_cannot_be_read_is_named():
    class Broken(Counted):
        def __getitem__(self, rows):
            raise RuntimeError("bad block")

    with pytest.raises(ValueError, match=r"obs/age of a.zarr cannot be read at 10 to 14: .*\(bad block\)"):
        PagedArray(Broken(15), "a.zarr", page_rows=10)[12:13]


def test_codes_are_mapped_to_the_sorted_vocabulary():
    column = categorical_from_codes("k", ["b", "c", "a"], np.array([0, 1, 2, -1, 0], dtype=np.int8))
    assert column.vocabulary == ("a", "b", "c")
    assert_array_equal(column.codes(0, 5), [1, 2, 0, -1, 1])


def test_categories_of_one_name_become_one():
    column = categorical_from_codes("k", [1, "1", 2], np.array([0, 1, 2]))
    assert (column.vocabulary, list(column.codes(0, 3))) == (("1", "2"), [0, 0, 1])


@pytest.mark.parametrize(
    ("values", "vocabulary", "codes"),
    [
        ([10, 9, 10], ("10", "9"), [0, 1, 0]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["y", None, "x"], ("x", "y"), [1, -1, 0]),
        (np.array([0.5, np.nan, 0.5]), ("0.5",), [0, -1, 0]),
        (pd.array(["y", pd.NA, "x"], dtype="string"), ("x", "y"), [1, -1, 0]),
        (pd.array([2, pd.NA, 1], dtype="Int64"), ("1", "2"), [1, -1, 0]),
    ],
)
def test_values_of_any_kind_are_taken_by_their_names(values, vocabulary, codes):
    column = categorical_from_values("k", values)
    assert (column.vocabulary, list(column.codes(0, 3))) == (vocabulary, codes)


def test_the_row_without_a_value_is_counted_from_the_start_of_the_store():
    column = categorical_from_values("k", ["x"] * 7 + [None] + ["x"])
    assert_array_equal(column.required_codes(0, 7), 0)
    with pytest.raises(ValueError, match="'k' has no value at row 7"):
        column.required_codes(4, 9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_must_be_finite(bad):
    with pytest.raises(ValueError, match=f"obs column 'age' is {bad} at row 2"):
        Numeric("age", np.array([0, 1, bad])).values(1, 3)


def test_an_absent_column_is_told_with_the_nearest_and_all():
    assert str(missing_column("bacth", ["batch", "age"], "a.zarr")) == (
        "a.zarr has no obs column 'bacth': did you mean 'batch'? present are batch, age"
    )
    assert str(missing_column("x", [], "a.zarr")) == "a.zarr has no obs column 'x': present are none"
