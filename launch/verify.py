"""``dist-scvi verify`` of what this package writes: runs, checkpoints, models and atlases."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dist_scvi.progress_reporter import ProgressReporter

if TYPE_CHECKING:
    from dist_scvi.storage.run_storage import RunStorage


def verify_written(path: str, storage_options: Mapping[str, str]) -> tuple[str, list[str]] | None:
    """Read a whole run, checkpoint, model or atlas with the code that opens it.

    Returns
    -------
    str, list of str
        What it is, and what is wrong with it, a line for each problem. None if it is something else, such as a store.
    """
    from dist_scvi.storage.run_storage import open_run_storage

    if "://" not in path and not Path(path).is_dir():
        return None
    folder = open_run_storage(path, storage_options=storage_options)
    names = set(folder.names())
    if "ATLAS.json" in names:
        from dist_scvi.atlas.store.verify import verify_atlas

        report = ProgressReporter("verified", "bytes")
        return "atlas", verify_atlas(path, storage_options=storage_options, on_progress=report)
    if "config.yaml" in names:
        return "run", _problems_of_run(folder)
    if "spec.json" in names:
        return "model", _problems_of_model(folder)
    if "state.json" in names:
        return "checkpoint", _problems_of_folder(folder, "")
    return None


def _problems_of_run(run: "RunStorage") -> list[str]:
    from dist_scvi.metrics.run_record import CHECKPOINTS, MODEL, newest_first, run_config

    problems = []
    try:
        run_config(run)
    except (ValueError, OSError) as error:
        problems.append(str(error))
    for name in newest_first(run.subfolder(CHECKPOINTS)):
        problems += _problems_of_folder(run, f"{CHECKPOINTS}/{name}")
    if MODEL in run.names():
        problems += _problems_of_model(run.subfolder(MODEL))
    return problems


def _problems_of_model(folder: "RunStorage") -> list[str]:
    from dist_scvi.network.model_files import load_model

    try:
        load_model(folder)
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def _problems_of_folder(storage: "RunStorage", name: str) -> list[str]:
    """Return the first difference between the files of a folder and its manifest, if there is any."""
    try:
        storage.read_folder(name)
    except (ValueError, OSError) as error:
        return [str(error)]
    return []
