"""SCVI as a notebook holds it: the same from memory and disk, and every answer a function of cell and seed."""

import inspect
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dist_scvi
from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders import open_data
from dist_scvi.metrics.run_record import run_config
from dist_scvi.model import SCVI
from dist_scvi.storage.run_storage import LocalStorage

pytestmark = pytest.mark.filterwarnings("ignore:Trying to query inferred values:UserWarning")

SMALL = {"n_hidden": 16, "n_latent": 4}


@pytest.fixture(scope="module")
def pair(store: Path, adata: ad.AnnData) -> tuple[SCVI, SCVI]:
    """The same model trained on an AnnData in memory and on a file."""
    models = SCVI(dist_scvi.open_data(adata), **SMALL, seed=3), SCVI(dist_scvi.open_data(store), **SMALL, seed=3)
    for model in models:
        model.train(3, lanes=2, check_val_every_n_epoch=2, enable_progress_bar=False)
    return models


def test_arguments_and_defaults_are_those_of_scvi_tools() -> None:
    """scvi-tools 1.4.2, model/_scvi.py; what follows the star is in its keyword arguments."""
    parameters = inspect.signature(SCVI).parameters
    places = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert places == [
        *("adata", "n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood"),
        *("use_observed_lib_size", "latent_distribution"),
    ]
    defaults = ModelConfig().model_dump()
    for name, parameter in parameters.items():
        if name in defaults:
            assert parameter.default == defaults[name], name


def test_cells_in_memory_and_on_disk_train_to_the_same_model(pair: tuple[SCVI, SCVI]) -> None:
    memory, disk = pair
    for key, table in memory.history.items():
        pd.testing.assert_frame_equal(table, disk.history[key], check_exact=True)
    np.testing.assert_array_equal(memory.get_latent_representation(), disk.get_latent_representation())


def test_history_has_the_losses_by_epoch_under_the_names_of_scvi_tools(pair: tuple[SCVI, SCVI]) -> None:
    history = pair[0].history
    for kind, epochs in (("train", [0, 1, 2]), ("validation", [1, 2])):
        for name in ("elbo", "reconstruction_loss", "kl_local"):
            table = history[f"{name}_{kind}"]
            assert (list(table.index), list(table.columns), table.index.name) == (epochs, [f"{name}_{kind}"], "epoch")
            assert np.isfinite(table).all(axis=None)


def test_training_lowers_the_loss(pair: tuple[SCVI, SCVI], adata: ad.AnnData) -> None:
    untrained = SCVI(dist_scvi.open_data(adata), **SMALL, seed=3)
    assert abs(pair[0].get_elbo()) < abs(untrained.get_elbo())


def test_training_goes_on_from_where_the_weights_are(adata: ad.AnnData) -> None:
    model = SCVI(dist_scvi.open_data(adata), **SMALL)
    model.train(2, enable_progress_bar=False)
    before = model.get_elbo()
    model.train(2, enable_progress_bar=False)
    assert abs(model.get_elbo()) < abs(before)


def test_a_path_is_opened_without_covariates(store: Path) -> None:
    for source in (store, str(store)):
        model = SCVI(source, **SMALL)
        assert (model.data.n_cells, model.spec.batch, model.is_trained) == (403, None, False)


def test_an_anndata_is_set_up_first(adata: ad.AnnData) -> None:
    cells = adata.copy()
    with pytest.raises(ValueError, match=r"^the AnnData is not set up: call SCVI\.setup_anndata"):
        SCVI(cells)
    SCVI.setup_anndata(cells, batch_key="batch", labels_key="label", continuous_covariate_keys=["age"])
    model = SCVI(cells, **SMALL)
    assert model.adata is cells
    assert model.summary_stats == {
        "n_batch": 2,
        "n_cells": 403,
        "n_extra_categorical_covs": 0,
        "n_extra_continuous_covs": 1,
        "n_labels": 3,
        "n_vars": 50,
    }


def test_weights_follow_from_the_seed(adata: ad.AnnData) -> None:
    data = dist_scvi.open_data(adata)
    first, again, other = (SCVI(data, **SMALL, seed=seed).get_latent_representation() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()


@pytest.mark.parametrize(
    "options",
    [
        {"dispersion": "gene-cell", "gene_likelihood": "nb"},
        {"dispersion": "gene-label"},
        {"use_observed_lib_size": False},
        {"latent_distribution": "ln"},
        {"batch_representation": "embedding", "batch_embedding_kwargs": {"embedding_dim": 3}},
        {"encode_covariates": True, "n_layers": 2, "deeply_inject_covariates": False},
        {"use_layer_norm": "both", "use_batch_norm": "none"},
        {"gene_likelihood": "normal", "log_variational": False},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_option_trains_and_answers_the_same_after_loading(data, options: dict, tmp_path: Path) -> None:
    model = SCVI(data, **SMALL, **options)
    model.train(2, enable_progress_bar=False)
    latent, expression = model.get_latent_representation(), model.get_normalized_expression(n_samples=None)
    assert np.isfinite(latent).all()
    np.testing.assert_allclose(expression.sum(axis=1), 1, rtol=1e-4)
    model.save(tmp_path / "model")
    again = SCVI.load(tmp_path / "model", data)
    np.testing.assert_array_equal(again.get_latent_representation(), latent)
    pd.testing.assert_frame_equal(again.get_normalized_expression(n_samples=None), expression)


def test_the_prior_of_a_latent_library_is_that_of_the_total_counts(data, adata: ad.AnnData) -> None:
    model = SCVI(data, **SMALL, use_observed_lib_size=False)
    log_total = np.log(np.asarray(adata.X.sum(1)).ravel())
    for code, batch in enumerate(("b0", "b1")):
        of_batch = log_total[adata.obs["batch"] == batch]
        assert model.module.library_log_means[0, code] == pytest.approx(of_batch.mean(), rel=1e-5)
        assert model.module.library_log_vars[0, code] == pytest.approx(of_batch.var(), rel=1e-4)


def test_size_factors_take_the_place_of_the_total_count(adata: ad.AnnData) -> None:
    cells = adata.copy()
    cells.obs["size"] = np.linspace(0.5, 3, cells.n_obs)
    model = SCVI(dist_scvi.open_data(cells, size_factor_key="size"), **SMALL)
    share = model.get_normalized_expression(indices=[7, 300], n_samples=None)
    rate = model.get_normalized_expression(indices=[7, 300], n_samples=None, library_size="latent")
    np.testing.assert_allclose(rate, share.mul(cells.obs["size"].iloc[[7, 300]].to_numpy(), axis=0), rtol=1e-5)
    cells.obs["size"] = -1.0
    with pytest.raises(ValueError, match=r"'size' holds -1.0 .*: size factors above 0 are needed"):
        dist_scvi.open_data(cells, size_factor_key="size")


def test_a_run_is_continued_where_it_was(store: Path, tmp_path: Path) -> None:
    options = {"plan_kwargs": {"n_steps_kl_warmup": 5}, "enable_progress_bar": False}
    alone, first, second = (SCVI(dist_scvi.open_data(store, batch_key="batch"), **SMALL) for _ in range(3))
    alone.train(2, **options)
    first.train(1, run=tmp_path / "run", **options)
    second.train(2, run=tmp_path / "run", **options)
    np.testing.assert_array_equal(second.get_latent_representation(), alone.get_latent_representation())
    assert list(second.history["elbo_train"].index) == [0, 1]


def test_the_record_of_a_run_names_its_columns(store: Path, tmp_path: Path) -> None:
    keys = {"batch_key": "batch", "labels_key": "label"}
    covariates = {"categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}
    SCVI(open_data(store, **keys, **covariates), **SMALL).train(1, run=tmp_path / "run", enable_progress_bar=False)
    stored = run_config(LocalStorage(tmp_path / "run")).data
    assert (stored.uri, stored.batch_key, stored.labels_key) == (str(store), "batch", "label")
    assert (stored.categorical_covariate_keys, stored.continuous_covariate_keys) == (("site",), ("age",))


def test_progress_is_shown_on_stderr(adata: ad.AnnData, capsys: pytest.CaptureFixture[str]) -> None:
    SCVI(dist_scvi.open_data(adata), **SMALL).train(1)
    shown = capsys.readouterr()
    assert "epoch 1/1" in shown.err
    assert "validation" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_latent": 0}, r"^model\.n_latent=0 does not fit"),
        ({"gene_likelihood": "zip"}, r"^model\.gene_likelihood='zip' does not fit"),
        ({"dropout_rate": 1}, r"^model\.dropout_rate=1 does not fit"),
        ({"batch_embedding_kwargs": {"dim": 3}}, r"^there is no key model\.dim"),
    ],
)
def test_an_option_out_of_range_is_refused(data, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCVI(data, **options)


def test_numbers_that_say_nothing_are_refused(model: SCVI) -> None:
    for size in (0, -5, float("nan")):
        with pytest.raises(ValueError, match=r"^library_size=.*: a number above 0 is needed, or 'latent'$"):
            model.get_normalized_expression(library_size=size)
    with pytest.raises(ValueError, match=r"^seed=-1: a whole number from 0 on is needed$"):
        model.get_normalized_expression(seed=-1)
    with pytest.raises(ValueError, match=r"^gene_list='gene1' is one text"):
        model.get_normalized_expression(gene_list="gene1")
    with pytest.raises(ValueError, match=r"^train\.batch_size=0 does not fit"):
        model.train(1, batch_size=0)
    with pytest.raises(
        ValueError, match=r"^SCVI needs an AnnData, a store, or dist_scvi\.open_data\(\.\.\.\): found ndarray$"
    ):
        SCVI(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"^seed='a': a whole number"):
        SCVI(model.data, seed="a")
