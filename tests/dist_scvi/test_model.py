"""SCVI as a notebook holds it: the same from memory and disk, and every answer a function of cell and seed."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dist_scvi
from dist_scvi.loaders import open_data
from dist_scvi.model import SCVI
from dist_scvi.run import run_config

SMALL = {"n_hidden": 16, "n_latent": 4}


@pytest.fixture(scope="module")
def pair(store: Path, adata: ad.AnnData) -> tuple[SCVI, SCVI]:
    """The same model trained on an AnnData in memory and on a file."""
    models = SCVI(adata, **SMALL, seed=3), SCVI(dist_scvi.open(store), **SMALL, seed=3)
    for model in models:
        model.train(3, lanes=2, check_val_every_n_epoch=2, progress=False)
    return models


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
    assert pair[0].get_elbo() < SCVI(adata, **SMALL, seed=3).get_elbo()


def test_a_path_is_opened_without_covariates(store: Path) -> None:
    for source in (store, str(store)):
        model = SCVI(source, **SMALL)
        assert (model.data.n_cells, model.spec.batch, model.is_trained) == (403, None, False)


def test_indices_come_in_the_order_asked(model: SCVI) -> None:
    whole = model.get_latent_representation()
    for indices in ([400, 3, 3, 17], np.arange(403)[::-5], np.arange(403) % 9 == 4):
        np.testing.assert_allclose(model.get_latent_representation(indices), whole[indices], rtol=1e-4, atol=1e-5)


def test_expression_has_the_names_of_the_cells_asked_for(model: SCVI) -> None:
    whole = model.get_normalized_expression(gene_list=["gene3", "gene1"])
    assert list(whole.index) == [f"cell{row}" for row in range(403)]
    some = model.get_normalized_expression([300, 2, 300], gene_list=["gene3", "gene1"])
    pd.testing.assert_frame_equal(some, whole.iloc[[300, 2, 300]], rtol=1e-4)


def test_a_draw_depends_on_seed_and_cell_alone(model: SCVI) -> None:
    whole = model.get_latent_representation(give_mean=False, seed=1)
    some = model.get_latent_representation([300, 2], give_mean=False, seed=1)
    np.testing.assert_allclose(some, whole[[300, 2]], rtol=1e-4, atol=1e-5)
    assert not np.isclose(model.get_latent_representation([300, 2], give_mean=False, seed=2), some).any()


def test_draws_have_the_moments_of_the_posterior(model: SCVI) -> None:
    qzm, qzv = model.get_latent_representation(return_dist=True)
    standard = (model.get_latent_representation(give_mean=False) - qzm) / np.sqrt(qzv)
    assert abs(standard.mean()) < 0.1
    assert abs(standard.std() - 1) < 0.1


def test_the_elbo_is_finite_and_equal_on_memory_and_disk(pair: tuple[SCVI, SCVI]) -> None:
    memory, disk = (model.get_elbo(seed=2) for model in pair)
    assert np.isfinite(memory)
    assert memory == disk


def test_the_elbo_of_parts_adds_up_to_that_of_all(model: SCVI) -> None:
    parts = [model.get_elbo(range(100)), model.get_elbo(range(100, 403))]
    np.testing.assert_allclose(np.average(parts, weights=[100, 303]), model.get_elbo(), rtol=1e-5)


def test_a_saved_model_gives_the_same_answers(pair: tuple[SCVI, SCVI], adata: ad.AnnData, tmp_path: Path) -> None:
    pair[0].save(tmp_path / "model")
    again = SCVI.load(tmp_path / "model", adata)
    assert again.is_trained
    np.testing.assert_array_equal(again.get_latent_representation(), pair[0].get_latent_representation())


def test_a_saved_model_is_replaced_only_when_asked(model: SCVI, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model exists: give another path, or overwrite=True$"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"other is no model folder and is not replaced"):
        model.save(tmp_path / "other", overwrite=True)


def test_a_model_is_not_loaded_onto_other_genes(model: SCVI, adata: ad.AnnData, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^the model was trained on 50 genes, memory lacks 10"):
        SCVI.load(tmp_path / "model", adata[:, 10:].copy())


def test_a_trained_model_is_not_trained_again_by_mistake(pair: tuple[SCVI, SCVI]) -> None:
    with pytest.raises(ValueError, match=r"^this model is trained: make a new one, or name the folder of its run"):
        pair[0].train(1, progress=False)


def test_a_run_is_continued_where_it_was(store: Path, tmp_path: Path) -> None:
    options = {"run": tmp_path / "run", "n_steps_kl_warmup": 5, "progress": False}
    alone, first, second = (SCVI(dist_scvi.open(store, batch_key="batch"), **SMALL) for _ in range(3))
    alone.train(2, n_steps_kl_warmup=5, progress=False)
    first.train(1, **options)
    second.train(2, **options)
    np.testing.assert_array_equal(second.get_latent_representation(), alone.get_latent_representation())
    assert list(second.history["elbo_train"].index) == [0, 1]


def test_the_record_of_a_run_names_its_columns(model: SCVI, store: Path, tmp_path: Path) -> None:
    keys = {"batch_key": "batch", "labels_key": "label"}
    covariates = {"categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}
    SCVI(open_data(store, **keys, **covariates), **SMALL).train(1, run=tmp_path / "run", progress=False)
    stored = run_config(tmp_path / "run").data
    assert (stored.uri, stored.batch_key, stored.labels_key) == (str(store), "batch", "label")
    assert (stored.categorical_covariate_keys, stored.continuous_covariate_keys) == (("site",), ("age",))


def test_progress_is_shown_on_stderr(adata: ad.AnnData, capsys: pytest.CaptureFixture[str]) -> None:
    SCVI(adata, **SMALL).train(1)
    shown = capsys.readouterr()
    assert "epoch 1/1" in shown.err
    assert "validation" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_latent": 0}, "n_latent"),
        ({"gene_likelihood": "normal"}, "gene_likelihood"),
        ({"dropout_rate": 1}, "dropout"),
    ],
)
def test_an_option_out_of_range_is_refused(adata: ad.AnnData, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCVI(adata, **options)


def test_no_cells_have_no_answer(model: SCVI) -> None:
    with pytest.raises(ValueError, match=r"^indices is empty: at least one cell is needed$"):
        model.get_latent_representation([])


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, dist_scvi; print([name for name in ('torch', 'ray', 'tiledbsoma') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_public_names_are_there_and_no_others() -> None:
    assert all(hasattr(dist_scvi, name) for name in dist_scvi.__all__)
    with pytest.raises(AttributeError, match=r"^module 'dist_scvi' has no attribute 'SCANVI'$"):
        _ = dist_scvi.SCANVI
