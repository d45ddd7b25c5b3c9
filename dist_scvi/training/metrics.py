"""What a run tells of itself: lines of JSON, a line for the person who watches, and its history in tables."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import pandas as pd
import psutil
import torch
from numpy.typing import NDArray

from dist_scvi.errors import WeightsDifferError
from dist_scvi.network.vae import VAE
from dist_scvi.progress_reporter import StatusLine, duration
from dist_scvi.storage.atomic_files import add_path_to_errors
from dist_scvi.storage.run_storage import LocalStorage, RunStorage, open_run_storage
from dist_scvi.training.losses import loss_means
from dist_scvi.training.step import Step
from dist_scvi.world import World

T = TypeVar("T")
Row = dict[str, Any]
"""A line of metrics. Its ``kind`` is train (some steps), epoch (all steps of one) or validation."""

METRICS = "metrics.jsonl"
_ROWS_NAMED = 10
_HISTORY = {
    "loss": "{}_loss",
    "elbo": "elbo_{}",
    "reconstruction": "reconstruction_loss_{}",
    "kl": "kl_local_{}",
    **{
        key: f"{{}}_{key}"
        for key in ("classification_loss", "accuracy", "f1_score", "f1_score_macro", "calibration_error")
    },
}
"""Names of scvi-tools, as far as it has them."""


class MetricsLog:
    """The metrics of a run, in memory and, given its folder, as JSON lines.

    Opened for a run that resumes at `step`, it drops the lines of steps that will be done again; ``known_step`` is the
    last one there was a line of. Object storage, to which nothing can be added, gets all lines with each `sync`.
    """

    def __init__(self, place: RunStorage | None, *, step: int) -> None:
        self.rows: list[Row] = []
        self.known_step = 0
        self._place, self._path = place, None
        if place is None:
            return
        found = read_metrics(place)
        self.known_step = max((row["step"] for row in found), default=0)
        self.rows = [row for row in found if row["step"] <= step]
        place.write(METRICS, self._packed())
        if isinstance(place, LocalStorage):
            self._path = Path(place.uri) / METRICS

    def write(self, row: Row) -> None:
        """Add a line."""
        self.rows.append(row)
        if self._path is not None:
            with add_path_to_errors(self._path), self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Make sure that all lines are in storage."""
        if self._path is not None:
            with add_path_to_errors(self._path), self._path.open("rb") as file:
                os.fsync(file.fileno())
        elif self._place is not None:
            self._place.write(METRICS, self._packed())

    def _packed(self) -> bytes:
        return "".join(json.dumps(row) + "\n" for row in list(self.rows)).encode()


class Meter:
    """Adds up what happened since the last line of metrics, and in the epoch; sums stay on the device until then.

    Parameters
    ----------
    world
        The workers.
    module
        What they train.
    classification_ratio
        Weight of the classification in the loss.
    """

    def __init__(self, world: World, module: VAE, classification_ratio: float) -> None:
        self._world, self._module, self._ratio = world, module, classification_ratio
        self._process = psutil.Process(os.getpid())
        self._steps: list[Step] = []
        self._n_timed, self._cells_timed, self._waited_s, self._began = 0, 0.0, 0.0, time.perf_counter()
        self._line_sums: list[float] = []
        self._epoch_sums: list[float] = []

    @property
    def state(self) -> dict[str, list[float]]:
        """Sums since the last line, and those of the epoch before that line: what a checkpoint keeps."""
        return {"line": self._line_sums, "epoch": self._epoch_sums}

    @state.setter
    def state(self, state: dict[str, list[float]]) -> None:
        self._line_sums, self._epoch_sums = state["line"], state["epoch"]

    def timed(self, stream: Iterator[T]) -> Iterator[T]:
        """Pass `stream` on and time how long it is waited for."""
        while True:
            begin = time.perf_counter()
            item = next(stream, None)
            self._waited_s += time.perf_counter() - begin
            if item is None:
                return
            yield item

    def add(self, step: Step) -> None:
        """Count one step."""
        self._steps.append(step)

    def gather(self, done: int) -> None:
        """Look at the steps counted since the last time: all workers decide alike whether training may go on.

        Parameters
        ----------
        done
            Steps that are done, to be named.

        Raises
        ------
        FloatingPointError
            If the loss is not finite.
        WeightsDifferError
            If workers hold different weights.
        """
        if not self._steps:
            return
        sums_of_steps = torch.stack([step.sums for step in self._steps]).cpu().numpy()
        for step, sums in zip(self._steps, sums_of_steps, strict=True):
            if not np.isfinite(sums).all():
                self._refuse(step, sums)
        check_equal_weights(self._module, self._world, done)
        sums = sums_of_steps.sum(axis=0)
        self._n_timed += len(self._steps)
        self._cells_timed += float(sums[3])
        self._line_sums = _added(sums, self._line_sums)
        self._steps = []

    def read(self, done: int) -> Row:
        """Average over the steps since the last line, over all workers, and begin anew.

        Raises
        ------
        FloatingPointError, WeightsDifferError
            As `gather`.
        """
        self.gather(done)
        elapsed_s = time.perf_counter() - self._began
        worst = self._world.maximum(
            torch.tensor(
                [self._waited_s / elapsed_s, self._process.memory_info().rss / 2**20],
                dtype=torch.float64,
                device=self._world.device,
            )
        ).tolist()
        row = {
            **loss_means(np.array(self._line_sums), self._ratio),
            "cells_per_s": self._cells_timed / elapsed_s,
            "steps_per_s": self._n_timed / elapsed_s,
            "wait_share": worst[0],
            "memory_mib": worst[1],
        }
        self._epoch_sums, self._line_sums = _added(np.array(self._line_sums), self._epoch_sums), []
        self._n_timed, self._cells_timed, self._waited_s, self._began = 0, 0.0, 0.0, time.perf_counter()
        return row

    def read_epoch(self) -> Row:
        """Average over the epoch up to the last `read`, and begin a new one."""
        sums, self._epoch_sums = np.array(self._epoch_sums), []
        return loss_means(sums, self._ratio)

    def _refuse(self, step: Step, sums: NDArray[np.float64]) -> None:
        """Name the cells, whichever worker has them, at which the loss was not finite."""
        mine = step.row_n[~torch.isfinite(step.loss_n).cpu().numpy()]
        found = self._world.from_all((len(mine), mine[:_ROWS_NAMED].tolist()))
        n_bad, n_cells = sum(n for n, _ in found), int(sums[3])
        rows = sorted(row for _, named in found for row in named)[:_ROWS_NAMED]
        loss, listed = loss_means(sums, self._ratio)["loss"], ", ".join(map(str, rows)) + ", ..." * (n_bad > len(rows))
        where = f"at {n_bad} of {n_cells} cells (rows {listed})" if n_bad else "in sum, but at no cell"
        raise FloatingPointError(
            f"the loss became {loss} in step {step.step + 1} of epoch {step.epoch + 1}, {where}"
            f"{', since the weights were extreme before' * (n_bad == n_cells)}: lower train.lr, or look for extreme "
            "counts with 'dist-scvi inspect'; the checkpoints before this step are kept"
        )


@torch.no_grad()
def check_equal_weights(module: VAE, world: World, done: int) -> None:
    """Compare a hash of the weights of all workers, after `done` steps.

    Raises
    ------
    WeightsDifferError
        On all workers alike, with the hash of each.
    """
    if world.size == 1:
        return
    total = torch.zeros((), dtype=torch.int64, device=world.device)
    for place, value in enumerate(module.state_dict().values(), 1):
        if value.is_floating_point():
            total += (2 * place + 1) * value.detach().float().contiguous().view(torch.int32).long().sum()
    mine = int(total) & (1 << 52) - 1  # exact as float64
    ends = world.maximum(torch.tensor([mine, -mine], dtype=torch.float64, device=world.device)).tolist()
    if ends[0] != -ends[1]:
        found = ", ".join(f"{rank}: {value:x}" for rank, value in enumerate(world.from_all(mine)))
        raise WeightsDifferError(
            f"after {done} steps the workers do not hold the same weights (hash by rank: {found}): memory or a device "
            "of one computes wrongly; training goes on from the last checkpoint, which all agreed on"
        )


def _added(sums: NDArray[np.float64], to: list[float]) -> list[float]:
    added: list[float] = (sums + (np.array(to) if to else 0)).tolist()
    return added


def named(row: Row) -> dict[str, float]:
    """Give the metrics of an epoch or a validation under their names in scvi-tools."""
    split = "validation" if row["kind"] == "validation" else "train"
    return {name.format(split): row[key] for key, name in _HISTORY.items() if key in row}


def history_of(rows: Sequence[Row]) -> dict[str, pd.DataFrame]:
    """Make of the lines of a run the history that a model of scvi-tools has.

    Returns
    -------
    dict
        For each name a table with one column of this name. Its index is the ``epoch``, from 0; that of ``kl_weight`` is
        the ``step``, the last of those that a line tells of.
    """
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["kind"] == "train":
            values.setdefault("kl_weight", {})[row["step"] - 1] = row["kl_weight"]
            continue
        more = {"lr": row["lr"], "kl_global_train": 0.0} if row["kind"] == "epoch" else {"kl_global_validation": 0.0}
        for name, value in {**named(row), **more}.items():
            values.setdefault(name, {})[row["epoch"]] = value
    return {
        name: pd.DataFrame(
            {name: list(of.values())}, index=pd.Index(list(of), name="step" if name == "kl_weight" else "epoch")
        )
        for name, of in values.items()
    }


def read_metrics(place: RunStorage | Path) -> list[Row]:
    """Read the metrics of the run in the folder `place`; none if there are none."""
    try:
        return metrics_in(open_run_storage(place).read(METRICS))
    except FileNotFoundError:
        return []


def metrics_in(content: bytes) -> list[Row]:
    """Read JSON lines up to the first that is none of ours, such as a last one cut off by a kill."""
    rows = []
    for line in content.decode(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or not isinstance(row.get("kind"), str):
            break
        rows.append(row)
    return rows


class MetricsReporter:
    """Show the metrics of a run: a status line on a terminal, elsewhere lines of epochs, validations and minutes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._line = StatusLine(stream)

    def __call__(self, row: Row) -> None:
        """Show one line of metrics; those of a whole epoch repeat what was shown."""
        if row["kind"] != "epoch":
            self._line.show(describe(row), keep=row["kind"] != "train" or row["step"] % row["steps_per_epoch"] == 0)

    def close(self) -> None:
        """Clear the status line."""
        self._line.close()


def describe(row: Row) -> str:
    """Format a line of metrics for people, what matters most first: a narrow terminal cuts the rest."""
    done, total = row["step"], row["steps_per_epoch"] * row["max_epochs"]
    head = f"epoch {row['epoch'] + 1}/{row['max_epochs']}  step {done}/{total}"
    terms = f"reconstruction {row['reconstruction']:.2f} + kl {row['kl']:.2f}"
    if "accuracy" in row:
        terms += f"  accuracy {row['accuracy']:.3f}"
    if row["kind"] == "validation":
        ends = "; no longer improving: training stops" if row.get("ends") else ""
        return f"{head}  validation elbo {row['elbo']:.2f} = {terms}{ends}"
    left = (total - done) / max(row["steps_per_s"], 1e-9)
    return (
        f"{head}  elbo {row['elbo']:.2f}  {row['cells_per_s']:,.0f} cells/s  {duration(left)} left  {terms}  "
        f"data wait {100 * row['wait_share']:.0f}%  {row['memory_mib']:,.0f} MiB"
    )
