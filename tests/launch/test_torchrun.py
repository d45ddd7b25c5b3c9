"""The number of workers changes neither the cells of a step nor, beyond rounding, its losses; and it may change."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dist_scvi.config.load import load_config
from dist_scvi.metrics.metrics_file import Row, read_metrics
from dist_scvi.network.model_files import load_model
from dist_scvi.training.train import train


def torchrun(run_yaml: Path, workers: int, *overrides: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command += ["-m", "dist_scvi.launch.torchrun", str(run_yaml), *overrides]
    subprocess.run(command, check=True, timeout=120, capture_output=True)


@pytest.fixture
def alone(run_yaml: Path) -> list[Row]:
    return train(load_config(run_yaml)).history


def losses(rows: list[Row]) -> np.ndarray:
    return np.array([(row["step"], row["elbo"], row["reconstruction"], row["kl"]) for row in rows])


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_take_the_steps_that_one_would_take(run_yaml: Path, alone: list[Row], workers: int) -> None:
    torchrun(run_yaml, workers)
    together = read_metrics(run_yaml.parent / "run")
    assert [row["cells_hash"] for row in together if row["kind"] == "train"] == [
        row["cells_hash"] for row in alone if row["kind"] == "train"
    ]
    assert len(together) > 50
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)


def test_a_run_goes_on_with_another_number_of_workers_in_mid_epoch(run_yaml: Path, alone: list[Row]) -> None:
    torchrun(run_yaml, 2, "train.max_epochs=1")
    checkpoints = run_yaml.parent / "run" / "checkpoints"
    newest = max(checkpoints.glob("step-*"))
    newest.rename(checkpoints / "dropped")  # back to the one before, inside the epoch
    torchrun(run_yaml, 4)
    together = read_metrics(run_yaml.parent / "run")
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)


def test_the_model_of_many_workers_is_that_of_one(run_yaml: Path) -> None:
    torchrun(run_yaml, 2)
    together, _ = load_model(run_yaml.parent / "run" / "model")
    alone = train(load_config(run_yaml)).module
    for (name, value), expected in zip(together.state_dict().items(), alone.state_dict().values(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-5, err_msg=name)
