"""A model and its cells: chosen, described, saved and loaded."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dist_scvi
from dist_scvi.loaders import CellData
from dist_scvi.model import SCANVI, SCVI, LinearSCVI


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
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"other is no model folder and is not replaced"):
        model.save(tmp_path / "other", overwrite=True)


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


def test_the_split_of_training_is_told(adata: ad.AnnData) -> None:
    model = SCVI(dist_scvi.open_data(adata), n_hidden=8, n_latent=2)
    with pytest.raises(ValueError, match=r"^this model was not trained in this session"):
        _ = model.train_indices
    model.train(1, train_size=0.7, validation_size=0.2, enable_progress_bar=False)
    splits = [model.train_indices, model.validation_indices, model.test_indices]
    np.testing.assert_array_equal(np.sort(np.concatenate(splits)), np.arange(403))
    np.testing.assert_allclose([len(split) for split in splits], [282, 81, 40], atol=1)


def test_what_a_model_uses_is_shown(model: SCVI, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = model.view_anndata_setup()
    assert set(shown["role"]) == {"batch", "labels", "categorical covariate", "continuous covariate"}
    assert list(shown[shown["role"] == "batch"]["category"]) == ["b0", "b1"]
    model.save(tmp_path / "model")
    assert SCVI.view_setup_args(tmp_path / "model") == {
        "layer": None,
        "batch_key": "batch",
        "labels_key": "label",
        "unlabeled_category": None,
        "size_factor_key": None,
        "categorical_covariate_keys": ["site"],
        "continuous_covariate_keys": ["age"],
    }
    SCVI.view_registry(tmp_path / "model")
    assert "gene49" in capsys.readouterr().out
    assert "n_latent: 4" in repr(model)
    assert "403 cells" in repr(model)


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
