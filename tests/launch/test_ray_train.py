"""Workers on Ray Train: killed ones cost at most a save interval and change nothing; mistakes end the run at once."""

import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from dist_scvi.config import RunConfig
from dist_scvi.config_file import load_config
from dist_scvi.folder import read_folder
from dist_scvi.launch.ray_train import run_on_ray
from dist_scvi.metrics import read_metrics
from dist_scvi.run import is_finished, train_worker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]


def train_on_ray(config: RunConfig) -> None:
    run_on_ray(partial(train_worker, config), workers=2, folder=Path(config.run), timeout_s=30)


def kill_a_worker_after(run: Path, step: int, killed: list[int]) -> None:
    """Send SIGKILL to rank 1 once the metrics have reached `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.exists() and any(row["step"] >= step for row in read_metrics(path)):
            killed.append(json.loads((run / "workers" / "1.json").read_text())["pid"])
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.01)


def test_a_run_whose_worker_is_killed_ends_by_itself_with_the_weights_of_an_undisturbed_one(
    run_yaml: Path, tmp_path: Path
) -> None:
    undisturbed = load_config(run_yaml, [f"run={tmp_path / 'undisturbed'}", "train.max_epochs=12"])
    train_on_ray(undisturbed)
    disturbed = load_config(run_yaml, [f"run={tmp_path / 'disturbed'}", "train.max_epochs=12"])
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(Path(disturbed.run), 33, killed))
    killer.start()
    train_on_ray(disturbed)
    killer.join()

    assert killed
    assert json.loads((Path(disturbed.run) / "workers" / "1.json").read_text())["pid"] != killed[0]
    files = [read_folder(Path(config.run) / "model") for config in (undisturbed, disturbed)]
    assert files[0] == files[1]
    told = [
        [
            (row["step"], row["kind"], row["elbo"], row.get("cells_hash"))
            for row in read_metrics(Path(config.run) / "metrics.jsonl")
        ]
        for config in (undisturbed, disturbed)
    ]
    assert told[0] == told[1]


def test_workers_that_ray_could_never_place_are_refused_rather_than_waited_for(run_yaml: Path) -> None:
    config = load_config(run_yaml)
    with pytest.raises(
        ValueError, match=r"2 workers with 99 GPUs each need 198, Ray has \d+: lower --workers or --gpus"
    ):
        run_on_ray(partial(train_worker, config), workers=2, folder=Path(config.run), gpus_per_worker=99)
    assert not (Path(config.run) / ".ray").exists()


def test_a_mistake_that_no_restart_can_mend_is_told_and_not_retried(run_yaml: Path) -> None:
    config = load_config(run_yaml, ["train.lr=1e30", "train.log_every_n_steps=50"])
    with pytest.raises(ValueError, match=r"the loss became .*: lower train\.lr"):
        train_on_ray(config)
    assert not is_finished(Path(config.run))
    assert not (Path(config.run) / ".ray").exists()
