"""The task of every worker of `minify`, independent of how it was started."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.atlas.minify import minify
from dist_scvi.atlas.store.verify import verify_atlas
from dist_scvi.atlas.writer.write_atlas import AtlasOptions
from dist_scvi.errors import StoppedError
from dist_scvi.inference.output_identity import model_fingerprint
from dist_scvi.metrics.run_record import MODEL, is_finished, run_config
from dist_scvi.network.model_files import load_model
from dist_scvi.storage.run_storage import RunStorage
from dist_scvi.training.resolve import open_from
from dist_scvi.training.save_requests import SaveRequests
from dist_scvi.world import World

ATLAS = "atlas"


def is_atlas_of(
    run: RunStorage,
    path: str | Path,
    obs_columns: Sequence[str] = (),
    leaf_columns: Sequence[str] | None = None,
    *,
    storage_options: Mapping[str, str] | None = None,
) -> bool:
    """Return whether `path` is the complete minified atlas of a run, with these columns: all of it is read.

    Raises
    ------
    ValueError
        If it is of this run and damaged.
    """
    try:
        atlas = open_atlas(path, storage_options=storage_options)
        of_run = model_fingerprint(*load_model(run.subfolder(MODEL)))
    except (FileNotFoundError, ValueError):
        return False
    if atlas.format == 1 or of_run != atlas.manifest["model"] or not set(obs_columns) <= set(atlas.obs.columns()):
        return False
    if leaf_columns is not None and list(leaf_columns) != atlas.manifest["leaves"]["columns"]:
        return False
    problems = verify_atlas(path, storage_options=storage_options)
    if problems:
        raise ValueError(f"{problems[0]}; to write the atlas again, replace it (overwrite=True, --overwrite)")
    return True


def minify_worker(
    run: RunStorage,
    out: str | Path,
    world: World,
    requests: SaveRequests | None = None,
    *,
    options: AtlasOptions = AtlasOptions(),  # noqa: B008 - a frozen record
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the minified atlas `out` of a finished run. If it is started again, it continues.

    Raises
    ------
    ValueError
        If the run has not ended yet.
    StoppedError
        If `requests` has a request to stop.
    """

    def heeding(done: int, share: int) -> None:
        if requests is not None and requests.read()[1]:
            raise StoppedError(f"stopped on request after {done} of {share} cells; all of it is kept")
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
        obs_columns=options.obs_columns,
        leaf_columns=options.leaf_columns,
        leaf_budget_bytes=options.leaf_budget_bytes,
        seed=options.seed,
        storage_options=config.storage_options,
        world=world,
        lineage=lineage,
        overwrite=overwrite,
        on_progress=heeding,
    )
