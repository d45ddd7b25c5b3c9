"""The metrics of a run, sent to TensorBoard, MLflow or Weights & Biases beside the training.

A thread sends them, so that no step waits. It asks the service what it has and sends what comes after: after a restart
nothing is missing and nothing is sent twice. A service that fails is tried again, and never ends a training.
"""

import difflib
import json
import logging
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from dist_scvi.config.schema import RunConfig
from dist_scvi.storage.run_storage import RunStorage
from dist_scvi.training.logger_services import KINDS, Identity, MLflow, Service, TensorBoard, WeightsAndBiases
from dist_scvi.training.metrics import Row

LOGGER = "logger.json"
_OPTIONS = {
    "tensorboard": ("dir",),
    "mlflow": ("tracking_uri", "experiment_name", "name"),
    "wandb": ("project", "entity", "group", "name", "mode", "dir"),
}
_MODES = ("online", "offline")
_RETRY_S, _CLOSE_S, _ROWS_AT_ONCE = 60.0, 60.0, 50

log = logging.getLogger(__name__)


class Logger(Protocol):
    """Where the metrics of a run are sent."""

    def log(self, row: Row) -> None:
        """Send a line of metrics, soon; returns at once."""
        ...

    def close(self, *, ended: bool = True) -> None:
        """Send what is left, for a minute at most.

        Parameters
        ----------
        ended
            The run is complete; else it is shown as stopped, to be continued.
        """
        ...


def open_logger(config: RunConfig, place: RunStorage, known: Sequence[Row]) -> Logger | None:
    """Open the logger that the configuration asks for, at the first start of a run and at every later one.

    At the first, the service is told the parameters of the run, and its name for the run is kept in ``logger.json``.

    Parameters
    ----------
    config
        The run, resolved.
    place
        Its folder.
    known
        Lines of metrics up to the checkpoint from which it goes on; those that the service does not have are sent.

    Raises
    ------
    ValueError
        If an option does not fit, the package is not installed, or the service refuses a new run.
    """
    kind = config.logger
    if kind is None:
        return None
    check_logger_options(config)
    identity = read_identity(place, kind)
    service = _service(config, identity)
    if identity is None:
        try:
            identity = service.begin(_flat(config.model_dump(mode="json")))
        except Exception as error:  # services raise what they like
            raise ValueError(
                f"logger={kind} cannot be opened: {error}; check logger_options and the credentials in the "
                "environment, or train without a logger"
            ) from error
        write_identity(place, kind, identity)
    logger = BackgroundLogger(service, kind)
    for row in known:
        logger.log(row)
    return logger


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


def read_identity(place: RunStorage, kind: str) -> Identity | None:
    """Read under which name the service `kind` knows the run; None if it does not.

    Raises
    ------
    ValueError
        If ``logger.json`` is not one of ours.
    """
    return _identities(place).get(kind)


def write_identity(place: RunStorage, kind: str, identity: Identity) -> None:
    """Keep under which name the service `kind` knows the run, beside those of other services.

    Raises
    ------
    ValueError
        As `read_identity`.
    """
    place.write(LOGGER, json.dumps({**_identities(place), kind: identity}, indent=1).encode())


class BackgroundLogger:
    """Sends metrics to one service, from a thread of its own.

    Parameters
    ----------
    service
        The service, which from now on only this thread calls.
    kind
        Its name in messages.
    retry_s
        Seconds from a failure to the next try.
    close_s
        Longest wait at the end.
    """

    def __init__(self, service: Service, kind: str, *, retry_s: float = _RETRY_S, close_s: float = _CLOSE_S) -> None:
        self._service, self._kind = service, kind
        self._retry_s, self._close_s = retry_s, close_s
        self._last: dict[str, int] | None = None
        self._warned, self._ended, self._complete = False, False, False
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        # A daemon: a service that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="logger", daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Send a line of metrics, soon; see `Logger`."""
        if row["kind"] in KINDS:
            self._rows.put(row)

    def close(self, *, ended: bool = True) -> None:
        """Send what is left and wait for it, but not for long; see `Logger`."""
        self._ended = ended
        self._closing.set()
        self._rows.put(None)
        self._thread.join(self._close_s)
        if not self._complete:
            log.warning("logger=%s did not take the last metrics: all are in metrics.jsonl", self._kind)

    def _work(self) -> None:
        for rows in self._bundles():
            while not self._sent(rows):
                if self._closing.is_set():
                    return
                self._closing.wait(self._retry_s)
        try:
            self._service.close(ended=self._ended)
        except Exception as error:  # noqa: BLE001 - services raise what they like
            self._warn(error)
        self._complete = True

    def _bundles(self) -> Iterator[list[Row]]:
        """Yield what waits to be sent, whenever there is something, until the end."""
        while (row := self._rows.get()) is not None:
            rows = [row]
            while len(rows) < _ROWS_AT_ONCE and not self._rows.empty():
                if (row := self._rows.get()) is None:
                    yield rows
                    return
                rows.append(row)
            yield rows

    def _sent(self, rows: Sequence[Row]) -> bool:
        """Send the rows that the service does not have; False if that failed."""
        try:
            last = self._service.last_steps() if self._last is None else self._last
            self._last, new = last, []
            for row in rows:
                if row["step"] > last.get(row["kind"], 0):
                    new.append(row)
                    last = {**last, row["kind"]: row["step"]}
            if new:
                self._service.send(new)
        except Exception as error:  # noqa: BLE001 - services raise what they like
            self._warn(error)
            self._last = None  # it may have taken some: it is asked before the next try
            return False
        self._last = last
        return True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            log.warning(
                "logger=%s failed (%s: %s): training goes on, and sending is tried again every %g s; this is said once",
                self._kind,
                type(error).__name__,
                error,
                self._retry_s,
            )
        self._warned = True


def _service(config: RunConfig, identity: Identity | None) -> Service:
    """Prepare the service; it is contacted later."""
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


def _identities(place: RunStorage) -> dict[str, Identity]:
    try:
        found = json.loads(place.read(LOGGER))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{LOGGER} in the folder of the run is damaged ({error}): remove it to log anew") from error
    if not isinstance(found, dict) or not all(isinstance(identity, dict) for identity in found.values()):
        raise ValueError(f"{LOGGER} in the folder of the run holds no names by service: remove it to log anew")
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name the values of a tree by their path, as they are set on the command line."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
