"""Write the folder of a run: lease, checkpoints, metrics, and the model at the end."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import yaml
from torch import Tensor

from dist_scvi.config.schema import RunConfig
from dist_scvi.errors import LostLeaseError
from dist_scvi.metrics.forwarder import MetricsForwarder, start_forwarder
from dist_scvi.metrics.history import history_of
from dist_scvi.metrics.metrics_file import METRICS, MetricsLog, Row
from dist_scvi.metrics.run_record import CHECKPOINTS, CONFIG, MODEL, RESULT
from dist_scvi.network.model_files import load_model, model_files, save_model
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.storage.background_writer import BackgroundWriter
from dist_scvi.storage.folder_manifest import MANIFEST
from dist_scvi.storage.lease import Driver, Lease, claim
from dist_scvi.storage.run_storage import RunStorage
from dist_scvi.training.checkpoint import Checkpoint, newest_checkpoint, write_checkpoint
from dist_scvi.world import World

_BEST = "best-"


_STORES = ("zarr.json", ".zgroup", ".zattrs", "__group", "ATLAS.json", MANIFEST)
"""Files that identify stores, atlases, models and checkpoints."""


class RunFolder:
    """The folder of a run, open for its only writer; created by `open_run_for_writing`."""

    def __init__(self, place: RunStorage, lease: Lease) -> None:
        self.place, self._lease, self._saver = place, lease, BackgroundWriter()
        self._checkpoints = place.subfolder(CHECKPOINTS)
        self._log: MetricsLog | None = None
        self._forwarder: MetricsForwarder | None = None
        self._ended = False
        self._saved = threading.Event()
        self._saved.set()

    def latest(self, *, fresh: bool = False) -> Checkpoint | None:
        """Return the newest checkpoint, or None if the run starts from the beginning.

        Parameters
        ----------
        fresh
            Start from the beginning if checkpoints were lost or none is valid.

        Raises
        ------
        ValueError
            If saved checkpoints are missing: starting from the beginning would silently lose a run.
        """
        try:
            found = newest_checkpoint(self._checkpoints)
        except ValueError:
            if not fresh:
                raise
            return None
        saved = self._lease.holder.saved_step
        if found is None and saved is not None and not fresh:
            raise ValueError(
                f"{self.place.uri} was saved at step {saved} and has no checkpoint now: restore {CHECKPOINTS} from a "
                "copy, train into a new folder with run=PATH, or start from the beginning with --allow-fresh"
            )
        return found

    def begin(self, config: RunConfig, step: int, *, ended: bool) -> MetricsLog:
        """Record the resolved configuration and cut the metrics to `step`; a run that continues has not ended."""
        if not ended:
            self.place.remove(RESULT)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        self.place.write(CONFIG, text.encode())
        self._log = MetricsLog(self.place, step=step)
        self._forwarder = start_forwarder(config, self.place)
        return self._log

    def log_row(self, row: Row) -> None:
        """Append a line of metrics."""
        assert self._log is not None
        self._saver.check()
        self._log.write(row)
        self._lease.update(row=row)

    def save(self, done: int, files: Mapping[str, bytes], *, keep: int) -> None:
        """Write a checkpoint after `done` steps in the background; the newest `keep` are kept.

        It waits for the previous one, so that a crash loses at most the steps since that one.

        Raises
        ------
        OSError
            If an earlier one could not be written.
        LostLeaseError
            If another start of the run has taken over.
        """
        self._saved.wait()
        self._saved = self._saver.do(partial(self._save, done, files, keep))

    def _save(self, done: int, files: Mapping[str, bytes], keep: int) -> None:
        assert self._log is not None
        # Here and not in `save`: the lease may be lost while this task waits for the one before.
        self._lease.check()
        self._log.sync()  # before the checkpoint: a run that resumes from it needs the metrics of all steps before it
        write_checkpoint(self._checkpoints, done, files, keep=keep)
        self._lease.update(saved_step=done)

    def save_best(self, step: int, module: VAE, spec: ModelSpec, *, keep: int) -> None:
        """Write the model of the best validation so far; earlier ones stay for the `keep` checkpoints naming them."""
        self._saver.do(partial(self._save_best, f"{_BEST}{step:010d}", model_files(module, spec), keep))

    def _save_best(self, name: str, files: Mapping[str, bytes], keep: int) -> None:
        self._lease.check()
        self._checkpoints.write_folder(name, files)
        for old in sorted(found for found in self._checkpoints.names() if found.startswith(_BEST))[: -keep - 1]:
            self._checkpoints.remove(old)

    def best(self, step: int) -> dict[str, Tensor]:
        """Read the weights of the best validation, after `step` steps.

        Raises
        ------
        ValueError
            If they are lost.
        """
        try:
            return load_model(self._checkpoints.subfolder(f"{_BEST}{step:010d}"))[0].state_dict()
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"the best model so far, of step {step}, cannot be read ({error}): restore it from a copy, or end with "
                "the last one with train.load_best=false --allow train.load_best"
            ) from error

    def wait(self) -> None:
        """Wait until all checkpoints passed to `save` are in storage.

        Raises
        ------
        OSError, LostLeaseError
            As `save`.
        """
        self._saver.wait()

    def finish(self, module: VAE, spec: ModelSpec, *, epoch: int, step: int, ends: str) -> None:
        """Write the model and then the record that the run has ended."""
        # The record is last and has the hash of the model's manifest: a kill in between leaves a run that has not ended
        # and resumes, never one that has ended without its model.
        assert self._log is not None
        self._saver.wait()
        self._lease.check()
        self._log.sync()
        plain = {name: json.loads(table.to_json(orient="split")) for name, table in history_of(self._log.rows).items()}
        save_model(self.place.subfolder(MODEL), module, spec, history=plain)
        manifest = self.place.read(f"{MODEL}/{MANIFEST}")
        result = {
            "format": "dist_scvi.result/1",
            "epoch": epoch,
            "step": step,
            "ended_by": ends,
            "starts": self._lease.holder.number,
            "model_manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        }
        self.place.write(RESULT, json.dumps(result, indent=1).encode())
        self._ended = True

    def close(self) -> None:
        """Finish pending writes and release the run. Errors are raised by `save`, `log_row` and `finish` only."""
        self._saver.close()
        with suppress(OSError, LostLeaseError):
            self._lease.release()
        if self._forwarder is not None:
            self._forwarder.close(ended=self._ended)


@contextmanager
def open_run_for_writing(
    place: RunStorage | None, world: World, *, driver: Driver | None = None, fresh: bool = False
) -> Iterator[tuple[RunFolder | None, Checkpoint | None]]:
    """Lock the run in `place` on rank 0, and pass its newest checkpoint to all workers.

    Raises
    ------
    ValueError, OSError
        On all workers alike, if the run cannot be locked or its checkpoints are lost.
    """
    # An error of rank 0 is sent to all workers and raised there: if only rank 0 raised it, the others would wait for
    # its checkpoint until the time limit of the collective.
    folder: RunFolder | None = None
    found: Checkpoint | Exception | None = None
    if place is not None and world.rank == 0:
        try:
            lease = claim(place, driver or Driver.this(), workers=world.size)
            folder = RunFolder(place, lease)
            found = folder.latest(fresh=fresh)
        except (ValueError, OSError) as error:
            found = error
    try:
        found = world.from_first(found)
        if isinstance(found, Exception):
            raise found
        yield folder, found
    finally:
        if folder is not None:
            folder.close()


def check_folder_is_free(path: Path) -> None:
    """Refuse a folder that is, or is in, other data that a run would damage.

    Raises
    ------
    ValueError
        If it is, or is in, a store, an atlas, a model, a checkpoint, or another run.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: a run needs a folder, choose another with run=PATH")
    for folder in (path, *path.parents):
        marks = _STORES if folder == path else (*_STORES, METRICS)
        found = next((mark for mark in marks if (folder / mark).exists()), None)
        if found:
            raise ValueError(
                f"{path} {'is' if folder == path else f'is in {folder}, which is'} not free: it holds {found} of a "
                "store, an atlas, a model or another run; choose another folder with run=PATH"
            )
