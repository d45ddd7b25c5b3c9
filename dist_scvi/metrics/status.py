"""Read the status of a run from another process."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from dist_scvi.metrics.metrics_file import Row, read_metrics
from dist_scvi.metrics.run_record import CHECKPOINTS, CONFIG, listed_checkpoints, result_of, run_config
from dist_scvi.storage.lease import Holder, holder_of
from dist_scvi.storage.run_storage import RunStorage

State = Literal["finished", "running", "silent", "stopped", "killed", "damaged"]
"""Ended; being written; on another host and not renewed for long; released before its end; its process is gone; what
was saved is lost."""

_SILENT_S = 60.0
_WHERE = {"epoch", "steps_per_epoch", "max_epochs"}
_KEYS = {"train": {*_WHERE, "elbo", "cells_per_s", "steps_per_s"}, "validation": {*_WHERE, "elbo"}}


@dataclass(frozen=True, slots=True)
class Status:
    """Progress and state of a run."""

    run: str
    state: State
    step: int
    """Steps done, as recorded."""
    steps: int | None
    """Steps of the whole run; None before the first line of metrics."""
    epoch: int
    epochs: int | None
    elbo: float | None
    """Value in the last line of metrics; lower is better."""
    validation_elbo: float | None
    """Value in the last validation."""
    cells_per_s: float | None
    """Over all workers."""
    minutes_left: float | None
    """Estimated from the speed in the last line."""
    saved_step: int | None
    """Steps in the newest checkpoint, by its manifest."""
    damaged_checkpoints: int
    starts: int
    """How many times the run, or its workers after a failure, were started."""
    workers: int | None
    holder: str | None
    """The process that writes the run, or wrote it last."""
    silent_s: float | None
    """Time since the writer renewed its lease, by the clocks of both hosts."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def status_of(place: RunStorage) -> Status:
    """Read the status of the run in `place`, which is not changed.

    Raises
    ------
    FileNotFoundError
        If there is no run.
    """
    holder = holder_of(place)
    config = run_config(place) if holder is None or CONFIG in place.names() else None  # it comes after the lease
    rows = read_metrics(place)
    # In object storage the metrics are written only with each checkpoint; the lease has the last line since then.
    if holder is not None and holder.row is not None and (not rows or holder.row["step"] > rows[-1]["step"]):
        rows.append(holder.row)
    rows = [row for row in rows if row.keys() >= _KEYS.get(row["kind"], _WHERE)]
    trained = next((row for row in reversed(rows) if row["kind"] == "train"), None)
    validated = next((row for row in reversed(rows) if row["kind"] == "validation"), None)
    silent_s = None
    if holder is not None:
        silent_s = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(holder.renewed)).total_seconds())
    saved_step, n_damaged = listed_checkpoints(place.subfolder(CHECKPOINTS))
    finished = result_of(place) is not None
    state = "finished" if finished else _state(holder, silent_s)
    if saved_step is None and state not in ("finished", "running") and (n_damaged or (holder and holder.saved_step)):
        state = "damaged"
    return Status(
        run=place.uri,
        state=state,
        step=max(rows[-1]["step"] if rows else 0, saved_step or 0),
        steps=rows[-1]["steps_per_epoch"] * rows[-1]["max_epochs"] if rows else None,
        epoch=rows[-1]["epoch"] + 1 if rows else 0,
        epochs=config.train.max_epochs if config else None,
        elbo=trained["elbo"] if trained else None,
        validation_elbo=validated["elbo"] if validated else None,
        cells_per_s=trained["cells_per_s"] if trained else None,
        minutes_left=None if finished else _minutes_left(trained),
        saved_step=saved_step,
        damaged_checkpoints=n_damaged,
        starts=holder.number if holder else 0,
        workers=holder.workers if holder else None,
        holder=str(holder) if holder else None,
        silent_s=silent_s,
    )


def _state(holder: Holder | None, silent_s: float | None) -> State:
    if holder is None or holder.released or silent_s is None:
        return "stopped"
    dead = holder.driver.is_dead()
    if dead is None:
        return "silent" if silent_s > _SILENT_S else "running"
    return "killed" if dead else "running"


def _minutes_left(row: Row | None) -> float | None:
    if row is None or not row["steps_per_s"]:
        return None
    return float((row["steps_per_epoch"] * row["max_epochs"] - row["step"]) / row["steps_per_s"] / 60)


_MEANING = {
    "finished": "finished, and the model is whole",
    "running": "running",
    "silent": "its lease has not been renewed for long; start the same command again if it is dead",
    "stopped": "stopped before its end; start the same command again to continue",
    "killed": "its process is gone; start the same command again to continue",
    "damaged": "stopped, and no checkpoint is whole: restore one from a copy, or start afresh with --allow-fresh",
}


def format_status(status: Status) -> str:
    """Format the status, one value per line."""
    known = {
        "run": status.run,
        "state": _MEANING[status.state],
        "progress": f"step {status.step} of {status.steps or '?'}, epoch {status.epoch} of {status.epochs or '?'}",
        "elbo": status.elbo and f"{status.elbo:.2f}",
        "validation": status.validation_elbo and f"elbo {status.validation_elbo:.2f}",
        "speed": status.cells_per_s and f"{status.cells_per_s:.0f} cells/s",
        "workers": status.workers and str(status.workers),
        "time left": status.minutes_left and status.state == "running" and f"{status.minutes_left:.1f} min",
        "last checkpoint": "none" if status.saved_step is None else f"step {status.saved_step}",
        "damaged": status.damaged_checkpoints and f"{status.damaged_checkpoints} checkpoints",
        "starts": str(status.starts),
        "written by": status.holder,
        "last renewed": status.silent_s is not None and status.state != "finished" and f"{status.silent_s:.0f} s ago",
    }
    return "\n".join(f"{key:>16}  {value}" for key, value in known.items() if value)
