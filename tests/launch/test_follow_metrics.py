"""A run is watched through its metrics file, also while it is restarted."""

import io
import json
import time
from pathlib import Path

from dist_scvi.launch.follow_metrics import show_progress
from dist_scvi.metrics.metrics_file import METRICS, MetricsLog, Row
from dist_scvi.metrics.reporter import MetricsReporter
from dist_scvi.storage.run_storage import LocalStorage


def row(step: int, kind: str = "train") -> Row:
    told = {"kind": kind, "step": step, "epoch": step - 1, "steps_per_epoch": 1, "max_epochs": 9, "elbo": 3.0}
    rates = {
        "kl_weight": 1.0,
        "lr": 0.1,
        "loss": 3.0,
        "cells_per_s": 9.0,
        "steps_per_s": 9.0,
        "wait_share": 0.0,
        "memory_mib": 9.0,
    }
    return told | {"reconstruction": 2.0, "kl": 1.0} | rates


def shown(stream: io.StringIO) -> list[str]:
    return [line.split("  ")[1] for line in stream.getvalue().splitlines()]


def test_lines_written_before_are_not_shown_and_those_after_are_once(tmp_path: Path) -> None:
    place, stream = LocalStorage(tmp_path), io.StringIO()
    log = MetricsLog(place, step=0)
    log.write(row(1))
    with show_progress(place, MetricsReporter(stream)):
        log.write(row(2))
        log.write(row(2, "validation"))
    assert shown(stream) == ["step 2/9", "step 2/9"]


def test_steps_done_again_after_a_restart_are_not_shown_again(tmp_path: Path) -> None:
    place, stream = LocalStorage(tmp_path), io.StringIO()
    with show_progress(place, MetricsReporter(stream)):
        log = MetricsLog(place, step=0)
        for step in (1, 2, 3):
            log.write(row(step))
        deadline = time.monotonic() + 20
        while len(shown(stream)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        restarted = MetricsLog(place, step=1)
        for step in (2, 3, 4):
            restarted.write(row(step))
    assert shown(stream) == ["step 1/9", "step 2/9", "step 3/9", "step 4/9"]


def test_a_line_that_is_still_being_written_is_left_for_later(tmp_path: Path) -> None:
    path, place, stream = tmp_path / METRICS, LocalStorage(tmp_path), io.StringIO()
    text = json.dumps(row(1)) + "\n"
    with show_progress(place, MetricsReporter(stream)):
        path.write_text(text[:20])
        time.sleep(0.7)
        with path.open("a") as file:
            file.write(text[20:])
    assert shown(stream) == ["step 1/9"]
