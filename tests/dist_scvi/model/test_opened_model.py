"""A model and its cells: chosen, described, saved and loaded."""

from pathlib import Path
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dist_scvi
from dist_scvi.loaders import CellData
from dist_scvi.model import SCANVI, SCVI, LinearSCVI

pytestmark = pytest.mark.filterwarnings("ignore:Trying to query inferred values:UserWarning")


def test_a_saved_model_gives_the_same_answers_and_history(model: SCVI, data: CellData, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = SCVI.load(tmp_path / "model", data, "cpu")
    assert again.is_trained
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())
    assert again.history.keys() == model.history.keys()
    for name, table in model.history.items():
        pd.testing.assert_frame_equal(again.history[name], table, check_index_type=False, check_names=False)


def test_a_saved_model_is_replaced_only_when_asked(model: SCVI, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model exists: give another path, or overwrite=True$"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)


@pytest.mark.parametrize("form", ["dist_scvi", "scvi-tools"])
def test_files_of_others_in_the_folder_of_a_model_stay(
    model: SCVI, data: CellData, tmp_path: Path, form: Literal["dist_scvi", "scvi-tools"]
) -> None:
    folder = tmp_path / "results"
    (folder / "figures").mkdir(parents=True)
    for name in ("adata.h5ad", "notes.txt", "figures/umap.png"):
        (folder / name).write_text("mine")
    for _ in range(2):
        model.save(folder, overwrite=True, format=form)
        model.save(folder, prefix="second_", overwrite=True, format=form)
    assert (folder / "figures" / "umap.png").read_text() == (folder / "adata.h5ad").read_text() == "mine"
    for prefix in (None, "second_"):
        again = SCVI.load(folder, data, prefix=prefix)
        np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())


def test_a_file_of_others_under_the_name_of_a_models_file_is_not_replaced(model: SCVI, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("mine")
    with pytest.raises(ValueError, match=r"holds spec\.json of something else: move it, or choose another folder or"):
        model.save(tmp_path, overwrite=True)
    assert (tmp_path / "spec.json").read_text() == "mine"
    model.save(tmp_path, prefix="a_", overwrite=True)


def test_a_folder_never_holds_two_models_that_could_be_meant(model: SCVI, data: CellData, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    model.save(tmp_path / "m", format="scvi-tools", overwrite=True)  # takes the place of the first
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["model.pt"]
    with pytest.raises(ValueError, match=r"holds model\.pt, a model of scvi-tools, which stays: give another path"):
        model.save(tmp_path / "m", overwrite=True)
    model.save(tmp_path / "n")
    (tmp_path / "m" / "model.pt").rename(tmp_path / "n" / "model.pt")  # as scvi-tools itself would write it
    with pytest.raises(ValueError, match=r"holds two models, model\.pt of scvi-tools and spec\.json"):
        SCVI.load(tmp_path / "n", data)


def test_the_anndata_is_written_with_the_arguments_of_its_writer(adata: ad.AnnData, tmp_path: Path) -> None:
    cells = adata.copy()
    SCVI.setup_anndata(cells)
    model = SCVI(cells, n_hidden=8, n_latent=2)
    for number, options in enumerate(({}, {"compression": "gzip", "compression_opts": 9})):
        model.save(tmp_path / str(number), save_anndata=True, **options)
    sizes = [(tmp_path / name / "adata.h5ad").stat().st_size for name in ("0", "1")]
    assert sizes[1] < sizes[0]
    with pytest.raises(ValueError, match=r"^save has no argument save_kwargs: with save_anndata=True it has"):
        model.save(tmp_path / "2", save_anndata=True, save_kwargs={})
    with pytest.raises(ValueError, match=r"^compression is for the AnnData: give save_anndata=True with it"):
        model.save(tmp_path / "2", compression="gzip")
    assert not (tmp_path / "2").exists()


def test_other_cells_are_asked_about_once_they_are_set(model: SCVI, adata: ad.AnnData, tmp_path: Path) -> None:
    cells = adata.copy()
    SCVI.setup_anndata(cells, batch_key="batch")
    asked = SCVI(cells, n_hidden=8, n_latent=2)
    other = adata[100:150].copy()
    before = asked.get_latent_representation(other)
    asked.adata = other
    np.testing.assert_array_equal(asked.get_latent_representation(), before)
    assert (asked.adata is other, asked.summary_stats.n_cells) == (True, 50)
    with pytest.raises(ValueError, match=r"^the model was trained on 50 genes"):
        asked.adata = adata[:, :3].copy()
    with pytest.raises(ValueError, match=r"^adata = NoneType: an AnnData is needed"):
        asked.adata = None
    assert asked.adata is other


def test_a_model_is_loaded_by_its_own_class(model: SCVI, data: CellData, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    for other in (SCANVI, LinearSCVI):
        with pytest.raises(ValueError, match=r"model holds SCVI: load it with SCVI\.load$"):
            other.load(tmp_path / "model", data)


def test_cells_saved_with_a_model_are_found_again(adata: ad.AnnData, tmp_path: Path) -> None:
    cells = adata.copy()
    SCVI.setup_anndata(cells, batch_key="batch")
    model = SCVI(cells, n_hidden=8, n_latent=2)
    model.save(tmp_path / "model", save_anndata=True)
    again = SCVI.load(tmp_path / "model")
    assert again.adata is not None
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())
    assert not again.is_trained


def test_without_cells_a_model_says_that_it_needs_them(model: SCVI, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^adata is needed: .*model holds none$"):
        SCVI.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^save_anndata=True: the model was made for a store"):
        model.save(tmp_path / "other", save_anndata=True)


def test_a_model_is_not_loaded_onto_other_genes(model: SCVI, adata: ad.AnnData, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"^the model was trained on 50 genes, memory lacks 10 .*prepare_query_anndata"
    ):
        SCVI.load(tmp_path / "model", adata[:, 10:].copy())


def test_genes_may_lie_in_any_order_and_be_more(model: SCVI, adata: ad.AnnData, tmp_path: Path) -> None:
    new = ad.AnnData(adata.X[:, :1], adata.obs, adata.var[:0].reindex(["new"]))
    more = ad.concat([adata, new], axis=1, merge="same")
    found = model.get_latent_representation(more[:, ::-1].copy())
    np.testing.assert_allclose(found, model.get_latent_representation(), rtol=1e-4, atol=1e-5)


def test_cells_are_chosen_by_their_obs(model: SCVI, adata: ad.AnnData) -> None:
    whole = model.get_latent_representation()
    chosen = ((adata.obs["label"] == "B") & adata.obs["site"].isin(["x", "y"])).to_numpy()
    found = model.get_latent_representation(indices={"label": "B", "site": ["x", "y"]})
    np.testing.assert_allclose(found, whole[chosen], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"^obs column 'label' has no value 'C': it has B, NK, T$"):
        model.get_latent_representation(indices={"label": "C"})


def test_no_cells_have_no_answer(model: SCVI) -> None:
    with pytest.raises(ValueError, match=r"^indices is empty: at least one cell is needed$"):
        model.get_latent_representation(indices=[])


def test_the_split_of_training_is_kept_with_the_model(adata: ad.AnnData, tmp_path: Path) -> None:
    model = SCVI(dist_scvi.open_data(adata), n_hidden=8, n_latent=2)
    with pytest.raises(ValueError, match=r"^the split of this model is not known: it was not trained here"):
        _ = model.train_indices
    model.train(1, train_size=0.7, validation_size=0.2, enable_progress_bar=False)
    splits = [model.train_indices, model.validation_indices, model.test_indices]
    np.testing.assert_array_equal(np.sort(np.concatenate(splits)), np.arange(403))
    np.testing.assert_allclose([len(split) for split in splits], [282, 81, 40], atol=1)
    for form in ("dist_scvi", "scvi-tools"):
        model.save(tmp_path / form, format=form)
        again = SCVI.load(tmp_path / form, adata)
        for name, rows in zip(("train", "validation", "test"), splits, strict=True):
            np.testing.assert_array_equal(getattr(again, f"{name}_indices"), rows)


def test_what_a_model_uses_is_shown(model: SCVI, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = model.view_anndata_setup()
    assert set(shown["role"]) == {"batch", "labels", "categorical covariate", "continuous covariate"}
    assert list(shown[shown["role"] == "batch"]["category"]) == ["b0", "b1"]
    model.save(tmp_path / "model")
    assert SCVI.view_setup_args(tmp_path / "model") == {
        "layer": None,
        "batch_key": "batch",
        "labels_key": "label",
        "size_factor_key": None,
        "categorical_covariate_keys": ["site"],
        "continuous_covariate_keys": ["age"],
    }
    SCVI.view_registry(tmp_path / "model")
    assert "batch_key" in capsys.readouterr().out
    assert list(model.view_anndata_setup(hide_state_registries=True).columns) == ["role", "obs column"]


def test_a_model_describes_itself_in_text_and_html(model: SCVI, adata: ad.AnnData) -> None:
    for shown in (repr(model), model._repr_html_()):
        for part in ("n_latent: 4", "403 of memory", "batch (2 categories)", "site, age", "50 of X"):
            assert part in shown
        assert "0x" not in shown
    assert "<b>SCVI model" in model._repr_html_()


def test_what_scvi_tools_says_of_a_model_is_where_its_scripts_look(model: SCVI) -> None:
    fields = model.registry["field_registries"]
    assert fields["batch"]["state_registry"]["categorical_mapping"].tolist() == ["b0", "b1"]
    assert fields["X"]["summary_stats"] == {"n_vars": 50, "n_cells": 403}
    assert model.registry["setup_args"]["labels_key"] == model.get_setup_arg("labels_key") == "label"
    with pytest.raises(ValueError, match=r"^setup_anndata of SCVI has no 'batch': it has layer, batch_key"):
        model.get_setup_arg("batch")
    assert model.init_params_["non_kwargs"]["n_latent"] == model.n_latent == 4
    assert model.get_var_names().tolist() == list(model.spec.var_names)
    assert model.history_ is model.history
    assert model.is_trained_
    assert model.summary_stats.n_labels == model.summary_stats["n_labels"] == 3
    with pytest.raises(AttributeError, match="summary_stats has no 'n_cell': it has n_batch"):
        _ = model.summary_stats.n_cell


def test_a_model_that_was_never_trained_says_so_wherever_it_is_asked(adata: ad.AnnData) -> None:
    model = SCVI(dist_scvi.open_data(adata), n_hidden=8, n_latent=2)
    for ask in (model.get_latent_representation, model.get_elbo, model.get_normalized_expression):
        with pytest.warns(UserWarning, match="^Trying to query inferred values from an untrained model"):
            ask(indices=[0])


def test_a_model_written_for_scvi_tools_comes_back(model: SCVI, data: CellData, tmp_path: Path) -> None:
    model.save(tmp_path / "theirs", format="scvi-tools", prefix="a_")
    assert (tmp_path / "theirs" / "a_model.pt").exists()
    again = SCVI.load(tmp_path / "theirs", data, prefix="a_")
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())
    np.testing.assert_allclose(again.history["elbo_train"], model.history["elbo_train"])
    assert again.spec.batch == model.spec.batch
    model.save(tmp_path / "theirs", format="scvi-tools", prefix="a_", overwrite=True)


def test_what_is_no_model_is_told(model: SCVI, data: CellData, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no folder .*nowhere: the folder of a model is needed$"):
        SCVI.load(tmp_path / "nowhere", data)
    model.minify(tmp_path / "atlas")
    with pytest.raises(ValueError, match=r"holds no model; it is an atlas: use dist_scvi\.open_atlas, but ATLAS"):
        SCVI.load(tmp_path / "atlas", data)
    model.save(tmp_path / "theirs", format="scvi-tools", prefix="a_")
    with pytest.raises(ValueError, match=r"holds no model, but a_model\.pt; name what precedes model\.pt as prefix$"):
        SCVI.load(tmp_path / "theirs", data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "scvi_tools"}, r"^format='scvi_tools': 'dist_scvi' or 'scvi-tools' is needed$"),
        ({"format": "scvi-tools", "prefix": "../x_"}, r"^prefix='\.\./x_' leads out of the folder"),
    ],
)
def test_a_form_that_there_is_not_is_refused(model: SCVI, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.save(tmp_path / "model", **options)
    assert list(tmp_path.iterdir()) == []
