"""Training of every model with the options of scvi-tools: two streams, priors, ends, rates, and resuming them all."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

from dist_scvi.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from dist_scvi.loaders import CellData, open_data
from dist_scvi.loaders.library_prior import library_prior
from dist_scvi.metrics.history import history_of
from dist_scvi.metrics.metrics_file import Row
from dist_scvi.network.model_files import load_model
from dist_scvi.network.model_spec import spec_of
from dist_scvi.training.resolve import resolve
from dist_scvi.training.train import Trained, train
from dist_scvi.transfer.scanvi_from_scvi import scanvi_from


class Stopped(Exception):  # noqa: N818
    """Stands for the end of the process."""


MODELS = {
    "SCANVI": {"model_name": "SCANVI"},
    "SCANVI with all": {
        "model_name": "SCANVI",
        "use_observed_lib_size": False,
        "dispersion": "gene-label",
        "objective": "conditional",
    },
    "LinearSCVI": {"model_name": "LinearSCVI"},
    "SCVI with all": {"use_observed_lib_size": False, "batch_representation": "embedding", "encode_covariates": True},
}
SIZES = {"max_epochs": 3, "batch_size": 64, "lanes": 4, "micro_cells": 16, "log_every_n_steps": 1}


def config_of(name: str = "SCANVI", **train_options: object) -> RunConfig:
    return RunConfig(
        data=DataConfig(uri="memory"),
        model=ModelConfig.model_validate({"n_hidden": 16, "n_latent": 4, **MODELS[name]}),
        train=TrainConfig.model_validate(SIZES | {"save_every_n_steps": 4} | train_options),
    )


@pytest.fixture(scope="module")
def few_labels(adata: ad.AnnData) -> CellData:
    """Cells of which every fourth has a label."""
    adata = adata.copy()
    adata.obs["label"] = np.where(np.arange(adata.n_obs) % 4 == 0, adata.obs["label"].astype(str), "unknown")
    return open_data(adata, batch_key="batch", labels_key="label", unlabeled_category="unknown")


def stop_at(step: int) -> object:
    def on_metrics(row: Row) -> None:
        if row["step"] == step and row["kind"] == "train":
            raise Stopped

    return on_metrics


def weights(trained: Trained) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trained.module.state_dict().items()}


def told(path: Path) -> list[Row]:
    noisy = {"cells_per_s", "steps_per_s", "wait_share", "memory_mib", "crc32"}
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in noisy} for row in rows]


def ended(trained: Trained) -> int:
    return int(trained.history[-1]["epoch"]) + 1


def values(trained: Trained, name: str) -> list[float]:
    return history_of(trained.history)[name][name].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_a_run_of_every_model_stopped_in_mid_epoch_ends_as_one_that_was_not(
    few_labels: CellData, tmp_path: Path, name: str
) -> None:
    config = config_of(name, reduce_lr_on_plateau=True, lr_patience=0, lr_threshold=1e9)
    whole = train(config, data=few_labels, folder=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, data=few_labels, folder=tmp_path / "cut", on_metrics=stop_at(10))
    assert weights(train(config, data=few_labels, folder=tmp_path / "cut")) == weights(whole)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")
    assert whole.history[-2]["lr"] == pytest.approx(1e-3 * 0.6)


def test_scanvi_learns_the_labels_and_tells_how_well(few_labels: CellData) -> None:
    trained = train(config_of(max_epochs=15, lr=0.02), data=few_labels)
    assert values(trained, "train_accuracy")[-1] > 0.9
    assert values(trained, "validation_accuracy")[-1] > 0.8
    assert values(trained, "train_classification_loss")[-1] < values(trained, "train_classification_loss")[0] / 2
    assert values(trained, "validation_calibration_error")[-1] < 0.3
    known = few_labels.columns_of([(0, few_labels.n_cells)]).label_n >= 0
    assert 0 < trained.history[-1]["labelled_cells"] < known.sum()


def test_the_loss_is_that_of_the_cells_and_the_classification_by_its_ratio(few_labels: CellData) -> None:
    for ratio in (0.0, 50.0):
        trained = train(config_of(max_epochs=1, classification_ratio=ratio, n_epochs_kl_warmup=0), data=few_labels)
        for row in trained.history:
            assert row["loss"] == pytest.approx(row["elbo"] + ratio * row["classification_loss"], rel=1e-5)


def test_as_many_cells_of_each_label_are_classified_as_asked_for(few_labels: CellData) -> None:
    trained = train(config_of(max_epochs=2, n_samples_per_label=5), data=few_labels)
    rows = [row for row in trained.history if row["kind"] == "train"]
    assert [row["labelled_cells"] for row in rows] == [15] * len(rows)


def test_the_prior_of_a_latent_library_is_that_of_all_cells_and_part_of_the_checkpoint(
    few_labels: CellData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean_b, var_b = library_prior(few_labels)
    train(config_of("LinearSCVI", max_epochs=1), data=few_labels, folder=tmp_path)
    monkeypatch.setattr(
        "dist_scvi.training.train.set_library_prior", None
    )  # a resumed run does not read all cells again
    trained = train(config_of("LinearSCVI", max_epochs=2, n_steps_kl_warmup=6), data=few_labels, folder=tmp_path)
    np.testing.assert_allclose(trained.module.library_log_means, mean_b[None], rtol=1e-6)
    np.testing.assert_allclose(trained.module.library_log_vars, var_b[None], rtol=1e-6)


def test_early_stopping_ends_the_run_and_a_finished_one_stays_finished(few_labels: CellData, tmp_path: Path) -> None:
    options = {"early_stopping": True, "early_stopping_min_delta": 1e9, "early_stopping_patience": 2, "max_epochs": 9}
    whole = train(config_of(**options), data=few_labels, folder=tmp_path)
    assert ended(whole) == 3
    assert [row["ends"] for row in whole.history if row["kind"] == "validation"] == [False, False, True]
    before = told(tmp_path)
    assert weights(train(config_of(**options), data=few_labels, folder=tmp_path)) == weights(whole)
    assert told(tmp_path) == before
    further = train(config_of(**options | {"early_stopping_patience": 4}), data=few_labels, folder=tmp_path)
    assert ended(further) == 5
    assert weights(further) == weights(train(config_of(**options | {"early_stopping_patience": 4}), data=few_labels))


def test_early_stopping_waits_as_long_after_a_restart(few_labels: CellData, tmp_path: Path) -> None:
    options = {"early_stopping": True, "early_stopping_min_delta": 1e9, "early_stopping_patience": 3, "max_epochs": 9}
    with pytest.raises(Stopped):
        train(config_of(**options), data=few_labels, folder=tmp_path, on_metrics=stop_at(16))
    assert ended(train(config_of(**options), data=few_labels, folder=tmp_path)) == 4


@pytest.mark.parametrize("cut", [None, 15])
def test_the_best_weights_are_those_of_the_best_validation_also_after_a_restart(
    few_labels: CellData, tmp_path: Path, cut: int | None
) -> None:
    options = {
        "early_stopping_mode": "max",
        "early_stopping_warmup_epochs": 1,
        "max_epochs": 4,
        "n_steps_kl_warmup": 12,
    }
    at_end = train(config_of(**options), data=few_labels)
    best = int(np.argmax(values(at_end, "elbo_validation")[1:])) + 2
    assert best < 4
    expected = train(config_of(**options | {"max_epochs": best}), data=few_labels)
    if cut:
        with pytest.raises(Stopped):
            train(config_of(**options, load_best=True), data=few_labels, folder=tmp_path, on_metrics=stop_at(cut))
    found = train(config_of(**options, load_best=True), data=few_labels, folder=tmp_path)
    assert weights(found) == weights(expected) != weights(at_end)
    saved, _ = load_model(max((tmp_path / "checkpoints").glob("best-*")))
    assert {name: value.numpy().tobytes() for name, value in saved.state_dict().items()} == weights(expected)
    assert weights(train(config_of(**options, load_best=True), data=few_labels)) == weights(expected)


@pytest.mark.parametrize("options", [{"validation_size": 0.0, "train_size": 0.9}, {"check_val_every_n_epoch": 0}])
@pytest.mark.parametrize("key", ["early_stopping", "reduce_lr_on_plateau", "load_best"])
def test_what_depends_on_validations_is_refused_without_them(
    few_labels: CellData, options: dict[str, object], key: str
) -> None:
    with pytest.raises(ValueError, match=rf"train\.{key} depends on validations, and there are none: set"):
        train(config_of(**options, **{key: True}), data=few_labels)


@pytest.mark.parametrize("options", [{"optimizer": "AdamW"}, {"gradient_clip_val": 1.0}, {"weight_decay": 0.1}])
def test_an_option_of_the_optimizer_changes_the_weights(few_labels: CellData, options: dict[str, object]) -> None:
    plain = {"max_epochs": 1, "weight_decay": 0.01}
    changed = train(config_of(**plain | options), data=few_labels)
    assert weights(changed) != weights(train(config_of(**plain), data=few_labels))


def test_a_start_is_trained_on_from_its_weights_and_keeps_frozen_entries(few_labels: CellData) -> None:
    config = config_of("SCVI with all", max_epochs=1)
    first = train(config, data=few_labels)
    before = {name: value.clone() for name, value in first.module.state_dict().items()}
    first.module.frozen = {"px_r": torch.arange(50) % 2 == 0}
    second = train(config, data=few_labels, start=(first.module, first.spec))
    assert second.module is first.module
    assert torch.equal(second.module.px_r[::2], before["px_r"][::2])
    assert (second.module.px_r[1::2] != before["px_r"][1::2]).all()
    assert torch.equal(second.module.library_log_means, before["library_log_means"])


def test_scanvi_that_begins_with_scvi_trains_a_third_of_the_epochs_and_at_most_ten(few_labels: CellData) -> None:
    start = spec_of(ModelConfig(n_hidden=8), 0, few_labels)
    config = ModelConfig(n_hidden=8, model_name="SCANVI")
    _, spec = scanvi_from(start.build(), start, few_labels, config, seed=0)
    asked = config_of(max_epochs=None)
    assert resolve(asked, few_labels, spec)[0].train.max_epochs == 10
    assert resolve(asked, few_labels)[0].train.max_epochs == 400
    assert resolve(config_of(max_epochs=7), few_labels, spec)[0].train.max_epochs == 7


def test_labels_that_changed_are_refused_on_resume(adata: ad.AnnData, tmp_path: Path) -> None:
    opened = []
    for period in (4, 5):
        changed = adata.copy()
        changed.obs["label"] = np.where(np.arange(403) % period == 0, adata.obs["label"].astype(str), "unknown")
        opened.append(open_data(changed, batch_key="batch", labels_key="label", unlabeled_category="unknown"))
    with pytest.raises(Stopped):
        train(config_of(), data=opened[0], folder=tmp_path, on_metrics=stop_at(5))
    with pytest.raises(ValueError, match=r"belongs to another run: data\.content \(digest .* data\.labelled was"):
        train(config_of(), data=opened[1], folder=tmp_path)
