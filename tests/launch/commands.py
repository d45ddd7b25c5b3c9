"""Commands in processes of their own: followed by the metrics of a run, with all processes that they start."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from dist_scvi.metrics.metrics_file import Row, read_metrics
from dist_scvi.storage.atomic_files import read_folder

T = TypeVar("T")
DIST_SCVI = (sys.executable, "-m", "dist_scvi.launch.cli")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
RAY = (sys.executable, "-m", "ray.scripts.scripts")
_MARK = "DIST_SCVI_TEST_COMMAND"


class Command:
    """A command that runs; what it and its children say goes to a file. Use it through `started`."""

    def __init__(self, log: Path, mark: str, process: subprocess.Popen[bytes]) -> None:
        self._log, self._mark, self._process = log, mark, process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def said(self) -> str:
        return self._log.read_text()

    def reach(self, run: Path, step: int) -> None:
        """Wait until the run has taken this step."""
        until(lambda: last_step(run) >= step or self.ended, f"step {step} of {run}")
        assert not self.ended, f"ended too early: {self.said}"

    def exit_code(self, timeout_s: float = 150) -> int:
        """Wait for the end of the command itself."""
        return self._process.wait(timeout_s)

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Give those of the processes that the command has started, itself included, with this word in their title."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                marked = lives(process) and process.environ().get(_MARK) == self._mark
                if marked and title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def leaves_nothing(self, timeout_s: float = 30) -> None:
        """Wait until none of its processes is there any more."""
        until(lambda: not self.processes(), f"the end of all processes of {self.pid}", timeout_s=timeout_s)


@contextmanager
def started(log: Path, *words: Any, **environment: str) -> Iterator[Command]:
    """Start a command, and end at last all that it has left."""
    mark = uuid.uuid4().hex
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(map(str, words)),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {_MARK: mark, **environment},
        )
    command = Command(log, mark, process)
    try:
        yield command
    finally:
        for left in command.processes():
            with suppress(psutil.Error):
                left.kill()
        process.wait(30)


def lives(process: psutil.Process) -> bool:
    """Say whether a process is there, and more than the name of one that has ended."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until(found: Callable[[], T], what: str, *, timeout_s: float = 150) -> T:
    """Wait until `found` finds something."""
    deadline = time.monotonic() + timeout_s
    while not (result := found()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)
    return result


def last_step(run: Path) -> int:
    return max((row["step"] for row in read_metrics(run)), default=0)


def told(run: Path) -> list[tuple[object, ...]]:
    """Give all that the metrics say of cells and losses."""
    return [
        (row["step"], row["kind"], row["elbo"], row["reconstruction"], row.get("cells_hash"))
        for row in read_metrics(run)
    ]


def same(run: Path, other: Path) -> bool:
    """Say whether two runs took the same steps and left the same weights, bit for bit."""
    return told(run) == told(other) and read_folder(run / "model") == read_folder(other / "model")


def cells_of_steps(rows: list[Row]) -> list[tuple[int, object]]:
    return [(row["step"], row["cells_hash"]) for row in rows if row["kind"] == "train"]
