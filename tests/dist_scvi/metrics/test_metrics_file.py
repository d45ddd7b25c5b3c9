"""Metrics: each step logged once, also across restarts; damage costs the damaged lines alone."""

import io
import json
from pathlib import Path

import pytest

from dist_scvi.metrics.history import history_of
from dist_scvi.metrics.metrics_file import METRICS, MetricsLog, MetricsReader, Row, read_metrics
from dist_scvi.metrics.reporter import MetricsReporter, describe
from dist_scvi.storage.run_storage import LocalStorage


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


def damaged_lines(path: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Return what is reported of the metrics in `path`."""
    caplog.clear()
    read_metrics(path.parent)
    return caplog.text


@pytest.mark.parametrize("line", [b"[]", b"3", b'{"step": 2}', b"[" * 100_000, b"x" * 70_000, b"\xff\xfe", b""])
def test_a_line_that_is_damaged_is_reported_and_skipped(
    path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line, *lines[1:], b""]))
    assert read_metrics(path.parent) == [row(2), row(4), row(6)]
    assert f"{path}: damaged lines are skipped (line 2)" in damaged_lines(path, caplog)
    log = MetricsLog(LocalStorage(path.parent), step=4)
    assert log.rows == [row(2), row(4)]
    assert damaged_lines(path, caplog) == ""


def test_every_flipped_byte_costs_its_line_or_changes_nothing(path: Path) -> None:
    good, first = path.read_bytes(), path.read_bytes().index(b"\n")
    for at in range(first):
        content = bytearray(good)
        content[at] ^= 2
        path.write_bytes(content)
        found = read_metrics(path.parent, report=False)
        without_checksum = [{key: value for key, value in line.items() if key[:3] != "crc"} for line in found]
        assert without_checksum in ([row(2), row(4), row(6)], [row(4), row(6)]), bytes(content[:first])


def test_lines_of_earlier_versions_have_no_checksum_and_must_be_complete(path: Path) -> None:
    old = row(2) | {"kl_weight": 1.0, "lr": 0.1, "loss": 12.5}
    for line, whole in ((old, True), (old | {"step": "2"}, False), (old | {"elbo": "x"}, False), (row(2), False)):
        path.write_text(json.dumps(line) + "\n")
        assert read_metrics(path.parent) == ([line] if whole else [])


def test_a_reader_returns_each_line_once_and_those_of_a_file_written_again_once_more(path: Path) -> None:
    reader, log = MetricsReader(LocalStorage(path.parent)), MetricsLog(LocalStorage(path.parent), step=4)
    assert reader.read() == [row(2), row(4)]
    log.write(row(6))
    with path.open("a") as file:
        file.write('{"kind": "train", "st')  # being written just now
    assert reader.read() == [row(6)]
    assert reader.read() == []
    MetricsLog(LocalStorage(path.parent), step=2)
    assert reader.read() == [row(2)]
    assert MetricsReader(LocalStorage(path.parent / "none")).read() == []


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
