"""A run is a folder: what it would cost, what it leaves, and that it is done once."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.atlas.worker import minify_worker
from dist_scvi.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from dist_scvi.metrics.run_record import is_finished, run_config, workers_of_run
from dist_scvi.network.model_files import load_history, load_model
from dist_scvi.storage.atomic_files import read_folder
from dist_scvi.storage.run_storage import LocalStorage
from dist_scvi.training.preview import preview
from dist_scvi.training.resolve import open_from
from dist_scvi.training.worker import fix_soma_timestamp, train_worker
from dist_scvi.world import World


def config_of(store: Path, run: Path, **train: object) -> RunConfig:
    return RunConfig(
        run=str(run),
        data=DataConfig(uri=str(store), batch_key="batch", labels_key="label"),
        model=ModelConfig(n_hidden=16, n_latent=4),
        train=TrainConfig.model_validate({"max_epochs": 2, "batch_size": 64, "lanes": 4} | train),
    )


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    train_worker(config_of(store, folder), World())
    return folder


def test_a_preview_says_what_a_run_would_do(store: Path, tmp_path: Path) -> None:
    config = config_of(store, tmp_path / "run")
    told = preview(config, open_from(config.data), workers=2)
    expected = {
        "store": str(store),
        "cells": 403,
        "genes": 50,
        "batches": 2,
        "train / validation / test": "363 / 40 / 0",
        "epochs": 2,
        "steps": "12 of 64 cells, 6 an epoch",
        "lanes": "4, 2 for each of 2 workers",
        "run folder": str(tmp_path / "run"),
    }
    assert expected.items() <= told.items()
    assert told["memory for cells"].endswith("MiB in each worker")
    assert told["diversity"].startswith("a minibatch loses at most")
    assert not (tmp_path / "run").exists()


def test_a_preview_warns_of_a_window_of_few_blocks(store: Path, tmp_path: Path) -> None:
    config = config_of(store, tmp_path).model_copy(update={"data": DataConfig(uri=str(store), window_cells=64)})
    told = preview(config, open_from(config.data), workers=1)
    assert "fewer than the 256 that this store needs: raise data.memory_mib" in told["diversity"]


def test_a_run_leaves_its_configuration_metrics_workers_and_model(store: Path, run: Path) -> None:
    assert {entry.name for entry in run.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "lease",
        "workers",
        "model",
        "RESULT.json",
    }
    resolved = run_config(LocalStorage(run))
    assert (resolved.run, resolved.data.uri, resolved.train.max_epochs) == (str(run), str(store), 2)
    assert resolved.train.n_steps_kl_warmup == 6
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ends = [(step, kind) for step in (6, 12) for kind in ("train", "epoch", "validation")]
    assert [(row["step"], row["kind"]) for row in rows] == [*ends[:3], (10, "train"), *ends[3:]]
    worker = json.loads((run / "workers" / "0.json").read_text())
    assert (worker["rank"], worker["world_size"], worker["pid"]) == (0, 1, os.getpid())
    assert load_model(run / "model")[1].model.n_latent == 4
    history, is_trained = load_history(run / "model")
    assert is_trained
    assert history["elbo_validation"]["data"] == [[pytest.approx(rows[at]["elbo"])] for at in (2, 6)]


def test_a_finished_run_started_again_does_nothing_new(store: Path, run: Path) -> None:
    before = read_folder(run / "model"), (run / "metrics.jsonl").read_text(), (run / "config.yaml").read_text()
    told: list[object] = []
    train_worker(config_of(store, run), World(), on_metrics=told.append)
    assert told == []
    after = read_folder(run / "model"), (run / "metrics.jsonl").read_text(), (run / "config.yaml").read_text()
    assert after == before


def test_the_resolved_configuration_gives_the_same_run(run: Path) -> None:
    before = read_folder(run / "model")
    train_worker(run_config(LocalStorage(run)), World())
    assert read_folder(run / "model") == before


def test_a_run_is_finished_when_its_model_is_whole(run: Path, tmp_path: Path) -> None:
    assert is_finished(LocalStorage(run))
    assert not is_finished(LocalStorage(tmp_path))
    copy = LocalStorage(tmp_path / "copy")
    shutil.copytree(run, copy.path)
    assert is_finished(copy)
    train_worker(run_config(copy, ["train.max_epochs=3"]), World())
    shutil.copytree(run / "model", copy.path / "model", dirs_exist_ok=True)
    assert not is_finished(copy), "the model is whole, but of a shorter run"


def test_minifying_a_finished_run_says_where_the_atlas_comes_from(run: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    minify_worker(LocalStorage(run), tmp_path / "atlas", World(), on_progress=lambda *at: told.append(at))
    atlas = open_atlas(tmp_path / "atlas")
    assert np.isfinite(atlas.get_latent_representation()).all()
    assert (atlas.manifest["lineage"]["run"], atlas.manifest["lineage"]["train"]["max_epochs"]) == (str(run), 2)
    assert {"batch", "label", "site"} <= set(atlas.obs.columns())
    assert told == [(0, 403), (403, 403)]


def test_a_run_that_has_not_ended_is_not_minified(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"run is not a run: it has no config\.yaml; start one with"):
        minify_worker(LocalStorage(run), tmp_path / "atlas", World())
    train_worker(config_of(store, run, max_epochs=1), World())
    (run / "model" / "spec.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run has no finished model: continue it with 'dist-scvi resume"):
        minify_worker(LocalStorage(run), tmp_path / "atlas", World())
    assert not (tmp_path / "atlas").exists()


def test_the_number_of_workers_is_that_of_the_last_start(run: Path, tmp_path: Path) -> None:
    assert workers_of_run(LocalStorage(run)) == 1
    assert workers_of_run(LocalStorage(tmp_path)) is None


def test_overrides_apply_to_the_configuration_of_a_run(run: Path) -> None:
    assert run_config(LocalStorage(run), ["train.max_epochs=9"]).train.max_epochs == 9
    with pytest.raises(ValueError, match=r"^there is no key train\.epochs"):
        run_config(LocalStorage(run), ["train.epochs=9"])
    with pytest.raises(ValueError, match=r"^a run is resumed in its folder: leave out run="):
        run_config(LocalStorage(run), ["run=elsewhere"])


def test_a_preview_names_the_categories_that_are_held_out(store: Path, tmp_path: Path) -> None:
    config = config_of(store, tmp_path).model_copy(update={"data": DataConfig(uri=str(store), holdout_key="site")})
    told = preview(config, open_from(config.data), workers=1)
    assert told["validation of site"] in {"x", "y", "z"}
    assert told["test of site"] == "none"


def test_soma_is_read_as_of_one_moment_in_every_start_of_a_run(tmp_path: Path) -> None:
    config = config_of(tmp_path / "experiment", tmp_path / "run")
    assert fix_soma_timestamp(config, LocalStorage(tmp_path / "run")) == config
    (tmp_path / "experiment" / "__group").mkdir(parents=True)
    first = fix_soma_timestamp(config, LocalStorage(tmp_path / "run"))
    assert first.data.soma is not None
    assert first.data.soma.timestamp_ms is not None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(first.model_dump(mode="json")))
    time.sleep(0.01)
    assert fix_soma_timestamp(config, LocalStorage(tmp_path / "run")) == first


def test_scanvi_from_the_model_of_another_run_trains_and_is_resumed_without_it(
    store: Path, run: Path, tmp_path: Path
) -> None:
    before, folder = tmp_path / "before", tmp_path / "scanvi"
    shutil.copytree(run / "model", before)
    config = RunConfig(
        run=str(folder),
        start_from=str(before),
        data=DataConfig(uri=str(store), batch_key="batch", labels_key="label", unlabeled_category="NK"),
        model=ModelConfig(model_name="SCANVI"),
        train=TrainConfig(batch_size=64, lanes=4),
    )
    told = preview(config, open_from(config.data), workers=2)
    assert (told["epochs"], told["labelled"].split()[1]) == (10, "cells,")
    train_worker(config.model_copy(update={"train": config.train.model_copy(update={"max_epochs": 1})}), World())
    assert run_config(LocalStorage(folder)).model.n_latent == 4
    shutil.rmtree(before)
    train_worker(run_config(LocalStorage(folder), ["train.max_epochs=2"]), World())
    _, spec = load_model(folder / "model")
    assert (spec.model.model_name, spec.label.categories) == ("SCANVI", ("B", "T"))
    assert preview(run_config(LocalStorage(folder)), open_from(config.data), workers=1)["epochs"] == 2


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, store: Path
) -> None:
    config = config_of(store, tmp_path / "new").model_copy(update={"start_from": str(run / "model")})
    for update, message in (
        ({"model": ModelConfig(model_name="LinearSCVI")}, "holds SCVI, and LinearSCVI cannot start from it"),
        ({"model": ModelConfig(n_latent=5)}, r"has other options: leave out n_latent=5 \(it has 4\)"),
        ({"data": DataConfig(uri=str(store))}, "open it with batch_key='batch'"),
    ):
        changed = config.model_copy(update=update)
        with pytest.raises(ValueError, match=message):
            preview(changed, open_from(changed.data), workers=1)
        with pytest.raises(ValueError, match=message):
            train_worker(changed, World())
    assert not (tmp_path / "new" / "checkpoints").exists()
