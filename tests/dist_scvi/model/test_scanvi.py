"""SCANVI as a notebook holds it: labels learnt from some cells and told for the others."""

import inspect
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dist_scvi
from dist_scvi.loaders import CellData
from dist_scvi.model import SCANVI, SCVI

pytestmark = pytest.mark.filterwarnings("ignore:Trying to query inferred values:UserWarning")

SMALL = {"n_hidden": 32, "n_latent": 5}
KEYS = {"labels_key": "told", "unlabeled_category": "Unknown"}


@pytest.fixture(scope="module")
def partly(adata: ad.AnnData) -> ad.AnnData:
    """The cells, of which every other one tells its label."""
    cells = adata.copy()
    cells.obs["told"] = np.where(np.arange(cells.n_obs) % 2 == 0, cells.obs["label"].astype(str), "Unknown")
    return cells


@pytest.fixture(scope="module")
def cells(partly: ad.AnnData) -> CellData:
    return dist_scvi.open_data(partly, batch_key="batch", **KEYS)


@pytest.fixture(scope="module")
def scanvi(cells: CellData) -> SCANVI:
    model = SCANVI(cells, **SMALL)
    model.train(15, enable_progress_bar=False)
    return model


def test_arguments_are_those_of_scvi_tools() -> None:
    parameters = inspect.signature(SCANVI).parameters
    places = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert places == [
        *("adata", "n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood"),
        *("use_observed_lib_size", "linear_classifier"),
    ]


def test_labels_are_told_for_cells_that_did_not_tell_theirs(scanvi: SCANVI, partly: ad.AnnData) -> None:
    hidden = (partly.obs["told"] == "Unknown").to_numpy()
    predicted = scanvi.predict()
    assert (predicted[hidden] == partly.obs["label"].to_numpy()[hidden]).mean() > 0.9


def test_probabilities_add_up_and_their_largest_is_the_prediction(scanvi: SCANVI) -> None:
    soft = scanvi.predict(soft=True)
    assert list(soft.columns) == ["NK", "T", "B"] or set(soft.columns) == {"B", "NK", "T"}
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(soft.idxmax(axis=1), scanvi.predict())
    assert list(soft.index[:2]) == ["cell0", "cell1"]


def test_a_prediction_depends_on_the_cell_alone(scanvi: SCANVI) -> None:
    for options in ({}, {"use_posterior_mean": False, "seed": 3}):
        whole = scanvi.predict(soft=True, **options)
        some = scanvi.predict(indices=[300, 7, 300], soft=True, batch_size=2, **options)
        pd.testing.assert_frame_equal(some, whole.iloc[[300, 7, 300]], rtol=1e-4)
    assert not np.allclose(whole, scanvi.predict(soft=True))


def test_predictions_are_written_by_chunks(scanvi: SCANVI, tmp_path: Path) -> None:
    root = scanvi.predict(out=tmp_path / "labels.zarr", batch_size=100)
    np.testing.assert_allclose(root["obsm/probability"][:], scanvi.predict(soft=True), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.array(root.attrs["labels"])[root["obs/predicted"][:]], scanvi.predict())
    assert ad.read_zarr(tmp_path / "labels.zarr").shape[0] == 403


def test_cells_without_a_column_of_labels_can_be_predicted(scanvi: SCANVI, partly: ad.AnnData) -> None:
    other = partly[:50].copy()
    del other.obs["told"]
    np.testing.assert_array_equal(scanvi.predict(other), scanvi.predict(indices=range(50)))


def test_labels_that_the_model_does_not_know_are_named(scanvi: SCANVI, partly: ad.AnnData) -> None:
    other = partly[:50].copy()
    other.obs["told"] = "Treg"
    with pytest.raises(ValueError, match=r"^obs column 'told' has 1 categories .* not trained on \(Treg\)"):
        scanvi.predict(other)


def test_the_history_tells_how_well_labels_are_learnt(scanvi: SCANVI) -> None:
    for name in ("train_classification_loss", "train_accuracy", "train_f1_score", "train_calibration_error"):
        assert len(scanvi.history[name]) == 15
    assert scanvi.history["train_accuracy"].iloc[-1, 0] > 0.9
    assert scanvi.history["validation_accuracy"].iloc[-1, 0] > 0.8


def test_a_model_goes_on_from_scvi(cells: CellData, partly: ad.AnnData) -> None:
    scvi = SCVI(dist_scvi.open_data(partly, batch_key="batch"), **SMALL)
    with pytest.warns(UserWarning, match=r"^Passed in scvi model hasn't been trained yet\.$"):
        SCANVI.from_scvi_model(scvi, "Unknown", labels_key="told")
    scvi.train(15, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"^no column of labels is known: name it as labels_key$"):
        SCANVI.from_scvi_model(scvi, "Unknown")
    scanvi = SCANVI.from_scvi_model(scvi, "Unknown", labels_key="told")
    np.testing.assert_array_equal(scanvi.get_latent_representation(), scvi.get_latent_representation())
    assert scanvi.spec.label.categories == ("B", "NK", "T")
    scanvi.train(15, n_samples_per_label=20, enable_progress_bar=False)
    hidden = (partly.obs["told"] == "Unknown").to_numpy()
    assert (scanvi.predict()[hidden] == partly.obs["label"].to_numpy()[hidden]).mean() > 0.9


def test_the_labels_of_another_column_are_those_asked_for(partly: ad.AnnData) -> None:
    """scvi-tools takes no notice of labels_key where the SCVI model has one."""
    scvi = SCVI(dist_scvi.open_data(partly, labels_key="site"), **SMALL)
    scvi.is_trained = True
    assert SCANVI.from_scvi_model(scvi, "Unknown", labels_key="told").spec.label.key == "told"
    assert SCANVI.from_scvi_model(scvi, "Unknown").spec.label.categories == ("x", "y", "z")


def test_a_pretrained_model_trains_for_a_third_of_the_epochs(partly: ad.AnnData) -> None:
    scvi = SCVI(dist_scvi.open_data(partly, labels_key="told"), **SMALL)
    scvi.is_trained = True
    scanvi = SCANVI.from_scvi_model(scvi, "Unknown")
    scanvi.train(enable_progress_bar=False)  # of 400 epochs a third is more than 10
    assert len(scanvi.history["elbo_train"]) == 10


@pytest.mark.parametrize(
    "options",
    [
        {"linear_classifier": True},
        {"objective": "conditional", "n_layers": 2},
        {"dispersion": "gene-label"},
        {"use_observed_lib_size": False},
        {"classifier_parameters": {"n_hidden": 7, "n_layers": 2}, "y_prior": (0.5, 0.25, 0.25)},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_option_trains_and_answers_the_same_after_loading(cells: CellData, options: dict, tmp_path: Path) -> None:
    model = SCANVI(cells, **SMALL, **options)
    model.train(2, enable_progress_bar=False)
    soft = model.predict(soft=True)
    model.save(tmp_path / "model")
    pd.testing.assert_frame_equal(SCANVI.load(tmp_path / "model", cells).predict(soft=True), soft)


def test_anndata_is_set_up_as_in_scvi_tools(partly: ad.AnnData) -> None:
    adata = partly.copy()
    SCANVI.setup_anndata(adata, "told", "Unknown", batch_key="batch")
    model = SCANVI(adata, **SMALL)
    assert model.spec.unlabeled_category == "Unknown"
    assert model.summary_stats["n_labels"] == 4


@pytest.mark.parametrize(
    ("values", "unlabeled"),
    [([-1, 0, 10], -1), ([0.5, 1.5, -1.0], -1.0), ([True, False], "Unknown"), ([3, 4], np.int64(3)), ("abc", "c")],
    ids=str,
)
@pytest.mark.parametrize("categorical", [False, True])
def test_labels_come_back_in_the_type_that_was_set_up(
    adata: ad.AnnData, values: list, unlabeled: object, categorical: bool, tmp_path: Path
) -> None:
    cells = adata[:, :10].copy()
    column = np.array(list(values))[np.arange(cells.n_obs) % len(values)]
    cells.obs["number"] = pd.Categorical(column) if categorical else column
    SCVI.setup_anndata(cells, labels_key="number")
    scvi = SCVI(cells, n_hidden=8, n_latent=2)
    scvi.is_trained = True
    if len(set(values)) - (unlabeled in values) < 2:
        with pytest.raises(ValueError, match="SCANVI needs two or more"):
            SCANVI.from_scvi_model(scvi, unlabeled)
        return
    model = SCANVI.from_scvi_model(scvi, unlabeled, classifier_parameters={"n_hidden": 4, "logits": True})
    model.is_trained = True
    known = sorted({value for value in values if value != unlabeled}, key=str)
    predicted = model.predict()
    assert set(predicted) <= set(known)
    assert (predicted == cells.obs["number"]).any()
    assert sorted(model.predict(soft=True).columns, key=str) == known
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(SCANVI.load(tmp_path / "model", cells).predict(), predicted)
    SCANVI.setup_anndata(cells, "number", unlabeled)
    assert SCANVI(cells, **SMALL).spec.unlabeled_category == str(unlabeled)


def test_training_without_any_labelled_cell_is_refused(partly: ad.AnnData) -> None:
    adata = partly.copy()
    adata.obs["told"] = "Unknown"
    with pytest.raises(ValueError, match=r"^obs column 'told' has 0 labels besides 'Unknown'"):
        SCANVI(dist_scvi.open_data(adata, **KEYS))
