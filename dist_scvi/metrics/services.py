"""TensorBoard, MLflow and Weights & Biases: start a run, read its last step, send more.

None of their packages is imported before it is used. Credentials and addresses that are not given are read from the
environment by each package.
"""

import contextlib
import json
import os
import struct
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dist_scvi.metrics.history import values_by_name
from dist_scvi.metrics.metrics_file import Row
from dist_scvi.storage.atomic_files import sync_folder, write_file

Identity = dict[str, str]
"""Name of a run in a service."""
KINDS = {"train": "kl_weight", "epoch": "elbo_train", "validation": "elbo_validation"}
"""Kinds of lines that are sent, each with a metric whose history in a service shows the last step."""
_OF_TRAINING = ("kl_weight", "lr", "epoch", "cells_per_s", "wait_share", "memory_mib")
_LONGEST_VALUE, _PARAMETERS_AT_ONCE = 500, 100  # of MLflow
_SENT = ".sent_step"
"""In the folder of event files: the last step whose lines have begun to be sent; all before are on the disk."""
_FINISH_S, _FILED_S, _LAST_PARTS = 50.0, 5.0, (1, 4)  # of Weights & Biases; a part is whole, or the last


class Service(Protocol):
    """A run in a service. The constructor does not contact the service; the methods may take long or fail."""

    def begin(self, parameters: Mapping[str, Any]) -> Identity:
        """Create the run and send its parameters."""
        ...

    def last_steps(self) -> dict[str, int]:
        """Return the last step that the service has of each kind of line; also called after a failure."""
        ...

    def send(self, rows: Sequence[Row]) -> None:
        """Send lines, in order of their steps."""
        ...

    def close(self, *, ended: bool) -> None:
        """Mark the run as ended, or as stopped for now."""
        ...


def values_of(row: Row) -> dict[str, float]:
    """Return the values of a line to send, named as in scvi-tools; means over some steps end in ``_step``."""
    if row["kind"] != "train":
        return values_by_name(row)
    losses = {f"{name}_step": value for name, value in values_by_name(row).items()}
    return losses | {key: row[key] for key in _OF_TRAINING if key in row}


class TensorBoard:
    """Event files in a folder, one for each start.

    Incomplete or surplus events of an earlier start are purged: TensorBoard ignores them from the ``purge_step`` of a
    later file on.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._make, self._folder = SummaryWriter, folder
        self._writer: Any = None
        self._file_suffix = ""

    def begin(self, parameters: Mapping[str, Any]) -> Identity:
        """Write the parameters as a table."""
        lines = [f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in parameters.items()]
        self._open(None)
        self._writer.add_text("configuration", "\n".join(["| key | value |", "|---|---|", *lines]), 0)
        self._writer.flush()
        return {"dir": str(self._folder)}

    def last_steps(self) -> dict[str, int]:
        """Read the step up to which the files are complete, and purge the later ones."""
        try:
            sent = int((self._folder / _SENT).read_text())
        except (FileNotFoundError, ValueError):  # of a new run, or of an earlier version, whose events are sent again
            sent = 1
        if self._writer is None:
            self._open(sent)
        return dict.fromkeys(KINDS, sent - 1)

    def send(self, rows: Sequence[Row]) -> None:
        """Write lines to the disk."""
        try:
            for row in rows:
                for key, value in values_of(row).items():
                    self._writer.add_scalar(key, value, row["step"])
            self._writer.flush()
            # The events are synced before the step is recorded: after a loss of power, the recorded step must not be
            # later than the events on the disk.
            for path in self._folder.glob(f"*{self._file_suffix}"):
                sync_folder(path)
            write_file(self._folder / _SENT, str(rows[-1]["step"]).encode())
        except Exception:
            self._writer = None  # its file may end with an incomplete record: later records need a new file
            raise

    def close(self, *, ended: bool) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, purge_step: int | None) -> None:
        # SummaryWriter names a file by second and host: two starts in a second would share it. TensorBoard reads
        # files in the order of their names.
        self._file_suffix = f".{time.time_ns()}.{os.getpid()}"
        self._writer = self._make(str(self._folder), purge_step=purge_step, filename_suffix=self._file_suffix)


class MLflow:
    """A run of MLflow. It is called from one thread and waits for each answer, so that lines arrive in order."""

    def __init__(self, identity: Identity | None, tracking_uri: str | None, experiment: str | None, name: str) -> None:
        import mlflow
        from mlflow import entities
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.client import MlflowClient

        if tracking_uri is None and not mlflow.is_tracking_uri_set():
            raise ValueError("logger=mlflow needs a server: set logger_options.tracking_uri or MLFLOW_TRACKING_URI")
        self._entities, self._error, self._make = entities, MlflowException, MlflowClient
        self._uri, self._experiment, self._name = tracking_uri, experiment, name
        self._run_id, self._client = (identity or {}).get("run_id", ""), None

    def begin(self, parameters: Mapping[str, Any]) -> Identity:
        """Create a run in the experiment, and the experiment if there is none."""
        client = self._connected()
        name = self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        if client.get_experiment_by_name(name) is None:
            with contextlib.suppress(self._error):  # another run may have created it meanwhile
                client.create_experiment(name)
        found = client.get_experiment_by_name(name)
        if found is None:
            raise ValueError(f"there is no experiment {name}, and none could be made")
        self._run_id = client.create_run(found.experiment_id, run_name=self._name).info.run_id
        entries = [self._entities.Param(key, _shortened(value)) for key, value in parameters.items()]
        for first in range(0, len(entries), _PARAMETERS_AT_ONCE):
            client.log_batch(self._run_id, params=entries[first : first + _PARAMETERS_AT_ONCE])
        return {"run_id": self._run_id}

    def last_steps(self) -> dict[str, int]:
        """Request the history of one metric of each kind; the run is shown as running."""
        client = self._connected()
        client.update_run(self._run_id, status="RUNNING")
        return {
            kind: max((entry.step for entry in client.get_metric_history(self._run_id, metric)), default=0)
            for kind, metric in KINDS.items()
        }

    def send(self, rows: Sequence[Row]) -> None:
        """Send lines in one request."""
        now_ms = time.time_ns() // 1_000_000
        make = self._entities.Metric
        entries = [make(key, value, now_ms, row["step"]) for row in rows for key, value in values_of(row).items()]
        self._connected().log_batch(self._run_id, metrics=entries)

    def close(self, *, ended: bool) -> None:
        """Set the status of the run."""
        self._connected().set_terminated(self._run_id, status="FINISHED" if ended else "KILLED")

    def _connected(self) -> Any:
        self._client = self._client or self._make(tracking_uri=self._uri)
        return self._client


class WeightsAndBiases:
    """A run of Weights & Biases, whose own process uploads.

    Offline, every start leaves a folder of the same run; ``wandb sync --append`` sends them.
    """

    def __init__(
        self,
        identity: Identity | None,
        *,
        folder: Path | None,
        name: str,
        project: str | None,
        entity: str | None,
        group: str | None,
        mode: str | None,
    ) -> None:
        import wandb

        self._wandb = wandb
        self._id = (identity or {}).get("id", "")
        self._where = {"project": project, "entity": entity, "group": group, "mode": mode}
        self._folder, self._name = folder, name
        self._run: Any = None
        self._last: dict[str, int] = {}

    def begin(self, parameters: Mapping[str, Any]) -> Identity:
        """Create a run."""
        self._id = uuid.uuid4().hex[:12]
        self._connect({"name": self._name, "config": dict(parameters)})
        return {"id": self._id}

    def last_steps(self) -> dict[str, int]:
        """Connect to the run; the service returns the step from which it continues."""
        if self._run is None:
            self._connect({})
        return dict(self._last)

    def send(self, rows: Sequence[Row]) -> None:
        """Pass lines to the process that uploads; it merges those of a step into one entry."""
        for row in rows:
            try:
                self._run.log(values_of(row), step=row["step"])
            except Exception:
                self._run = None
                raise
            self._last[row["kind"]] = row["step"]

    def close(self, *, ended: bool) -> None:
        """Wait for the uploads for a limited time; ``wandb sync`` sends the rest."""
        if self._run is None:
            return
        self._run.finish(exit_code=0 if ended else 1)
        if self._run.offline:  # its process ends the file some time after
            until = time.monotonic() + _FILED_S
            while self._kept() != self._last and time.monotonic() < until:
                time.sleep(0.02)

    def _connect(self, details: Mapping[str, Any]) -> None:
        settings = self._wandb.Settings(console="off", reinit="create_new", finish_timeout=_FINISH_S)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        folder = None if self._folder is None else str(self._folder)
        self._run = self._wandb.init(
            id=self._id, resume="allow", dir=folder, settings=settings, **self._where, **details
        )
        if not self._run.offline:
            self._last = dict.fromkeys(KINDS, self._run.starting_step - 1)
        else:
            self._last = self._kept()

    def _kept(self) -> dict[str, int]:
        """Read which steps the files of the run hold: its process writes them at intervals, and a kill loses some."""
        last = dict.fromkeys(KINDS, 0)
        for path in sorted(Path(self._run.dir).parents[1].glob(f"*/run-{self._id}.wandb")):
            for entry in _entries(path):
                for kind, metric in KINDS.items():
                    if metric in entry:
                        last[kind] = max(last[kind], int(entry["_step"]))
        return last


def _entries(path: Path) -> Iterator[dict[str, str]]:
    """Read the logged records from a file of Weights & Biases, up to where a kill cut it off."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    for content in _records(path):
        try:
            items = Record.FromString(content).history.item
        except DecodeError:
            return
        yield {item.key or item.nested_key[0]: item.value_json for item in items}


def _records(path: Path) -> Iterator[bytes]:
    """Read the records in a file of Weights & Biases 0.31.

    It is made of blocks of 32 KiB, the first after 7 bytes, and these of parts of records: 4 bytes of checksum, length,
    which part it is, content.
    """
    record, at = b"", 7
    with path.open("rb") as file:
        while block := file.read(1 << 15):
            while at + 7 <= len(block):
                size, part = struct.unpack_from("<HB", block, at + 4)
                if at + 7 + size > len(block):
                    return
                record += block[at + 7 : at + 7 + size]
                at += 7 + size
                if part in _LAST_PARTS:
                    yield record
                    record = b""
            at = 0


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
