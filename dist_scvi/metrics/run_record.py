"""Read the record of a run: configuration, result, checkpoints; without torch, which is slow to import."""

import hashlib
from collections.abc import Sequence
from typing import Any

from dist_scvi.config.load import read_config
from dist_scvi.config.schema import RunConfig
from dist_scvi.loaders.arrays.bounded_json import parse_json_object
from dist_scvi.storage.folder_manifest import MANIFEST, listed_files
from dist_scvi.storage.lease import holder_of
from dist_scvi.storage.run_storage import RunStorage

CONFIG, MODEL, RESULT, CHECKPOINTS = "config.yaml", "model", "RESULT.json", "checkpoints"
STEP, DAMAGED, INCOMPLETE = "step-", "damaged-", "incomplete-"
"""Prefixes of checkpoints: whole ones, and those that are set aside."""


def is_finished(place: RunStorage) -> bool:
    """Return whether the run has ended and its model is complete."""
    return result_of(place) is not None


def result_of(place: RunStorage) -> dict[str, Any] | None:
    """Return the record of a run that has ended; None if it has not, or its model is not complete."""
    try:
        result = parse_json_object(place.read(RESULT), f"{place.uri}/{RESULT}")
        place.read_folder(MODEL)
        manifest = hashlib.sha256(place.read(f"{MODEL}/{MANIFEST}")).hexdigest()
    except (FileNotFoundError, ValueError):
        return None
    return result if result.get("model_manifest_sha256") == manifest else None


def workers_of_run(run: RunStorage) -> int | None:
    """Return the number of workers at the last start of the run; None if it was never started.

    With another number a resumed run is equal to an uninterrupted one up to rounding, with this one bit for bit.
    """
    holder = holder_of(run)
    return None if holder is None else holder.workers


def run_config(run: RunStorage, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the resolved configuration of the run in the folder `run`.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If `overrides` name another run.
    """
    if any(override.partition("=")[0] == "run" for override in overrides):
        raise ValueError("a run is resumed in its folder: leave out run=, or train into a new folder with its config")
    try:
        text = run.read(CONFIG).decode()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{run.uri} is not a run: it has no {CONFIG}; start one with 'dist-scvi train'"
        ) from None
    return read_config(text, f"{run.uri}/{CONFIG}", [*overrides, f"run={run.uri}"])


def listed_checkpoints(place: RunStorage) -> tuple[int | None, int]:
    """Return the state of the checkpoints by their manifests, without reading the rest.

    Returns
    -------
    int, int
        Steps done in the newest checkpoint, None if there is none; and the number whose manifests are damaged.
    """
    steps, n_damaged = [], sum(name.startswith(DAMAGED) for name in place.names())
    for name in newest_first(place):
        try:
            listed_files(name, place.read(f"{name}/{MANIFEST}"))
            steps.append(int(name.removeprefix(STEP)))
        except FileNotFoundError:
            continue
        except ValueError:
            n_damaged += 1
    return max(steps, default=None), n_damaged


def newest_first(place: RunStorage) -> list[str]:
    """Return the names of the checkpoints, the newest first."""
    return sorted((name for name in place.names() if name.startswith(STEP)), reverse=True)
