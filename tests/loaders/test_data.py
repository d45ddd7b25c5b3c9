"""Cells and covariates are checked when they are opened, not hours later."""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from dist_scvi.loaders import open_data, open_store
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


def test_normalised_values_are_refused_at_the_door(adata: AnnData) -> None:
    adata.X = np.log1p(adata.X)
    with pytest.raises(ValueError, match=r"X of the AnnData holds 0\.69.* at row 0, gene 0: SCVI needs raw counts"):
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
    with pytest.raises(ValueError, match="open already is given: name layer and genes to open_store instead"):
        open_data(open_store(adata), genes=["g1"])
