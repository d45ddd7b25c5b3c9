"""Metrics: each step told once, also across restarts, and one line for the person who watches."""

import io
import json
from pathlib import Path

import pytest

from dist_scvi.metrics import MetricsLog, Progress, Row, describe, read_metrics


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
    log = MetricsLog(tmp_path / "metrics.jsonl", step=0)
    for step in (2, 4, 6):
        log.write(row(step))
    return tmp_path / "metrics.jsonl"


def test_what_is_written_reads_back(path: Path) -> None:
    assert read_metrics(path) == [row(2), row(4), row(6)]


def test_without_a_path_rows_are_kept_in_memory() -> None:
    log = MetricsLog(None, step=0)
    log.write(row(2))
    assert log.rows == [row(2)]


def test_a_resumed_run_drops_the_steps_it_does_again_and_keeps_the_others(path: Path) -> None:
    log = MetricsLog(path, step=4)
    assert log.rows == [row(2), row(4)]
    log.write(row(5))
    assert read_metrics(path) == log.rows == [row(2), row(4), row(5)]
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_off_by_a_kill_is_left_out(path: Path, cut: int) -> None:
    path.write_text(path.read_text().rstrip("\n")[:-cut])
    assert read_metrics(path) == [row(2), row(4)]
    MetricsLog(path, step=6).write(row(6))
    assert read_metrics(path) == [row(2), row(4), row(6)]


def test_progress_on_a_terminal_is_one_live_line() -> None:
    stream = Terminal()
    show = Progress(stream)
    for step in (1, 2, 3):
        show(row(step))
    assert stream.getvalue().count("\r\x1b[K") == 3
    assert "\n" not in stream.getvalue()
    show(row(4, "validation"))
    show(row(5))
    show.close()
    show.close()
    assert stream.getvalue().count("\n") == 2
    assert stream.getvalue().endswith(f"{describe(row(5))}\n")


def test_progress_elsewhere_is_a_plain_line_for_each_epoch_and_validation() -> None:
    stream = io.StringIO()
    show = Progress(stream)
    for step in range(1, 9):
        show(row(step))
    show(row(8, "validation"))
    show.close()
    assert stream.getvalue().splitlines() == [describe(row(4)), describe(row(8)), describe(row(8, "validation"))]
    assert "\x1b" not in stream.getvalue()


def test_a_line_says_where_the_run_is_and_how_it_goes() -> None:
    assert describe(row(6)) == (
        "epoch 2/3  step 6/12  elbo 12.50 = reconstruction 10.00 + kl 2.50  640 cells/s  waiting 25%  300 MiB  "
        "0.0 min left"
    )
    assert describe(row(8, "validation")).startswith("epoch 2/3  step 8/12  validation  elbo 12.50")


@pytest.mark.parametrize("line", ["[]", "3", '{"step": 2}', '{"kind": "train", "step": "2"}', "[" * 100_000])
def test_lines_from_the_first_that_is_none_of_ours_are_left_out(path: Path, line: str) -> None:
    good = json.dumps({"kind": "train", "step": 1})
    path.write_text(f"{good}\n{line}\n{good}\n")
    assert [row["step"] for row in read_metrics(path)] == [1]
