"""What every worker of `minify` does, however it was started."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.atlas.minify import minify
from dist_scvi.errors import StoppedError
from dist_scvi.inference.output_identity import model_fingerprint
from dist_scvi.network.model_files import load_model
from dist_scvi.storage.run_storage import RunStorage
from dist_scvi.training.resolve import open_from
from dist_scvi.training.run_folder import MODEL, is_finished
from dist_scvi.training.save_requests import SaveRequests
from dist_scvi.training.worker import run_config
from dist_scvi.world import World

ATLAS = "atlas"


def is_atlas_of(run: RunStorage, path: Path, obs_columns: Sequence[str] = ()) -> bool:
    """Say whether `path` is the whole minified atlas of a run, these columns of obs among it."""
    try:
        columns = open_atlas(path).obs.columns()
        of_run, of_atlas = (model_fingerprint(*load_model(folder)) for folder in (run.subfolder(MODEL), path / MODEL))
    except (FileNotFoundError, ValueError):
        return False
    return of_run == of_atlas and set(obs_columns) <= set(columns)


def minify_worker(
    run: RunStorage,
    out: Path,
    world: World,
    requests: SaveRequests | None = None,
    *,
    obs_columns: Sequence[str] = (),
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the minified atlas `out` of a finished run. Started again, it goes on where it was.

    Raises
    ------
    ValueError
        If the run has not ended yet.
    StoppedError
        If `requests` says so.
    """

    def heeding(done: int, share: int) -> None:
        if requests is not None and requests.read()[1]:
            raise StoppedError(f"stopped as asked after {done} of {share} cells; all of it is kept")
        if on_progress is not None:
            on_progress(done, share)

    config = run_config(run)
    if not is_finished(run):
        raise ValueError(f"{run.uri} has no finished model: continue it with 'dist-scvi resume {run.uri}'")
    module, spec = load_model(run.subfolder(MODEL))
    module.to(world.device)
    lineage = {
        "run": run.uri,
        "seed": config.seed,
        "model": config.model.model_dump(),
        "train": config.train.model_dump(),
    }
    minify(
        module,
        spec,
        open_from(config.data),
        out,
        obs_columns=obs_columns,
        world=world,
        lineage=lineage,
        overwrite=overwrite,
        on_progress=heeding,
    )
