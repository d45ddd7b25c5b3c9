"""What a run tells of itself: a line of JSON for every few steps, and a line for the person who watches."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import psutil
import torch
from torch import Tensor

from dist_scvi.loaders.minibatch import MiniBatch

from .world import World

Row = dict[str, Any]


class MetricsLog:
    """The metrics of a run, in memory and, given a path, as JSON lines.

    Opened for a run that resumes at `step`, it drops the lines of steps that will be done again.
    """

    def __init__(self, path: Path | None, *, step: int) -> None:
        self.rows: list[Row] = []
        self._path = path
        if path is None:
            return
        if path.exists():
            self.rows = [row for row in read_metrics(path) if row["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        partial.replace(path)

    def write(self, row: Row) -> None:
        """Add a line."""
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")


class Meter:
    """Adds up what happened since the last line of metrics; the sums stay on the device until they are read."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._process = psutil.Process(os.getpid())
        self._sums: Tensor | None = None
        self._steps, self._waited_s, self._began = 0, 0.0, time.perf_counter()

    def timed(self, stream: Iterator[MiniBatch]) -> Iterator[MiniBatch]:
        """Pass `stream` on and time how long it is waited for."""
        while True:
            begin = time.perf_counter()
            minibatch = next(stream, None)
            self._waited_s += time.perf_counter() - begin
            if minibatch is None:
                return
            yield minibatch

    def add(self, sums: Tensor) -> None:
        """Count one step."""
        self._sums = sums.clone() if self._sums is None else self._sums + sums
        self._steps += 1

    def read(self, where: dict[str, Any]) -> Row:
        """Average over the steps counted, over all workers, and begin anew.

        Raises
        ------
        FloatingPointError
            If the loss is not finite: on all workers alike, since all hold the same sums.
        """
        assert self._sums is not None
        reconstruction, kl, cells, row_hash = self._sums.tolist()
        if not np.isfinite(reconstruction + kl):
            raise FloatingPointError(
                f"the loss became {reconstruction / cells} + {kl / cells} at step {where['step']}: lower train.lr, "
                f"or look for "
                "extreme counts with 'dist-scvi inspect'; the checkpoints before this step are kept"
            )
        elapsed_s = time.perf_counter() - self._began
        worst = self._world.maximum(
            torch.tensor(
                [self._waited_s / elapsed_s, self._process.memory_info().rss / 2**20],
                dtype=torch.float64,
                device=self._sums.device,
            )
        ).tolist()
        row = {
            "elbo": (reconstruction + kl) / cells,
            "reconstruction": reconstruction / cells,
            "kl": kl / cells,
            "cells": int(cells),
            "cells_hash": int(row_hash),
            "cells_per_s": cells / elapsed_s,
            "steps_per_s": self._steps / elapsed_s,
            "wait_share": worst[0],
            "memory_mib": worst[1],
        }
        self._sums = None
        self._steps, self._waited_s, self._began = 0, 0.0, time.perf_counter()
        return row


def read_metrics(path: Path) -> list[Row]:
    """Read JSON lines up to the first that is none of ours, such as a last one cut off by a kill."""
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or not isinstance(row.get("kind"), str):
            break
        rows.append(row)
    return rows


class Progress:
    """A live line on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr  # of now, not of the import: notebooks and tests put another in its place
        self._live = self._stream.isatty()
        self._open = False

    def __call__(self, row: Row) -> None:
        """Show one line of metrics."""
        text = describe(row)
        if self._live and row["kind"] == "train":
            self._stream.write(f"\r\x1b[K{text}")
            self._open = True
        elif self._live or row["kind"] != "train" or row["step"] % row["steps_per_epoch"] == 0:
            self._stream.write(("\r\x1b[K" if self._open else "") + text + "\n")
            self._open = False
        self._stream.flush()

    def close(self) -> None:
        """End a live line."""
        if self._open:
            self._stream.write("\n")
            self._open = False


def describe(row: Row) -> str:
    """Say a line of metrics in words."""
    done, total = row["step"], row["steps_per_epoch"] * row["max_epochs"]
    head = f"epoch {row['epoch'] + 1}/{row['max_epochs']}  step {done}/{total}"
    parts = f"elbo {row['elbo']:.2f} = reconstruction {row['reconstruction']:.2f} + kl {row['kl']:.2f}"
    if row["kind"] == "validation":
        return f"{head}  validation  {parts}"
    left = (total - done) / max(row["steps_per_s"], 1e-9)
    return (
        f"{head}  {parts}  {row['cells_per_s']:.0f} cells/s  waiting {100 * row['wait_share']:.0f}%  "
        f"{row['memory_mib']:.0f} MiB  {left / 60:.1f} min left"
    )
