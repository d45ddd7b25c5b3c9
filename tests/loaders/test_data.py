"""Cells and covariates are checked when they are opened, not hours later."""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from dist_scvi.loaders import open_data, open_store
from dist_scvi.loaders.arrays.obs_columns import categorical_from_codes, categorical_from_values
from dist_scvi.loaders.data import without_category
from dist_scvi.loaders.stream import row_stream


@pytest.fixture
def adata() -> AnnData:
    obs = pd.DataFrame(
        {"donor": ["d1", "d0"] * 50, "age": np.arange(100.0), "partial": pd.Categorical(["x", None] * 50)},
        index=[f"c{row}" for row in range(100)],
    )
    return AnnData(np.ones((100, 4), dtype=np.float32), obs=obs)


def test_what_a_model_must_know_is_described_in_plain_values(adata: AnnData) -> None:
    described = open_data(adata, batch_key="donor", continuous_covariate_keys=["age"]).describe()
    assert described["var_names"] == ["0", "1", "2", "3"]
    assert described["batch"] == {"key": "donor", "categories": ["d0", "d1"]}
    assert described["continuous_covariates"] == ["age"]
    assert (described["n_cells"], described["n_entries"]) == (100, 400)


def test_a_missing_batch_is_refused_at_the_door(adata: AnnData) -> None:
    with pytest.raises(ValueError, match="obs column 'partial' has no value at row 1: fill it"):
        open_data(adata, batch_key="partial")


def test_a_missing_label_is_allowed_and_marked(adata: AnnData) -> None:
    data = open_data(adata, labels_key="partial")
    assert data.columns_of([(0, 3)]).label_n.tolist() == [0, -1, 0]


def test_a_column_that_is_not_there_is_refused_with_those_that_are_near(adata: AnnData) -> None:
    with pytest.raises(ValueError, match="no obs column 'donors': did you mean 'donor'"):
        open_data(adata, batch_key="donors")


def test_a_covariate_that_is_not_finite_is_refused(adata: AnnData) -> None:
    adata.obs["age"] = np.nan
    with pytest.raises(ValueError, match="obs column 'age' is nan at row 0: finite numbers are needed"):
        open_data(adata, continuous_covariate_keys=["age"])


def test_words_are_no_continuous_covariate(adata: AnnData) -> None:
    with pytest.raises(ValueError, match="obs column 'donor' does not hold numbers"):
        open_data(adata, continuous_covariate_keys=["donor"])


def test_scaled_values_are_refused_at_the_door(adata: AnnData) -> None:
    adata.X = -adata.X
    with pytest.raises(ValueError, match=r"X of the AnnData holds -1\.0 at row 0, gene 0: SCVI needs raw counts"):
        open_data(adata)


def test_covariates_of_scattered_rows_are_those_of_these_rows(adata: AnnData) -> None:
    ranges = [(0, 2), (70, 71), (99, 100)]
    columns = open_data(adata, batch_key="donor", continuous_covariate_keys=["age"]).columns_of(ranges)
    assert columns.continuous_nc[:, 0].tolist() == [0, 1, 70, 99]
    assert columns.batch_n.tolist() == [1, 0, 1, 0]


def test_a_fork_that_reads_is_told_instead_of_hanging(adata: AnnData) -> None:
    data = replace(open_data(adata), process=os.getpid() + 1)
    with pytest.raises(ValueError, match=r"opened in process \d+ and is read in \d+, a fork of it: .* 'spawn'"):
        next(row_stream(data, iter([(0, 5)])))


def test_chosen_genes_come_in_the_order_asked_for(adata: AnnData) -> None:
    adata.X[:] = np.arange(4)
    chosen = ["2", "0"]
    data = open_data(adata, genes=chosen)
    counts = next(row_stream(data, iter([(0, 50)]))).to("cpu").counts_ng
    assert list(data.store.var_names) == chosen
    np.testing.assert_array_equal(counts, [[2, 0]] * 50)


def test_choices_of_a_store_that_is_open_are_refused(adata: AnnData) -> None:
    with pytest.raises(ValueError, match="open already is given: name layer, genes and allow_fractional to open_store"):
        open_data(open_store(adata), genes=["g1"])


def test_cells_of_the_unlabeled_category_have_no_code_and_the_last_category_takes_its_place() -> None:
    obs = pd.DataFrame({"type": ["d", "b", "c", "a", "b", None]}, index=[f"c{row}" for row in range(6)])
    adata = AnnData(np.ones((6, 2), dtype=np.float32), obs=obs)
    data = open_data(adata, labels_key="type", unlabeled_category="b")
    assert data.label.vocabulary == ("a", "d", "c")
    assert data.columns_of([(0, 6)]).label_n.tolist() == [1, -1, 2, 0, -1, -1]
    assert (data.describe()["unlabeled_category"], data.describe()["label"]["categories"]) == ("b", ["a", "d", "c"])


@pytest.mark.parametrize(
    ("name", "vocabulary", "codes"),
    [
        ("a", ("c", "b"), [-1, 1, 0, -1]),
        ("b", ("a", "c"), [0, -1, 1, -1]),
        ("c", ("a", "b"), [0, 1, -1, -1]),
        ("d", ("a", "b", "c"), [0, 1, 2, -1]),
    ],
)
def test_a_category_is_taken_out_wherever_it_stands(name: str, vocabulary: tuple[str, ...], codes: list[int]) -> None:
    column = categorical_from_values("type", ["a", "b", "c", None])
    without = without_category(column, name)
    assert without.vocabulary == vocabulary
    assert without.codes(0, 4).tolist() == codes
    assert column.codes(0, 4).tolist() == [0, 1, 2, -1]


def test_the_only_category_may_be_the_unlabeled_one() -> None:
    without = without_category(categorical_from_values("type", ["a", "a"]), "a")
    assert (without.vocabulary, without.codes(0, 2).tolist()) == ((), [-1, -1])


def test_codes_without_the_unlabeled_category_are_right_where_the_stored_order_is_another() -> None:
    stored = categorical_from_codes("type", ["c", "a", "b"], np.array([0, 1, 2, -1]))
    without = without_category(stored, "a")
    assert [without.vocabulary[code] for code in without.codes(0, 3) if code >= 0] == ["c", "b"]
    assert without.codes(0, 4).tolist()[1::2] == [-1, -1]


def test_an_unlabeled_category_without_labels_is_refused(adata: AnnData) -> None:
    with pytest.raises(ValueError, match="unlabeled_category='x' is given without labels_key: name the column"):
        open_data(adata, unlabeled_category="x")


def test_size_factors_are_those_of_the_rows_asked_for(adata: AnnData) -> None:
    adata.obs["factor"] = np.arange(1.0, 101)
    data = open_data(adata, size_factor_key="factor")
    assert data.describe()["size_factor_key"] == "factor"
    columns = data.columns_of([(3, 5), (90, 91)])
    assert columns.size_factor_n.tolist() == [4, 5, 91]
    assert columns.take(np.array([2, 0])).size_factor_n.tolist() == [91, 4]
    part = next(row_stream(data, iter([(7, 9)])))
    assert part.size_factor_n.tolist() == [8, 9]


def test_without_a_column_of_size_factors_there_are_none(adata: AnnData) -> None:
    data = open_data(adata)
    assert (data.describe()["size_factor_key"], data.describe()["unlabeled_category"]) == (None, None)
    assert data.columns_of([(0, 9)]).take(slice(2, 4)).size_factor_n is None


@pytest.mark.parametrize("bad", [0.0, -2.5])
def test_a_size_factor_that_is_not_above_0_is_refused_at_the_door(adata: AnnData, bad: float) -> None:
    adata.obs["factor"] = np.where(np.arange(100) == 50, bad, 1.0)
    with pytest.raises(ValueError, match=rf"obs column 'factor' holds {bad} .*: size factors above 0 are needed"):
        open_data(adata, size_factor_key="factor")


def test_opened_data_describes_itself_in_text_and_html(pristine):
    data = open_data(pristine, batch_key="place", labels_key="gap", continuous_covariate_keys=["age"])
    for shown in (repr(data), data._repr_html_()):
        for part in (
            "150 cells x 23 genes of memory",
            "place (3 categories)",
            "gap (2 categories)",
            "age",
            "place, text",
        ):
            assert part in shown
        assert "0x" not in shown
