"""Progress: a bar no wider than the terminal, a line a minute in a file, and a word while nothing else is said."""

import io
import time

import pytest

from dist_scvi import progress_reporter
from dist_scvi.progress_reporter import ProgressReporter, StatusLine, duration, report_waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress_reporter.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_an_estimate_of_long_work_at_once_and_then_a_line_a_minute(clock: list[float]) -> None:
    stream = io.StringIO()
    show = ProgressReporter("packed", stream=stream)
    for done in range(1000, 10_001, 1000):  # the first thousand was done by an earlier start
        show(done, 1_000_000)
        clock[0] += 20
    assert stream.getvalue().splitlines() == [
        "packed 2,000 of 1,000,000 cells, 50 cells/s, 5 h 33 min left",
        "packed 5,000 of 1,000,000 cells, 50 cells/s, 5 h 32 min left",
        "packed 8,000 of 1,000,000 cells, 50 cells/s, 5 h 31 min left",
    ]


def test_what_takes_less_than_a_minute_writes_nothing_into_a_file(clock: list[float]) -> None:
    stream = io.StringIO()
    show = ProgressReporter("packed", stream=stream)
    for done in range(0, 51, 10):
        show(done, 50)
        clock[0] += 10
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_that_ends_with_the_work() -> None:
    stream = Terminal()
    show = ProgressReporter("packed", stream=stream)
    show(50, 200)
    show(200, 200)
    assert "packed" in stream.getvalue()
    assert "200/200" in stream.getvalue()
    assert stream.getvalue().endswith("\n")


def test_a_line_on_a_terminal_is_never_wider_than_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    line = StatusLine(stream)
    line.show("x" * 200)
    line.close()
    assert 0 < max(len(part) for part in stream.getvalue().split("\r")) <= 40


def test_waiting_is_reported_until_there_is_nothing_to_wait_for() -> None:
    stream, states = io.StringIO(), iter(["starting: 0 of 2", "starting: 1 of 2", ""])
    with report_waiting(lambda: next(states), stream, every_s=0.01):
        time.sleep(0.2)
    assert stream.getvalue() == "starting: 0 of 2 (0 s)\n"  # the second came within the minute


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (3599, "1 h 00 min"), (93_600, "26 h 00 min")]
)
def test_durations_are_in_hours_and_minutes(seconds: float, text: str) -> None:
    assert duration(seconds) == text
