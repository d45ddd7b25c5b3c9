"""Workers that train SCANVI together: the same losses for any number of them, in any order of restarts."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import yaml

from dist_scvi.config.load import load_config
from dist_scvi.metrics.metrics_file import Row, read_metrics
from dist_scvi.network.model_files import load_model
from dist_scvi.training.train import train

FREE = {"cells_per_s", "steps_per_s", "wait_share", "memory_mib", "kind"}


@pytest.fixture(scope="module")
def run_yaml(adata: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of 6 steps; of the labelled cells there are enough for two of four lanes."""
    folder = tmp_path_factory.mktemp("together")
    adata = adata.copy()
    adata.obs["label"] = np.where(np.arange(adata.n_obs) % 4 == 0, adata.obs["label"].astype(str), "unknown")
    adata.write_h5ad(folder / "cells.h5ad")
    keys = {"batch_key": "batch", "labels_key": "label", "unlabeled_category": "unknown"}
    config = {
        "data": {"uri": str(folder / "cells.h5ad"), **keys},
        "model": {"model_name": "SCANVI", "n_hidden": 16, "use_observed_lib_size": False},
        "train": {
            "max_epochs": 2,
            "batch_size": 64,
            "lanes": 4,
            "micro_cells": 16,
            "log_every_n_steps": 1,
            "save_every_n_steps": 4,
            "n_steps_kl_warmup": 8,
            "keep_checkpoints": 9,
            "collective_timeout_s": 60,
            "reduce_lr_on_plateau": True,
            "lr_patience": 0,
            "lr_threshold": 1e9,
            "n_samples_per_label": 14,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def alone(run_yaml: Path) -> list[Row]:
    return train(load_config(run_yaml)).history


def torchrun(run_yaml: Path, run: Path, workers: int, *overrides: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command += ["-m", "dist_scvi.launch.torchrun", str(run_yaml), f"run={run}", *overrides]
    subprocess.run(command, check=True, timeout=150, capture_output=True)


def assert_same(rows: list[Row], expected: list[Row], *, rtol: float) -> None:
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - FREE:
            assert row[key] == pytest.approx(other[key], rel=rtol), (row["kind"], row["step"], key)


def test_two_workers_train_as_one_and_in_mid_epoch_four_go_on(run_yaml: Path, alone: list[Row], tmp_path: Path) -> None:
    torchrun(run_yaml, tmp_path, 2)
    rows = read_metrics(tmp_path)
    assert_same(rows, alone, rtol=1e-5)
    assert {row["labelled_cells"] for row in rows if row["kind"] == "train"} == {42}
    model = load_model(tmp_path / "model")[0].state_dict()

    for path in (tmp_path / "checkpoints").glob("step-*"):
        if int(path.name[-10:]) > 4:
            path.rename(path.with_name(f"dropped-{path.name}"))
    torchrun(run_yaml, tmp_path, 2)
    again = load_model(tmp_path / "model")[0].state_dict()
    assert {name: value.numpy().tobytes() for name, value in again.items()} == {
        name: value.numpy().tobytes() for name, value in model.items()
    }
    assert_same(read_metrics(tmp_path), rows, rtol=0)

    for path in (tmp_path / "checkpoints").glob("step-*"):
        if int(path.name[-10:]) > 8:
            path.rename(path.with_name(f"dropped-again-{path.name}"))
    torchrun(run_yaml, tmp_path, 4)
    assert_same(read_metrics(tmp_path), alone, rtol=1e-5)
