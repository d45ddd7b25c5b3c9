"""How a run stands, told without disturbing it."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dist_scvi.config import DataConfig, RunConfig, TrainConfig
from dist_scvi.lease import Driver, Holder
from dist_scvi.places import LocalPlace
from dist_scvi.run import train_worker
from dist_scvi.run_folder import is_finished
from dist_scvi.status import format_status, status_of
from dist_scvi.world import World

ELSEWHERE = Driver("far-away", "another boot", 1, 0.0)


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalPlace:
    place = LocalPlace(tmp_path_factory.mktemp("runs") / "a")
    train = TrainConfig(max_epochs=2, batch_size=64, lanes=4)
    train_worker(RunConfig(run=str(place.path), data=DataConfig(uri=str(store)), train=train), World())
    return place


def holder(driver: Driver, silent_s: float = 0.0, **fields: object) -> Holder:
    then = (datetime.now(UTC) - timedelta(seconds=silent_s)).isoformat(timespec="seconds")
    return dataclasses.replace(Holder(driver, 7, 2, then, then, saved_step=10), **fields)


def test_a_finished_run_says_so_and_how_it_went(finished: LocalPlace) -> None:
    status = status_of(finished)
    assert (status.state, status.step, status.steps, status.epoch, status.epochs) == ("finished", 12, 12, 2, 2)
    assert (status.saved_step, status.starts, status.workers, status.damaged_checkpoints) == (12, 1, 1, 0)
    assert status.minutes_left is None
    assert status.elbo > 0
    assert json.loads(json.dumps(status.to_dict())) == status.to_dict()
    said = format_status(status)
    for words in ("finished, and the model is whole", "step 12 of 12, epoch 2 of 2", "last checkpoint  step 12"):
        assert words in said


@pytest.mark.parametrize(
    ("lease", "state"),
    [
        (holder(Driver.this()), "running"),
        (holder(dataclasses.replace(Driver.this(), begun=0.0)), "lost"),
        (holder(ELSEWHERE, 5), "running"),
        (holder(ELSEWHERE, 500), "silent"),
        (holder(ELSEWHERE, 500, released=True), "stopped"),
    ],
)
def test_a_run_that_has_not_ended_is_told_by_its_lease(
    finished: LocalPlace, tmp_path: Path, lease: Holder, state: str
) -> None:
    place = LocalPlace(tmp_path)
    for name in ("config.yaml", "metrics.jsonl"):
        place.write(name, finished.read(name))
    row = {"step": 14, "epoch": 2, "steps_per_epoch": 6, "max_epochs": 3, "kind": "train", "elbo": 1.5}
    told = dataclasses.asdict(dataclasses.replace(lease, row=row | {"cells_per_s": 9.0, "steps_per_s": 2.0}))
    place.write("lease/0000000007.json", json.dumps(told).encode())
    status = status_of(place)
    assert (status.state, status.starts, status.saved_step, status.step) == (state, 7, 10, 14)
    assert status.minutes_left == pytest.approx(4 / 2 / 60)
    assert not is_finished(place)
    assert "start the same command again" in format_status(status) or state == "running"


def test_a_run_that_has_only_just_begun_has_a_status(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    place.write("lease/0000000001.json", json.dumps(dataclasses.asdict(holder(Driver.this()))).encode())
    status = status_of(place)
    assert (status.state, status.step, status.steps) == ("running", 0, None)
    assert "step 0 of ?, epoch 0 of ?" in format_status(status)


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run: it has no config"):
        status_of(LocalPlace(tmp_path / "nowhere"))
