"""Metrics: each step told once, also across restarts, and one line for the person who watches."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.network.vae import VAE
from dist_scvi.storage.run_storage import LocalStorage
from dist_scvi.training.metrics import (
    METRICS,
    Meter,
    MetricsLog,
    MetricsReporter,
    Row,
    describe,
    history_of,
    read_metrics,
)
from dist_scvi.training.step import Step
from dist_scvi.world import World


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def row(step: int, kind: str = "train") -> Row:
    losses = {"elbo": 12.5, "reconstruction": 10.0, "kl": 2.5}
    speed = {"cells_per_s": 640.0, "steps_per_s": 10.0, "wait_share": 0.25, "memory_mib": 300.0}
    where = {"epoch": (step - 1) // 4, "step": step, "steps_per_epoch": 4, "max_epochs": 3}
    return {"kind": kind, **where, **losses, **(speed if kind == "train" else {})}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The metrics of a run that came to step 6."""
    log = MetricsLog(LocalStorage(tmp_path), step=0)
    for step in (2, 4, 6):
        log.write(row(step))
    return tmp_path / METRICS


def test_what_is_written_reads_back(path: Path) -> None:
    assert read_metrics(path.parent) == [row(2), row(4), row(6)]


def test_without_a_path_rows_are_kept_in_memory() -> None:
    log = MetricsLog(None, step=0)
    log.write(row(2))
    assert log.rows == [row(2)]


def test_a_resumed_run_drops_the_steps_it_does_again_and_keeps_the_others(path: Path) -> None:
    log = MetricsLog(LocalStorage(path.parent), step=4)
    assert log.rows == [row(2), row(4)]
    log.write(row(5))
    assert read_metrics(path.parent) == log.rows == [row(2), row(4), row(5)]
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_off_by_a_kill_is_left_out(path: Path, cut: int) -> None:
    path.write_text(path.read_text().rstrip("\n")[:-cut])
    assert read_metrics(path.parent) == [row(2), row(4)]
    MetricsLog(LocalStorage(path.parent), step=6).write(row(6))
    assert read_metrics(path.parent) == [row(2), row(4), row(6)]


def test_on_a_terminal_one_line_is_replaced_and_validations_stay() -> None:
    stream = Terminal()
    show = MetricsReporter(stream)
    for step in (1, 2, 3):
        show(row(step))
    assert "\n" not in stream.getvalue()
    show(row(4, "validation"))
    show(row(5))
    show.close()
    show.close()
    assert stream.getvalue().count("\n") == 1
    assert f"{describe(row(4, 'validation'))}\n" in stream.getvalue()


def test_elsewhere_there_is_a_line_for_each_epoch_and_validation_and_one_in_a_minute() -> None:
    stream = io.StringIO()
    show = MetricsReporter(stream)
    for step in range(1, 9):
        show(row(step))
    show(row(8, "validation"))
    show.close()
    shown = [describe(row(step)) for step in (1, 4, 8)]
    assert stream.getvalue().splitlines() == [*shown, describe(row(8, "validation"))]
    assert "\x1b" not in stream.getvalue()


def test_a_line_says_where_the_run_is_and_how_it_goes() -> None:
    assert describe(row(6)) == (
        "epoch 2/3  step 6/12  elbo 12.50  640 cells/s  1 s left  reconstruction 10.00 + kl 2.50  "
        "data wait 25%  300 MiB"
    )
    assert describe(row(8, "validation")).startswith("epoch 2/3  step 8/12  validation elbo 12.50")


@pytest.mark.parametrize("line", ["[]", "3", '{"step": 2}', '{"kind": "train", "step": "2"}', "[" * 100_000])
def test_lines_from_the_first_that_is_none_of_ours_are_left_out(path: Path, line: str) -> None:
    good = json.dumps({"kind": "train", "step": 1})
    path.write_text(f"{good}\n{line}\n{good}\n")
    assert [row["step"] for row in read_metrics(path.parent)] == [1]


def step_of(number: int, loss_n: list[float]) -> Step:
    """Step `number` of epochs of 4, whose losses are half reconstruction and half kl."""
    loss = torch.tensor(loss_n, dtype=torch.float64)
    sums = torch.stack([loss.sum(), loss.sum() / 2, loss.sum() / 2, torch.tensor(float(len(loss))), torch.tensor(7.0)])
    return Step(number // 4, number % 4, sums, np.arange(100, 100 + len(loss_n)), loss, torch.zeros(2))


def meter_of() -> Meter:
    return Meter(World(), VAE(3, config=ModelConfig()), 50.0)


def test_a_line_is_the_mean_over_the_cells_of_its_steps_and_an_epoch_that_of_all_its_lines() -> None:
    meter = meter_of()
    for number, losses in enumerate([[1, 2, 3], [4], [5, 5]]):
        meter.add(step_of(number, losses))
        if number:
            meter.read(0)
    assert meter.read_epoch() | {"cells_hash": 0} == {
        "loss": 20 / 6,
        "elbo": 20 / 6,
        "reconstruction": 10 / 6,
        "kl": 10 / 6,
        "cells": 6,
        "cells_hash": 0,
    }
    meter.add(step_of(4, [8, 9]))
    line = meter.read(0)
    assert (line["loss"], line["cells"], line["cells_hash"]) == (8.5, 2, 7)
    assert line.keys() >= {"cells_per_s", "steps_per_s", "wait_share", "memory_mib"}
    assert meter.read_epoch()["loss"] == 8.5


def test_an_epoch_begun_before_a_restart_is_counted_whole() -> None:
    whole, first, second = (meter_of() for _ in range(3))
    for number, losses in enumerate([[1, 2, 3], [4.5], [5, 1 / 3]]):
        for meter in (whole, first if number < 2 else second):
            meter.add(step_of(number, losses))
            meter.read(0)
            if meter is first:
                second.state = json.loads(json.dumps(first.state))
    assert second.read_epoch() == whole.read_epoch()


def test_a_loss_that_is_not_finite_names_epoch_step_and_cells() -> None:
    meter = meter_of()
    for number, losses in enumerate([[1, 2], [3, float("nan"), 4, float("inf")], [float("nan")]]):
        meter.add(step_of(4 + number, losses))
    with pytest.raises(
        FloatingPointError, match=r"became nan in step 2 of epoch 2, at 2 of 4 cells \(rows 101, 103\): lo"
    ):
        meter.read(0)


def test_no_more_than_ten_cells_are_named_and_weights_blamed_if_it_is_all_of_them() -> None:
    meter = meter_of()
    meter.add(step_of(0, [float("inf")] * 12))
    rows = ", ".join(map(str, range(100, 110)))
    with pytest.raises(
        FloatingPointError, match=rf"became inf .* at 12 of 12 cells \(rows {rows}, \.\.\.\), since the"
    ):
        meter.read(0)


def test_the_history_has_the_names_and_indices_of_scvi_tools() -> None:
    rows: list[Row] = []
    scores = {"classification_loss": 0.5, "accuracy": 0.75, "f1_score": 0.75, "calibration_error": 0.125}
    for epoch in range(2):
        last, more = 4 * epoch + 4, {"lr": 0.1, "loss": 11.0 + epoch}
        rows += [row(step) | {"kl_weight": step / 8, **more} for step in (last - 2, last)]
        rows += [row(last, kind) | more | scores for kind in ("epoch", "validation")]
    history = history_of(rows)
    both = ("elbo", "reconstruction_loss", "kl_local", "kl_global")
    expected = {f"{name}_{split}" for name in both for split in ("train", "validation")} | {"kl_weight", "lr"}
    expected |= {f"{split}_{name}" for name in ("loss", *scores) for split in ("train", "validation")}
    assert set(history) == expected
    for name, table in history.items():
        assert list(table.columns) == [name]
        assert (table.index.name, len(table)) == (("step", 4) if name == "kl_weight" else ("epoch", 2))
    assert history["train_loss"]["train_loss"].to_dict() == {0: 11.0, 1: 12.0}
    assert history["elbo_validation"]["elbo_validation"].to_dict() == {0: 12.5, 1: 12.5}
    assert history["kl_weight"]["kl_weight"].to_dict() == {1: 0.25, 3: 0.5, 5: 0.75, 7: 1.0}
    assert history["kl_global_train"]["kl_global_train"].sum() == 0
    assert history_of([]) == {}


def test_the_line_of_a_validation_tells_accuracy_and_the_end() -> None:
    text = describe(row(8, "validation") | {"accuracy": 0.875, "ends": True})
    assert text.endswith("+ kl 2.50  accuracy 0.875; no longer improving: training stops")
    assert describe(row(8, "validation") | {"ends": False}).endswith("+ kl 2.50")


def test_lines_of_whole_epochs_are_not_shown() -> None:
    stream = io.StringIO()
    MetricsReporter(stream)(row(4, "epoch"))
    assert stream.getvalue() == ""
