"""Services of metrics, each with its own package: one run over restarts, no line twice, parameters once."""

import importlib
import json
import struct
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dist_scvi.config.schema import RunConfig
from dist_scvi.metrics.forwarder import read_identity, start_forwarder
from dist_scvi.metrics.metrics_file import MetricsLog, Row
from dist_scvi.metrics.services import MLflow, TensorBoard, WeightsAndBiases, values_of
from dist_scvi.storage.run_storage import LocalStorage

LINES = [(2, "train"), (4, "train"), (4, "epoch"), (4, "validation"), (6, "train"), (8, "train"), (8, "epoch")]
SPEED = {"cells_per_s": 640.0, "steps_per_s": 10.0, "wait_share": 0.25, "memory_mib": 300.0}


def row(step: int, kind: str = "train") -> Row:
    losses = {"loss": 13.0, "elbo": 12.5 + step, "reconstruction": 10.0, "kl": 2.5, "cells": 8, "cells_hash": 1 << 60}
    where = {"epoch": (step - 1) // 4, "step": step, "steps_per_epoch": 4, "max_epochs": 3}
    rates = {} if kind == "validation" else {"kl_weight": 0.5, "lr": 1e-3}
    return {"kind": kind, **where, **rates, **losses, **(SPEED if kind == "train" else {"ends": False})}


def config(tmp_path: Path, logger: str, **options: str) -> RunConfig:
    return RunConfig.model_validate(
        {"run": str(tmp_path / "run"), "data": {"uri": "x|y"}, "logger": logger, "logger_options": options}
    )


def restarted(config: RunConfig, starts: Sequence[tuple[int, int]]) -> None:
    """Train `starts` times: each resumes after the first lines, and adds the others up to an end."""
    place = LocalStorage(Path(config.run))
    for known, end in starts:
        rows = [row(*line) for line in LINES[:end]]
        log = MetricsLog(place, step=rows[known - 1]["step"] if known else 0)
        log.rows = rows[:known]
        log.sync()
        forwarding = start_forwarder(config, place)
        assert forwarding is not None
        for each in rows[known:]:
            log.write(each)
        forwarding.close(ended=False)


KILLS = [(0, 3), (1, 6), (2, 3), (5, 7)]
"""Starts that each do again what came after the last checkpoint; the third does not come beyond what is there."""


def expected(metric: str) -> list[tuple[int, float]]:
    return [(step, values_of(row(step, kind))[metric]) for step, kind in LINES if metric in values_of(row(step, kind))]


def test_losses_have_the_names_of_scvi_tools_and_means_of_some_steps_end_in_step() -> None:
    train, epoch, validation = (values_of(row(4, kind)) for kind in ("train", "epoch", "validation"))
    assert epoch == {
        "train_loss": 13.0,
        "elbo_train": 16.5,
        "reconstruction_loss_train": 10.0,
        "kl_local_train": 2.5,
    }
    assert validation["elbo_validation"] == 16.5
    assert train["elbo_train_step"] == 16.5
    assert {"kl_weight", "lr", "epoch", "cells_per_s", "wait_share", "memory_mib"} <= set(train)
    assert not set(train) & set(epoch) | set(epoch) & set(validation)


# --- TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read event files as TensorBoard does: in order of their names, a start purges what is there from its step on."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        if event.HasField("session_log"):
            found = {tag: [(step, value) for step, value in of if step < event.step] for tag, of in found.items()}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, pytest.approx(value.simple_value, rel=1e-6)))
    return found


def events(folder: Path) -> Iterator[Any]:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    for path in sorted(folder.glob("events*")):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):
            size, check = struct.unpack_from("<QI", content, at)
            if check != masked_crc32c(content[at : at + 8]) or at + size + 16 > len(content):
                break
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16


def test_tensorboard_has_each_line_once_over_restarts(tmp_path: Path) -> None:
    restarted(config(tmp_path, "tensorboard"), KILLS)
    folder = tmp_path / "run" / "tensorboard"
    found = scalars(folder)
    for metric in ("elbo_train", "elbo_validation", "elbo_train_step", "kl_weight", "cells_per_s"):
        assert found[metric] == expected(metric)
    texts = [
        value for event in events(folder) for value in event.summary.value if value.tag.startswith("configuration")
    ]
    assert len(texts) == 1
    assert b"| model.n_latent | 10 |" in texts[0].tensor.string_val[0]
    assert rb"| data.uri | x\|y |" in texts[0].tensor.string_val[0]


def test_tensorboard_goes_where_the_option_says(tmp_path: Path) -> None:
    restarted(config(tmp_path, "tensorboard", dir=str(tmp_path / "board")), [(0, 3)])
    assert scalars(tmp_path / "board")["elbo_train"] == expected("elbo_train")[:1]
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-5], lambda content: content[:-150], lambda content: content + b"\xff" * 40]
)
def test_tensorboard_a_line_that_a_kill_cut_off_is_sent_again(tmp_path: Path, damage: Any) -> None:
    restarted(config(tmp_path, "tensorboard"), [(0, 2)])
    folder = tmp_path / "run" / "tensorboard"
    (path,) = folder.glob("events*")
    path.write_bytes(damage(path.read_bytes()))
    restarted(config(tmp_path, "tensorboard"), [(2, 7)])
    for metric in ("elbo_train", "elbo_train_step", "kl_weight", "memory_mib"):
        assert scalars(folder)[metric] == expected(metric)


def test_tensorboard_a_write_that_fails_in_the_middle_of_a_line_leaves_no_part_of_it(tmp_path: Path) -> None:
    service = TensorBoard(tmp_path)
    assert service.last_steps() == {"train": 0, "epoch": 0, "validation": 0}
    service.send([row(2)])
    first, calls = service._writer, []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 3:
            raise OSError("no space left")
        type(first).add_scalar(first, *arguments)

    first.add_scalar = full
    with pytest.raises(OSError, match="no space left"):
        service.send([row(4), row(6)])
    first.close()
    assert service.last_steps()["train"] == 1
    service.send([row(2), row(4), row(6)])
    service.close(ended=True)
    assert [step for step, _ in scalars(tmp_path)["kl_weight"]] == [2, 4, 6]
    assert TensorBoard(tmp_path).last_steps()["train"] == 5


# --- MLflow


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where MLflow keeps runs: a folder, for which alone the slim package has code."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return (tmp_path / "store").as_uri()


def client(store: str) -> Any:
    from mlflow.tracking.client import MlflowClient

    return MlflowClient(tracking_uri=store)


def test_mlflow_has_one_run_and_each_line_once_over_restarts(tmp_path: Path, store: str) -> None:
    settings = config(tmp_path, "mlflow", tracking_uri=store, experiment_name="atlas", name="first")
    restarted(settings, KILLS)
    place, mlflow = LocalStorage(tmp_path / "run"), client(store)
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("atlas").experiment_id])
    assert read_identity(place, "mlflow") == {"run_id": run.info.run_id}
    assert (run.info.run_name, run.info.status) == ("first", "KILLED")
    for metric in ("elbo_train", "elbo_validation", "elbo_train_step", "kl_weight", "cells_per_s"):
        history = mlflow.get_metric_history(run.info.run_id, metric)
        assert [(entry.step, entry.value) for entry in history] == expected(metric)
    assert run.data.params["model.n_latent"] == "10"
    assert run.data.params["data.uri"] == "x|y"


def test_mlflow_shows_a_run_that_goes_on_as_running_and_at_the_end_as_finished(tmp_path: Path, store: str) -> None:
    first = MLflow(None, store, None, "any")
    identity = first.begin({})
    first.close(ended=False)
    service, mlflow = MLflow(identity, store, None, "any"), client(store)
    assert mlflow.get_run(identity["run_id"]).info.status == "KILLED"
    assert service.last_steps() == {"train": 0, "epoch": 0, "validation": 0}
    assert mlflow.get_run(identity["run_id"]).info.status == "RUNNING"
    service.close(ended=True)
    assert mlflow.get_run(identity["run_id"]).info.status == "FINISHED"


def test_mlflow_takes_many_and_long_parameters(store: str) -> None:
    service = MLflow(None, store, None, "any")
    identity = service.begin({f"key{place}": place for place in range(250)} | {"data.genes": ["gene"] * 1000})
    found = client(store).get_run(identity["run_id"]).data.params
    assert len(found) == 251
    assert len(found["data.genes"]) == 500
    assert found["data.genes"].endswith("...")


# --- Weights & Biases


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights & Biases that sends nothing."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def records(folder: Path) -> Iterator[Any]:
    """Read what runs in `folder` would upload: a log in blocks of 32 KiB of parts, each after 7 bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, at, parts = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if (1 << 15) - at % (1 << 15) < 7:
                at += (1 << 15) - at % (1 << 15)
            _, size, part = struct.unpack_from("<IHB", content, at)
            if at + 7 + size > len(content):
                break
            parts += content[at + 7 : at + 7 + size]
            at += 7 + size
            if part in (1, 4):  # whole, or last
                yield Record.FromString(parts)
                parts = b""


def history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records(folder):
        entry = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for metric, value in entry.items():
            found.setdefault(metric, []).append((entry["_step"], value))
    return found


def test_wandb_offline_has_one_run_and_each_line_once_over_restarts(tmp_path: Path, offline: None) -> None:
    restarted(config(tmp_path, "wandb", project="atlas", name="first"), KILLS)
    identity = read_identity(LocalStorage(tmp_path / "run"), "wandb")
    runs = [record.run for record in records(tmp_path / "run") if record.HasField("run")]
    told = [entry.value_json for run in runs for entry in run.config.update if entry.key == "model.n_latent"]
    assert identity is not None
    assert {(run.run_id, run.project) for run in runs} == {(identity["id"], "atlas")}
    assert told == ["10"]
    for metric in ("elbo_train", "elbo_validation", "elbo_train_step", "kl_weight", "cells_per_s"):
        assert history(tmp_path / "run")[metric] == expected(metric)


def test_wandb_offline_sends_again_what_a_kill_kept_from_the_disk(tmp_path: Path, offline: None) -> None:
    rows = [row(step) for step in range(2, 801, 2)]
    settings, place = config(tmp_path, "wandb", dir=str(tmp_path / "there")), LocalStorage(tmp_path / "run")
    log = MetricsLog(place, step=0)
    for each in rows:
        log.write(each)
    first = start_forwarder(settings, place)
    assert first is not None
    first.close(ended=False)
    importlib.import_module("wandb").teardown()  # its process is gone, and no longer writes
    (path,) = (tmp_path / "there").glob("wandb/offline-run-*/*.wandb")
    content = path.read_bytes()
    assert len(content) > 3 << 15
    path.write_bytes(content[: 2 * len(content) // 3])
    time.sleep(1)  # folders are named by the second
    again = start_forwarder(settings, place)
    assert again is not None
    again.close(ended=False)
    assert [step for step, _ in history(tmp_path / "there")["kl_weight"]] == [row["step"] for row in rows]


class Online:
    """Stands for the package with its server: a run has what was logged, and goes on after the last step."""

    def __init__(self) -> None:
        self.history: dict[int, dict[str, float]] = {}
        self.began: list[dict[str, Any]] = []
        self.codes: list[int] = []

    def module(self) -> Any:
        return types.SimpleNamespace(Settings=dict, init=self.init)

    def init(self, **asked: Any) -> Any:
        self.began.append(asked)
        return types.SimpleNamespace(
            offline=False, starting_step=max(self.history, default=-1) + 1, log=self.log, finish=self.finish
        )

    def log(self, values: dict[str, float], *, step: int) -> None:
        assert not set(self.history.get(step, {})) & set(values)
        assert step >= max(self.history, default=0)
        self.history.setdefault(step, {}).update(values)

    def finish(self, *, exit_code: int) -> None:
        self.codes.append(exit_code)


def test_wandb_goes_on_with_the_run_after_the_last_step_that_its_server_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Online()
    monkeypatch.setitem(sys.modules, "wandb", server.module())
    restarted(config(tmp_path, "wandb", entity="lab", group="g", mode="online"), [(0, 4), (1, 6), (2, 4), (5, 7)])
    assert [(step, values["kl_weight"]) for step, values in server.history.items()] == expected("kl_weight")
    assert server.history[4]["elbo_validation"] == 16.5
    assert len({asked["id"] for asked in server.began}) == 1
    assert [asked["resume"] for asked in server.began] == ["allow"] * 4
    assert [(asked["entity"], asked["group"], asked["mode"]) for asked in server.began] == [("lab", "g", "online")] * 4
    assert ["config" in asked for asked in server.began] == [True, False, False, False]
    assert server.codes == [1] * 4


def test_wandb_connects_anew_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Online()
    monkeypatch.setitem(sys.modules, "wandb", server.module())
    service = WeightsAndBiases(None, folder=tmp_path, name="n", project=None, entity=None, group=None, mode=None)
    service.begin({})
    service.send([row(2)])
    monkeypatch.setattr(server, "log", None)
    service._run.log = server.log
    with pytest.raises(TypeError):
        service.send([row(4)])
    assert service.last_steps() == {"train": 2, "epoch": 2, "validation": 2}
    assert len(server.began) == 2
