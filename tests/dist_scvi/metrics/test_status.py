"""How a run stands, told without disturbing it."""

import dataclasses
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dist_scvi.config.schema import DataConfig, RunConfig, TrainConfig
from dist_scvi.metrics.run_record import is_finished
from dist_scvi.metrics.status import format_status, status_of
from dist_scvi.storage.lease import Driver, Holder
from dist_scvi.storage.run_storage import LocalStorage
from dist_scvi.training.worker import train_worker
from dist_scvi.world import World

ELSEWHERE = Driver("far-away", "another boot", 1, 0.0)


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalStorage:
    place = LocalStorage(tmp_path_factory.mktemp("runs") / "a")
    train = TrainConfig(max_epochs=2, batch_size=64, lanes=4)
    train_worker(RunConfig(run=str(place.path), data=DataConfig(uri=str(store)), train=train), World())
    return place


def holder(driver: Driver, silent_s: float = 0.0, **fields: object) -> Holder:
    then = (datetime.now(UTC) - timedelta(seconds=silent_s)).isoformat(timespec="seconds")
    return dataclasses.replace(Holder(driver, 7, 2, then, then, saved_step=10), **fields)


def test_a_finished_run_says_so_and_how_it_went(finished: LocalStorage) -> None:
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
    ("driver", "silent_s", "released", "state"),
    [
        (Driver.this(), 0, False, "running"),
        (dataclasses.replace(Driver.this(), begun=0.0), 0, False, "killed"),
        (ELSEWHERE, 5, False, "running"),
        (ELSEWHERE, 500, False, "silent"),
        (ELSEWHERE, 500, True, "stopped"),
    ],
)
def test_a_run_that_has_not_ended_is_told_by_its_lease(
    finished: LocalStorage, tmp_path: Path, driver: Driver, silent_s: float, *, released: bool, state: str
) -> None:
    lease = holder(driver, silent_s, released=released)
    place = LocalStorage(tmp_path)
    for name in ("config.yaml", "metrics.jsonl"):
        place.write(name, finished.read(name))
    row = {"step": 14, "epoch": 2, "steps_per_epoch": 6, "max_epochs": 3, "kind": "train", "elbo": 1.5}
    told = dataclasses.asdict(dataclasses.replace(lease, row=row | {"cells_per_s": 9.0, "steps_per_s": 2.0}))
    place.write("lease/0000000007.json", json.dumps(told).encode())
    place.write_folder("checkpoints/step-0000000010", {"state.json": b""})
    status = status_of(place)
    assert (status.state, status.starts, status.saved_step, status.step) == (state, 7, 10, 14)
    assert status.minutes_left == pytest.approx(4 / 2 / 60)
    assert not is_finished(place)
    assert "start the same command again" in format_status(status) or state == "running"


def test_a_run_that_has_only_just_begun_has_a_status(tmp_path: Path) -> None:
    place = LocalStorage(tmp_path)
    place.write("lease/0000000001.json", json.dumps(dataclasses.asdict(holder(Driver.this()))).encode())
    status = status_of(place)
    assert (status.state, status.step, status.steps) == ("running", 0, None)
    assert "step 0 of ?, epoch 0 of ?" in format_status(status)


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run: it has no config"):
        status_of(LocalStorage(tmp_path / "nowhere"))


@pytest.mark.parametrize("lost", ["removed", "damaged"])
def test_a_run_whose_checkpoints_are_lost_is_not_said_to_go_on(
    finished: LocalStorage, tmp_path: Path, lost: str
) -> None:
    place = LocalStorage(tmp_path)
    place.write("config.yaml", finished.read("config.yaml"))
    told = dataclasses.asdict(holder(Driver.this(), released=True))
    place.write("lease/0000000007.json", json.dumps(told).encode())
    place.write_folder("checkpoints/step-0000000010", {"state.json": b""})
    assert status_of(place).state == "stopped"
    if lost == "removed":
        place.remove("checkpoints/step-0000000010")
    else:
        (tmp_path / "checkpoints" / "step-0000000010" / "MANIFEST.json").write_text("[" * 100_000)
    status = status_of(place)
    assert (status.state, status.saved_step, status.damaged_checkpoints) == ("damaged", None, int(lost == "damaged"))
    assert "start afresh with --allow-fresh" in format_status(status)


def test_what_was_saved_after_the_last_line_counts_as_done(finished: LocalStorage, tmp_path: Path) -> None:
    place = LocalStorage(tmp_path)
    for name in ("config.yaml", "metrics.jsonl"):
        place.write(name, finished.read(name))
    place.write_folder("checkpoints/step-0000000013", {"state.json": b""})
    assert status_of(place).step == 13


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lease/0000000007.json", b"[" * 100_000),
        ("lease/0000000007.json", b'{"driver": []}'),
        ("config.yaml", b"[" * 50_000),
    ],
)
def test_files_that_make_no_sense_are_named(finished: LocalStorage, tmp_path: Path, name: str, content: bytes) -> None:
    place = LocalStorage(tmp_path)
    place.write("config.yaml", finished.read("config.yaml"))
    place.write(name, content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        status_of(place)


def test_lines_and_results_that_make_no_sense_are_passed_over(finished: LocalStorage, tmp_path: Path) -> None:
    place = LocalStorage(tmp_path)
    place.write("config.yaml", finished.read("config.yaml"))
    place.write("metrics.jsonl", b'{"kind": "validation", "step": 9}\n')
    place.write("RESULT.json", b"[" * 100_000)
    os.mkfifo(tmp_path / "model")
    status = status_of(place)
    assert (status.state, status.step, status.validation_elbo) == ("stopped", 0, None)


def test_a_lease_does_not_speak_to_the_terminal(finished: LocalStorage, tmp_path: Path) -> None:
    place = LocalStorage(tmp_path)
    place.write("config.yaml", finished.read("config.yaml"))
    evil = dataclasses.asdict(holder(Driver("vm\x1b[31mEVIL\n", "another boot", 1, 0.0)))
    place.write("lease/0000000007.json", json.dumps(evil).encode())
    assert all(line.isprintable() for line in format_status(status_of(place)).splitlines())
    (tmp_path / "lease" / "0000000007.json").unlink()
    (tmp_path / "lease" / "0000000008.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "lease" / "0000000006.json")
    with pytest.raises(OSError, match="is not a regular file"):
        status_of(place)
