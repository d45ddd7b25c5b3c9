"""``setup_anndata``: noted in the AnnData itself, so that it survives copies and files."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from dist_scvi.model.setup_anndata import data_of_setup, setup_anndata

KEYS = {
    "batch_key": "batch",
    "labels_key": "label",
    "unlabeled_category": "B",
    "categorical_covariate_keys": ["site"],
    "continuous_covariate_keys": ["age"],
}


@pytest.fixture
def cells(adata: ad.AnnData) -> ad.AnnData:
    return adata.copy()


def test_what_was_set_up_is_what_is_opened(cells: ad.AnnData) -> None:
    setup_anndata(cells, **KEYS)
    data = data_of_setup(cells, model_name="SCVI")
    assert (data.batch.key, data.label.key, data.unlabeled_category) == ("batch", "label", "B")
    assert [column.key for column in data.categorical_covariates] == ["site"]
    assert [column.key for column in data.continuous_covariates] == ["age"]


def test_codes_are_written_where_scvi_tools_writes_them(cells: ad.AnnData) -> None:
    setup_anndata(cells, **KEYS)
    assert list(cells.obs["_scvi_batch"]) == list((cells.obs["batch"] == "b1").astype(int))
    codes = {"T": 0, "NK": 1, "B": 2}  # the last category took the place of the unlabeled one
    assert list(cells.obs["_scvi_labels"]) == [codes[label] for label in cells.obs["label"]]


def test_without_columns_all_cells_are_of_one_batch(cells: ad.AnnData) -> None:
    setup_anndata(cells)
    assert set(cells.obs["_scvi_batch"]) == set(cells.obs["_scvi_labels"]) == {0}


def test_a_copy_and_a_file_stay_set_up(cells: ad.AnnData, tmp_path: Path) -> None:
    setup_anndata(cells, **KEYS)
    cells[::2].copy().write_h5ad(tmp_path / "half.h5ad")
    data = data_of_setup(ad.read_h5ad(tmp_path / "half.h5ad"), model_name="SCVI")
    np.testing.assert_array_equal(data.batch.codes(0, 202), (cells.obs["batch"] == "b1")[::2])


def test_setting_up_again_counts(cells: ad.AnnData) -> None:
    setup_anndata(cells, **KEYS)
    setup_anndata(cells, batch_key="site")
    data = data_of_setup(cells, model_name="SCVI")
    assert (data.batch.key, data.label) == ("site", None)


def test_cells_that_were_not_set_up_are_refused(cells: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"^the AnnData is not set up: call LinearSCVI\.setup_anndata"):
        data_of_setup(cells, model_name="LinearSCVI")


def test_a_missing_column_changes_nothing(cells: ad.AnnData) -> None:
    before = cells.copy()
    with pytest.raises(ValueError, match=r"has no obs column 'bach': did you mean 'batch'"):
        setup_anndata(cells, batch_key="bach")
    assert list(cells.obs) == list(before.obs)
    assert not cells.uns


@pytest.mark.parametrize("argument", ["categorical_covariate_keys", "continuous_covariate_keys"])
def test_one_text_where_a_list_of_columns_is_needed_is_refused(cells: ad.AnnData, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}='donor' is one text, a list is needed: {argument}=\['donor'\]"):
        setup_anndata(cells, **{argument: "donor"})
