"""Report how far a task is: a bar on a terminal and in a notebook, lines in a file."""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm.auto import tqdm

LINE_S = 60.0
"""Without a terminal a line is written at least this often, so that a log of a job shows that it is alive."""
_FIRST_S = 5.0
"""Time after which the first estimate is written, if more than `LINE_S` is left."""


class ProgressReporter:
    """Show a count that grows: call it with what is done and the total.

    Parameters
    ----------
    verb
        What is done to the units, as in "packed 10 of 20 cells".
    unit
        What is counted.
    stream
        Where to write; standard error by default.
    """

    def __init__(self, verb: str, unit: str = "cells", *, stream: TextIO | None = None) -> None:
        self._verb, self._unit = verb, unit
        self._stream = stream or sys.stderr  # that of now: notebooks and tests replace the one of the import
        self._bar: Any = None
        self._first: tuple[int, float] | None = None
        self._line_s, self._announced = time.monotonic(), False

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        if is_live(self._stream):
            self._show_bar(done, total)
            return
        now = time.monotonic()
        first, began = self._first = self._first or (done, now)  # work of an earlier start says nothing of the speed
        speed = (done - first) / max(now - began, 1e-9)
        # A long task is announced as soon as its speed is known, so that nobody waits a minute to learn of an hour.
        long = not self._announced and now - began >= _FIRST_S and (total - done) > speed * LINE_S
        if now - self._line_s < LINE_S and not long:
            return
        self._line_s, self._announced = now, True
        left = f", {speed:,.0f} {self._unit}/s, {duration((total - done) / speed)} left" if speed else ""
        write_line(f"{self._verb} {done:,} of {total:,} {self._unit}{left}", self._stream)

    def _show_bar(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(
                desc=self._verb,
                total=total,
                initial=done,
                unit=f" {self._unit}",
                unit_scale=True,
                dynamic_ncols=True,  # of a terminal that is resized meanwhile, too
                file=self._stream,
            )
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()
            self._bar = None


class StatusLine:
    """One line that is replaced on a terminal, never wider than it; elsewhere lines, one a minute."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._line_s = -LINE_S

    def show(self, text: str, *, keep: bool = False) -> None:
        """Replace the line by `text`; with `keep`, leave `text` behind for good."""
        if not is_live(self._stream):
            if keep or time.monotonic() - self._line_s >= LINE_S:
                self._line_s = time.monotonic()
                write_line(text, self._stream)
            return
        if keep:
            self.close()
            write_line(text, self._stream)
            return
        if self._bar is None:
            self._bar = tqdm(bar_format="{desc}", leave=False, file=self._stream)
        # what is wider than the terminal would wrap, and each replacement would leave a line behind
        self._bar.set_description_str(text[: shutil.get_terminal_size().columns - 1])

    def close(self) -> None:
        """Clear the line that would be replaced."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def report_waiting(text: Callable[[], str], stream: TextIO | None = None, *, every_s: float = 1.0) -> Iterator[None]:
    """Show what `text` returns, and for how long, while the block waits for something that reports nothing itself."""
    line, ended, began = StatusLine(stream), threading.Event(), time.monotonic()

    def show() -> None:
        while True:
            found = text()
            if not found:
                break  # there is nothing left to wait for, though the block goes on
            line.show(f"{found} ({duration(time.monotonic() - began)})")
            if ended.wait(every_s):
                break
        line.close()

    thread = threading.Thread(target=show, name="report-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5.0)


def duration(seconds: float) -> str:
    """Format a time to wait: ``12 s``, ``3 min``, ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def is_live(stream: TextIO) -> bool:
    """Return whether what is written to `stream` can be replaced: a terminal or a notebook."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")


def write_line(text: str, stream: TextIO) -> None:
    """Write a line, above a bar if there is one."""
    tqdm.write(text, file=stream)
    stream.flush()
