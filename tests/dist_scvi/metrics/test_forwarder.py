"""Forwarding metrics: a run keeps its name over restarts, each line arrives once, and no service ends or delays it."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dist_scvi.config.schema import RunConfig
from dist_scvi.metrics import forwarder
from dist_scvi.metrics.forwarder import MetricsForwarder, read_identity, start_forwarder, write_identity
from dist_scvi.metrics.metrics_file import MetricsLog, MetricsReader, Row
from dist_scvi.metrics.services import Identity
from dist_scvi.storage.run_storage import LocalStorage

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def row(step: int, kind: str = "train") -> Row:
    losses = {"loss": 13.0, "elbo": 12.5, "reconstruction": 10.0, "kl": 2.5, "lr": 1e-3}
    speed = {"cells_per_s": 640.0, "steps_per_s": 10.0, "kl_weight": 0.5}
    return {"kind": kind, "step": step, "epoch": 0, "steps_per_epoch": 4, "max_epochs": 3, **losses, **speed}


def forward(folder: Path, service: "Remembering", rows: Sequence[Row], **options: float) -> MetricsForwarder:
    """Forward the metrics of a run in `folder` while `rows` are added."""
    folder.mkdir(exist_ok=True)
    log = MetricsLog(LocalStorage(folder), step=0)
    started = MetricsForwarder(service, "any", MetricsReader(LocalStorage(folder)), **{"poll_s": 0.01, **options})
    for each in rows:
        log.write(each)
    return started


def config(tmp_path: Path, logger: str | None = "tensorboard", **options: str) -> RunConfig:
    return RunConfig.model_validate(
        {"run": str(tmp_path / "run"), "data": {"uri": "x"}, "logger": logger, "logger_options": options}
    )


class Remembering:
    """A service that has what it is sent; `failures` calls of `send` fail, after having taken the first line."""

    def __init__(self, failures: int = 0) -> None:
        self.rows: list[Row] = []
        self.begun: list[Mapping[str, Any]] = []
        self.ended: list[bool] = []
        self.failures = failures

    def begin(self, parameters: Mapping[str, Any]) -> Identity:
        self.begun.append(parameters)
        return {"id": "one"}

    def last_steps(self) -> dict[str, int]:
        return {kind: max(row["step"] for row in self.rows if row["kind"] == kind) for kind in self.kinds()}

    def kinds(self) -> set[str]:
        return {row["kind"] for row in self.rows}

    def send(self, rows: Sequence[Row]) -> None:
        if self.failures:
            self.failures -= 1
            self.rows.append(rows[0])
            raise ConnectionError("the server is gone")
        self.rows += rows

    def close(self, *, ended: bool) -> None:
        self.ended.append(ended)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Remembering:
    """The service that `start_forwarder` finds."""
    service = Remembering()
    monkeypatch.setattr(forwarder, "_service", lambda config, identity: service)
    return service


def test_without_the_key_nothing_is_forwarded(tmp_path: Path) -> None:
    assert start_forwarder(config(tmp_path, None), LocalStorage(tmp_path)) is None


def test_lines_arrive_in_order_and_close_waits_for_them(tmp_path: Path) -> None:
    service, rows = Remembering(), [row(step) for step in range(1, 301)]
    forward(tmp_path, service, rows).close(ended=False)
    assert service.rows == rows
    assert service.ended == [False]


def test_what_the_service_has_is_not_sent_again_kind_by_kind(tmp_path: Path) -> None:
    service = Remembering()
    service.rows = [row(8), row(10), row(10, "epoch")]
    again = [row(8), row(10), row(10, "epoch"), row(10, "validation"), row(12)]
    forward(tmp_path, service, [*again, *again]).close()
    assert service.rows == [row(8), row(10), row(10, "epoch"), row(10, "validation"), row(12)]


def test_a_service_that_fails_is_reported_once_tried_again_and_misses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service, rows = Remembering(failures=3), [row(step) for step in range(1, 11)]
    forwarding = forward(tmp_path, service, rows, retry_s=0.01)
    deadline = time.monotonic() + 30
    while len(service.rows) < len(rows) and time.monotonic() < deadline:
        time.sleep(0.01)
    forwarding.close()
    assert service.rows == rows
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the server is gone" in caplog.text
    assert "training goes on" in caplog.text


def test_a_service_that_stays_away_does_not_keep_the_run_from_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forward(tmp_path, Remembering(failures=10**9), [row(1), row(2)], retry_s=60).close()
    assert "did not take the last metrics" in caplog.text


def test_a_service_that_never_answers_delays_neither_steps_nor_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = threading.Event()

    class Silent(Remembering):
        def last_steps(self) -> dict[str, int]:
            answers.wait(60)
            return {}

    forwarding = forward(tmp_path, Silent(), [row(step) for step in range(1, 1001)], close_s=0.1)
    forwarding.close()
    assert not answers.is_set()
    assert "did not take the last metrics" in caplog.text
    answers.set()
    forwarding._thread.join(60)


def test_parameters_are_sent_at_the_first_start_only_and_lines_of_every_start(
    tmp_path: Path, service: Remembering
) -> None:
    place = LocalStorage(tmp_path / "run")
    MetricsLog(place, step=0).write(row(1))  # of a start without logger
    for resumed_at, added in (2, [row(2), row(4), row(6)]), (4, [row(6), row(8)]):
        log = MetricsLog(place, step=resumed_at)
        forwarding = start_forwarder(config(tmp_path), place)
        assert forwarding is not None
        for each in added:
            log.write(each)
        forwarding.close()
    assert service.rows == [row(1), row(2), row(4), row(6), row(8)]
    assert len(service.begun) == 1
    assert service.begun[0]["model.n_latent"] == 10
    assert service.begun[0]["train.max_kl_weight"] == 1.0
    assert read_identity(place, "tensorboard") == {"id": "one"}


def test_a_service_that_takes_no_new_run_is_refused_and_nothing_is_kept(
    tmp_path: Path, service: Remembering, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(parameters: Mapping[str, Any]) -> Identity:
        raise ConnectionError("no route")

    monkeypatch.setattr(service, "begin", begin)
    place = LocalStorage(tmp_path / "run")
    with pytest.raises(ValueError, match="logger=tensorboard cannot be opened: no route"):
        start_forwarder(config(tmp_path), place)
    assert read_identity(place, "tensorboard") is None


def test_names_in_several_services_are_kept_side_by_side(tmp_path: Path) -> None:
    place = LocalStorage(tmp_path)
    write_identity(place, "mlflow", {"run_id": "a"})
    write_identity(place, "wandb", {"id": "b"})
    assert read_identity(place, "mlflow") == {"run_id": "a"}
    assert read_identity(place, "wandb") == {"id": "b"}
    assert read_identity(place, "tensorboard") is None


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"mlflow": 3}', b"\xff"])
def test_a_damaged_record_of_names_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "logger.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"logger\.json.*remove it"):
        read_identity(LocalStorage(tmp_path), "mlflow")


@pytest.mark.parametrize(
    ("logger", "options", "message"),
    [
        ("mlflow", {"experiment": "x"}, r"logger_options\.experiment is not known.* has experiment_name"),
        ("tensorboard", {"zzz": "x"}, r"logger_options\.zzz is not known.* has dir"),
        ("tensorboard", {"project": "x"}, r"logger_options\.project"),
        (None, {"dir": "x"}, r"logger_options\.dir is not known: set logger"),
        ("tensorboard", {"dir": "s3://bucket/x"}, r"dir=s3://bucket/x is a URL"),
        ("mlflow", {"tracking_uri": "https://me:hidden@host"}, r"holds a password"),
        ("wandb", {"mode": "on"}, r"mode=on is not known: online or offline"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, logger: str | None, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        forwarder.check_logger_options(config(tmp_path, logger, **options))
    assert "hidden" not in str(refused.value)


def test_tensorboard_needs_a_folder_on_a_disk_for_a_run_in_object_storage(tmp_path: Path) -> None:
    remote = config(tmp_path).model_copy(update={"run": "s3://bucket/run"})
    with pytest.raises(ValueError, match=r"s3://bucket/run is a URL.*logger_options\.dir"):
        start_forwarder(remote, LocalStorage(tmp_path))


@pytest.mark.parametrize("kind", PACKAGES)
def test_an_absent_package_is_refused_with_what_to_install(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGES[kind]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    with pytest.raises(ValueError, match=rf"pip install 'dist-scvi\[{kind}\]'"):
        start_forwarder(config(tmp_path, kind), LocalStorage(tmp_path))
    assert not (tmp_path / "logger.json").exists()


def test_mlflow_without_a_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"logger_options\.tracking_uri or MLFLOW_TRACKING_URI"):
        start_forwarder(config(tmp_path, "mlflow"), LocalStorage(tmp_path))


def test_a_server_that_is_gone_at_a_restart_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    place = LocalStorage(tmp_path / "run")
    gone = config(tmp_path, "mlflow", tracking_uri="http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"logger=mlflow cannot be opened"):
        start_forwarder(gone, place)
    write_identity(place, "mlflow", {"run_id": "a"})
    with caplog.at_level(logging.WARNING, logger="dist_scvi"):
        MetricsLog(place, step=0).write(row(2))
        forwarding = start_forwarder(gone, place)
        assert forwarding is not None
        forwarding.close()
    ours = [record.message for record in caplog.records if record.name == "dist_scvi.metrics.forwarder"]
    assert len(ours) == 2
    assert "logger=mlflow failed" in ours[0]


def test_importing_it_brings_in_no_package_of_a_logger() -> None:
    names = json.dumps(list(PACKAGES.values()))
    script = f"import sys, dist_scvi.metrics.forwarder; sys.exit(any(name in sys.modules for name in {names}))"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
