import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose
from scipy import sparse
from scipy.stats import entropy

from dist_scvi.loaders import open_store
from dist_scvi.loaders.cell_store import open_column
from dist_scvi.loaders.checks.scan_columns import ColumnPass, ColumnSummary, groups, suggested


def store_of(obs: dict):
    n = len(next(iter(obs.values())))
    names = [f"cell{row}" for row in range(n)]
    return open_store(AnnData(sparse.csr_matrix((n, 3)), obs=pd.DataFrame(obs, index=names)))


def summary_of(values, step: int = 1000) -> ColumnSummary:
    store = store_of({"key": values})
    column = ColumnPass(store, "key")
    for start in range(0, store.n_cells, step):
        column.add(start, min(start + step, store.n_cells))
    return column.summary()


def test_categories_are_counted_with_the_most_frequent_and_the_missing():
    found = summary_of(pd.Categorical(["a"] * 5 + ["b"] * 9 + ["c"] + ["d"] * 7 + [None] * 2, list("dcbae")), step=7)
    assert (found.kind, found.n_categories, found.n_missing) == ("categories", 5, 2)
    assert list(found.most_frequent.items()) == [("b", 9), ("d", 7), ("a", 5)]


def test_numbers_have_a_range_and_are_counted_while_few():
    found = summary_of(np.array([3.5, np.nan, -1.0, 3.5, 3.5, -1.0, 8.0]), step=2)
    assert (found.kind, found.n_categories, found.n_missing, found.range) == ("numbers", 3, 1, (-1.0, 8.0))
    assert found.most_frequent == {"3.5": 3, "-1": 2, "8": 1}
    assert summary_of(np.arange(12) % 4).most_frequent == {"0": 3, "1": 3, "2": 3}


def test_more_values_than_can_be_counted_are_not():
    numbers = summary_of(np.arange(5000))
    assert (numbers.n_categories, numbers.most_frequent, numbers.range) == (None, {}, (0.0, 4999.0))
    names = summary_of([f"b{row}" for row in range(5000)])
    assert (names.n_categories, names.most_frequent) == (5000, {})


@pytest.mark.parametrize("step", [64, 320, 1000, 20_000])
def test_entropy_is_that_of_scipy_over_all_rows_and_over_blocks(step):
    code_n = np.sort(np.random.default_rng(1).integers(0, 6, 9_700)) // 2
    found = summary_of(pd.Categorical.from_codes(code_n, ["x", "y", "z"]), step).mixing
    by_block = [entropy(np.bincount(code_n[at : at + 320]), base=2) for at in range(0, 9_600, 320)]
    assert_allclose(found.entropy_bits, entropy(np.bincount(code_n), base=2))
    assert_allclose(found.block_entropy_bits, np.mean(by_block))


def test_independent_cells_tell_sorted_rows_from_shuffled_ones_and_those_between():
    rng = np.random.default_rng(2)
    shuffled_n = rng.integers(0, 4, 32_000)
    runs_n = np.repeat(rng.integers(0, 4, 32_000 // 20), 20)
    cells = [
        summary_of(pd.Categorical.from_codes(code_n, list("abcd"))).mixing.independent_cells
        for code_n in (np.sort(shuffled_n), runs_n, shuffled_n)
    ]
    assert cells[0] < 1.1
    assert cells[1] == pytest.approx(320 / 20, rel=0.2)
    assert cells[2] == pytest.approx(320, rel=0.2)


@pytest.mark.parametrize("values", [["a"] * 5000, ["a", "b"] * 300], ids=["one category", "few blocks"])
def test_mixing_is_not_told_where_there_is_nothing_to_mix_or_too_little(values):
    assert summary_of(pd.Categorical(values)).mixing is None


def test_a_damaged_column_is_told_and_given_up(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/place/codes", np.where(np.arange(150) == 99, 3, 0).astype(np.int8))
    column = ColumnPass(open_store(path), "place")
    for start in range(0, 150, 50):
        column.add(start, start + 50)
    found = column.summary()
    assert found.kind == "damaged"
    assert found.damage.startswith("obs column 'place' holds code 3 at row 99")


def test_a_column_that_cannot_be_opened_is_told(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/age", np.arange(149.0))
    assert "has 149 values for 150 cells" in ColumnPass(open_store(path), "age").summary().damage


def test_a_column_is_opened_as_numbers_where_it_holds_any(pristine):
    store = open_store(pristine)
    kinds = {key: type(open_column(store, key)).__name__ for key in store.obs_columns()}
    assert kinds == {
        "place": "Categorical", "text": "Categorical", "lane": "Numeric", "gap": "Categorical", "age": "Numeric"
    }  # fmt: skip


def test_cells_without_a_value_are_a_group_of_their_own(pristine):
    column = open_store(pristine).categorical("gap")
    assert groups(column, 12, 15).tolist() == [0, 2, 0]
    assert groups(None, 3, 6).tolist() == [0, 0, 0]


def test_columns_are_suggested_by_name_and_size():
    sizes = {"donor_id": 12, "Sample": 4, "sample_barcode": 5000, "cell_type": 30, "cluster": 1, "age": 7, "note": None}
    columns = tuple(ColumnSummary(key, "categories", n, {}, 0, None, None, None) for key, n in sizes.items())
    assert suggested(columns, 100_000) == (("donor_id", "Sample"), ("cell_type",))
