"""Forward the metrics of a run to TensorBoard, MLflow or Weights & Biases.

A thread reads them from the file of the run, as another process could, independently of training. It requests the last
step from the service and sends the later ones: after a restart no step is missing and none is sent twice. After a
failure of the service it tries again; a failure never ends training.
"""

import difflib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dist_scvi.config.schema import RunConfig
from dist_scvi.loaders.arrays.bounded_json import parse_json_object
from dist_scvi.metrics.metrics_file import MetricsReader, Row
from dist_scvi.metrics.services import KINDS, Identity, MLflow, Service, TensorBoard, WeightsAndBiases
from dist_scvi.storage.run_storage import LocalStorage, RunStorage

LOGGER = "logger.json"
_OPTIONS = {
    "tensorboard": ("dir",),
    "mlflow": ("tracking_uri", "experiment_name", "name"),
    "wandb": ("project", "entity", "group", "name", "mode", "dir"),
}
_MODES = ("online", "offline")
_POLL_S, _REMOTE_POLL_S = 1.0, 10.0
_RETRY_S, _CLOSE_S, _ROWS_AT_ONCE = 60.0, 60.0, 50

log = logging.getLogger(__name__)


def start_forwarder(config: RunConfig, storage: RunStorage) -> "MetricsForwarder | None":
    """Start to forward the metrics of a run to the service in the configuration, at its first and at later starts.

    At the first start, the service receives the parameters of the run; ``logger.json`` keeps its name for the run.

    Parameters
    ----------
    config
        The run, resolved.
    storage
        Its folder, in which the metrics are already cut to the step from which the run continues.

    Raises
    ------
    ValueError
        If an option does not fit, the package is not installed, or the service refuses a new run.
    """
    kind = config.logger
    if kind is None:
        return None
    check_logger_options(config)
    identity = read_identity(storage, kind)
    service = _service(config, identity)
    if identity is None:
        try:
            identity = service.begin(_flat(config.model_dump(mode="json")))
        except Exception as error:  # services raise errors of any type
            raise ValueError(
                f"logger={kind} cannot be opened: {error}; check logger_options and the credentials in the "
                "environment, or train without a logger"
            ) from error
        write_identity(storage, kind, identity)
    poll_s = _POLL_S if isinstance(storage, LocalStorage) else _REMOTE_POLL_S
    return MetricsForwarder(service, kind, MetricsReader(storage), poll_s=poll_s)


def check_logger_options(config: RunConfig) -> None:
    """Check ``logger_options`` without opening anything.

    Raises
    ------
    ValueError
        If an option is not one of the logger, or a value does not fit.
    """
    kind, options = config.logger, config.logger_options
    allowed = _OPTIONS[kind] if kind else ()
    for key in options:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1) or allowed
            hint = f"logger={kind} has {', '.join(near)}" if kind else "set logger, or leave them out"
            raise ValueError(f"logger_options.{key} is not known: {hint}")
    folder, uri, mode = options.get("dir", ""), options.get("tracking_uri", ""), options.get("mode", "online")
    if "://" in folder:
        raise ValueError(f"logger_options.dir={folder} is a URL: a folder on a disk is needed")
    if kind == "tensorboard" and "://" in config.run and not folder:
        raise ValueError(
            f"run={config.run} is a URL, where TensorBoard cannot write: set logger_options.dir to a folder on a disk"
        )
    if urlsplit(uri).password:
        raise ValueError(
            "logger_options.tracking_uri holds a password, and a configuration is stored with every result: give "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        )
    if mode not in _MODES:
        raise ValueError(f"logger_options.mode={mode} is not known: {' or '.join(_MODES)} is needed")


def read_identity(storage: RunStorage, kind: str) -> Identity | None:
    """Return the name of the run in the service `kind`; None if it has none.

    Raises
    ------
    ValueError
        If ``logger.json`` is not a file of this package.
    """
    return _identities(storage).get(kind)


def write_identity(storage: RunStorage, kind: str, identity: Identity) -> None:
    """Keep the name of the run in the service `kind`, alongside those in other services.

    Raises
    ------
    ValueError
        As `read_identity`.
    """
    storage.write(LOGGER, json.dumps({**_identities(storage), kind: identity}, indent=1).encode())


class MetricsForwarder:
    """Send the metrics of a run to one service from a separate thread, until it is closed.

    Parameters
    ----------
    service
        The service; from then on only this thread calls it.
    kind
        Name of the service in messages.
    reader
        Function that returns the lines added to the metrics since the last call.
    poll_s
        Seconds between two reads of the metrics.
    retry_s
        Seconds from a failure to the next try.
    close_s
        Longest wait at the end.
    """

    def __init__(
        self,
        service: Service,
        kind: str,
        reader: MetricsReader,
        *,
        poll_s: float = _POLL_S,
        retry_s: float = _RETRY_S,
        close_s: float = _CLOSE_S,
    ) -> None:
        self._service, self._kind, self._reader = service, kind, reader
        self._poll_s, self._retry_s, self._close_s = poll_s, retry_s, close_s
        self._last: dict[str, int] | None = None
        self._warned, self._ended, self._complete = False, False, False
        self._closing = threading.Event()
        # A daemon thread: a service that never answers must not prevent the process from ending.
        self._thread = threading.Thread(target=self._forward, name="logger", daemon=True)
        self._thread.start()

    def close(self, *, ended: bool = True) -> None:
        """Send what is left, for a minute at most.

        Parameters
        ----------
        ended
            The run is complete; else it is shown as stopped, to be continued.
        """
        self._ended = ended
        self._closing.set()
        self._thread.join(self._close_s)
        if not self._complete:
            log.warning("logger=%s did not take the last metrics: all are in metrics.jsonl", self._kind)

    def _forward(self) -> None:
        waiting: list[Row] = []
        pause_s = 0.0
        while True:
            closing = self._closing.wait(pause_s)
            pause_s = self._poll_s
            try:
                waiting += [row for row in self._reader.read() if row["kind"] in KINDS]
            except OSError as error:
                self._warn(error)
            while waiting:
                if self._send(waiting[:_ROWS_AT_ONCE]):
                    del waiting[:_ROWS_AT_ONCE]
                elif closing:
                    return
                else:
                    pause_s = self._retry_s
                    break
            if closing:
                break
        try:
            self._service.close(ended=self._ended)
        except Exception as error:  # noqa: BLE001 - services raise errors of any type
            self._warn(error)
        self._complete = True

    def _send(self, rows: Sequence[Row]) -> bool:
        """Send the rows that the service does not have; return False if that failed."""
        # By step and not by number of lines: after a restart the file has lines that the service has already.
        try:
            last = self._service.last_steps() if self._last is None else self._last
            self._last, new = last, []
            for row in rows:
                if row["step"] > last.get(row["kind"], 0):
                    new.append(row)
                    last = {**last, row["kind"]: row["step"]}
            if new:
                self._service.send(new)
        except Exception as error:  # noqa: BLE001 - services raise errors of any type
            self._warn(error)
            self._last = None  # it may have received some rows: its last step is requested before the next try
            return False
        self._last = last
        return True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            log.warning(
                "logger=%s failed (%s: %s): training goes on, and sending is tried again every %g s (logged once)",
                self._kind,
                type(error).__name__,
                error,
                self._retry_s,
            )
        self._warned = True


def _service(config: RunConfig, identity: Identity | None) -> Service:
    """Create the service; it is contacted later."""
    kind, options = config.logger, config.logger_options
    local = None if "://" in config.run else Path(config.run)
    name = options.get("name") or config.run.rstrip("/").rpartition("/")[2]
    try:
        if kind == "tensorboard":
            return TensorBoard(Path(options["dir"]) if "dir" in options else Path(config.run) / "tensorboard")
        if kind == "mlflow":
            return MLflow(identity, options.get("tracking_uri"), options.get("experiment_name"), name)
        return WeightsAndBiases(
            identity,
            folder=Path(options["dir"]) if "dir" in options else local,
            name=name,
            **{key: options.get(key) for key in ("project", "entity", "group", "mode")},
        )
    except ImportError as error:
        raise ValueError(f"logger={kind} needs another package: pip install 'dist-scvi[{kind}]' ({error})") from error


def _identities(storage: RunStorage) -> dict[str, Identity]:
    try:
        found = parse_json_object(storage.read(LOGGER), f"{storage.uri}/{LOGGER}")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{error}; or remove it, and the run is logged as a new one") from error
    if not all(isinstance(identity, dict) for identity in found.values()):
        raise ValueError(f"{storage.uri}/{LOGGER} holds no names by service: remove it to log as a new run")
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a tree by their path, as they are set on the command line."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
