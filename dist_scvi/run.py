"""What every worker of a run does, however it was started: train to the end, or minify. And what a run would cost.

A run is a folder, on a disk or in object storage: ``config.yaml`` (resolved), ``metrics.jsonl``, ``checkpoints/``,
``lease/``, ``workers/`` and, when it has ended, ``model/`` and ``RESULT.json``.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dist_scvi.asks import Asks
from dist_scvi.atlas import open_atlas
from dist_scvi.checkpoint import check_same_run, fingerprint, newest_checkpoint
from dist_scvi.config import RunConfig, SomaConfig
from dist_scvi.config_file import read_config
from dist_scvi.ends import StoppedError
from dist_scvi.lease import Driver, refuse_if_held
from dist_scvi.loaders import CellData, Plan
from dist_scvi.loaders.collection import Collection, format_unmatched
from dist_scvi.loaders.plan import check_world_size
from dist_scvi.loaders.sampling import ColumnSplit
from dist_scvi.loaders.soma_store import is_soma
from dist_scvi.loaders.strata import TEST, VALIDATION
from dist_scvi.loggers import check_logger_options
from dist_scvi.metrics import Row
from dist_scvi.minify import minify
from dist_scvi.places import LocalPlace, Place, open_place
from dist_scvi.question import describe_model
from dist_scvi.run_folder import CHECKPOINTS, CONFIG, MODEL, is_finished, refuse_foreign
from dist_scvi.spec import fit_to_spec, load_model, spec_of
from dist_scvi.start import begin
from dist_scvi.train import labelled_plan_of, open_from, resolve, train
from dist_scvi.world import World

ATLAS = "atlas"


def train_worker(
    config: RunConfig,
    world: World,
    asks: Asks | None = None,
    *,
    driver: Driver | None = None,
    allow: Sequence[str] = (),
    fresh: bool = False,
    on_metrics: Callable[[Row], None] | None = None,
) -> None:
    """Train in the folder ``config.run`` and leave the model there. Started again, it goes on where it was.

    The arguments are those of `train`.
    """
    place = run_place(config)
    config = world.from_first(_at_one_moment(config, place) if world.rank == 0 else config)
    data = open_from(config.data)
    record = {"rank": world.rank, "world_size": world.size, "pid": os.getpid(), "host": socket.gethostname()}
    place.write(f"workers/{world.rank}.json", json.dumps(record).encode())
    train(
        config,
        data=data,
        world=world,
        folder=place,
        on_metrics=on_metrics,
        driver=driver,
        asks=asks,
        allow=allow,
        fresh=fresh,
    )
    world.wait()


def run_place(config: RunConfig) -> Place:
    """Open the folder of a run, which need not exist."""
    return open_place(config.run, storage_options=config.storage_options)


def _at_one_moment(config: RunConfig, place: Place) -> RunConfig:
    """Fix the moment as of which SOMA is read, for all workers and for every later start of the run."""
    uris = [config.data.uri] if isinstance(config.data.uri, str) else config.data.uri
    soma = config.data.soma or (SomaConfig() if any(is_soma(Path(uri).expanduser()) for uri in uris) else None)
    if soma is None or soma.timestamp_ms is not None:
        return config
    recorded = run_config(place).data.soma if CONFIG in place.names() else None
    moment = (recorded and recorded.timestamp_ms) or time.time_ns() // 1_000_000
    soma = soma.model_copy(update={"timestamp_ms": moment})
    return config.model_copy(update={"data": config.data.model_copy(update={"soma": soma})})


def is_atlas_of(run: Place, path: Path, obs_columns: Sequence[str] = ()) -> bool:
    """Say whether `path` is the whole minified atlas of a run, these columns of obs among it."""
    try:
        columns = open_atlas(path).obs.columns()
        of_run, of_atlas = (describe_model(*load_model(folder)) for folder in (run.within(MODEL), path / MODEL))
    except (FileNotFoundError, ValueError):
        return False
    return of_run == of_atlas and set(obs_columns) <= set(columns)


def minify_worker(
    run: Place,
    out: Path,
    world: World,
    asks: Asks | None = None,
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
        If `asks` says so.
    """

    def heeding(done: int, share: int) -> None:
        if asks is not None and asks.read()[1]:
            raise StoppedError(f"stopped as asked after {done} of {share} cells; all of it is kept")
        if on_progress is not None:
            on_progress(done, share)

    config = run_config(run)
    if not is_finished(run):
        raise ValueError(f"{run.uri} has no finished model: continue it with 'dist-scvi resume {run.uri}'")
    module, spec = load_model(run.within(MODEL))
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


def run_config(run: Place, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the resolved configuration of the run in the folder `run`.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If `overrides` name another run.
    """
    if any(override.partition("=")[0] == "run" for override in overrides):
        raise ValueError("a run is resumed where it lies: leave out run=, or train into a new folder with its config")
    try:
        text = run.read(CONFIG).decode()
    except FileNotFoundError:
        raise FileNotFoundError(f"{run.uri} is no run: it has no {CONFIG}; start one with 'dist-scvi train'") from None
    return read_config(text, f"{run.uri}/{CONFIG}", [*overrides, f"run={run.uri}"])


def preview(
    config: RunConfig, data: CellData, *, workers: int, allow: Sequence[str] = (), fresh: bool = False
) -> dict[str, Any]:
    """Say what a run would read, hold and do, without doing it.

    Raises
    ------
    ValueError
        As training would: sizes or a model to start from that do not fit, a number of workers that does not divide
        the lanes, another process that writes the run, or a checkpoint of another run.
    """
    place = run_place(config)
    if isinstance(place, LocalPlace):
        refuse_foreign(place.path)
    config = _at_one_moment(config, place)
    check_logger_options(config)
    refuse_if_held(place)
    try:
        checkpoint = newest_checkpoint(place.within(CHECKPOINTS), mend=False)
    except ValueError:
        if not fresh:
            raise
        checkpoint = None
    if config.start_from is None:
        spec = spec_of(config.model, config.seed, data)
    else:
        _, spec = begin(config, data, checkpoint)
    data = fit_to_spec(data, spec)
    resolved, plan = resolve(config, data, spec)
    check_world_size(plan.lanes, workers)
    beside = labelled_plan_of(resolved, spec, data, plan)
    if checkpoint is not None:
        check_same_run(checkpoint, resolved, fingerprint(data, plan, beside), allowed=allow)
    told = _described(resolved, data, plan, beside, workers)
    return told | ({"goes on": f"after {checkpoint.name}"} if checkpoint else {})


def _described(config: RunConfig, data: CellData, plan: Plan, beside: Plan | None, workers: int) -> dict[str, Any]:
    """Say what a resolved run reads, holds and does."""
    density = data.store.n_entries / data.n_cells
    entry_bytes = 2 + (2 if data.n_genes <= 1 << 16 else 4)
    window = plan.window_steps * plan.batch_size
    labels = max((len(column.vocabulary) for column in (data.label, data.batch) if column), default=1)
    epochs = config.train.max_epochs or 1
    return {
        "store": data.store.uri,
        "cells": data.n_cells,
        "genes": data.n_genes,
        **({"genes that differ": format_unmatched(data.store.unmatched)} if isinstance(data.store, Collection) else {}),
        "entries_per_cell": round(density, 1),
        "batches": len(data.batch.vocabulary) if data.batch else 1,
        "train / validation / test": " / ".join(
            str(plan.split_cells(split)) for split in ("train", "validation", "test")
        ),
        **_held_out(plan),
        "epochs": epochs,
        "steps": f"{epochs * plan.steps_per_epoch} of {plan.batch_size} cells, {plan.steps_per_epoch} an epoch",
        **({"labelled": f"{beside.n_train} cells, all in {beside.steps_per_epoch} steps"} if beside else {}),
        "lanes": f"{plan.lanes}, {plan.lanes // workers} for each of {workers} workers",
        "window": f"{window} cells, "
        + (
            "all of an epoch"
            if plan.blocks_in_window is None
            else f"{plan.blocks_in_window} blocks of {plan.block_cells} rows"
        )
        + f"; {plan.read_amplification:.1f} rows decompressed for one used",
        "diversity": _diversity(plan, labels),
        "memory for cells": f"{3 * window * density * entry_bytes / workers / 2**20:.0f} MiB in each worker",
        "memory for a step": f"{12 * plan.batch_size / workers * data.n_genes * 4 / 2**20:.0f} MiB in each worker",
        "run folder": config.run,
    }


def _held_out(plan: Plan) -> dict[str, str]:
    """Name the categories that a column holds out."""
    splits = plan.line.sampling.splits if plan.line else None
    if not isinstance(splits, ColumnSplit):
        return {}
    names = {"validation": splits.categories(VALIDATION), "test": splits.categories(TEST)}
    return {f"{split} of {splits.column.key}": ", ".join(found[:20]) or "none" for split, found in names.items()}


def _diversity(plan: Plan, labels: int) -> str:
    """Say how well a minibatch mixes the atlas, even if every block is of one label."""
    text = f"a minibatch loses at most {plan.entropy_loss_bits(labels):.3f} bit of the entropy of {labels} labels"
    if plan.diverse:
        return text
    needed = 16 if plan.shuffled else 4 * plan.batch_size
    return (
        f"{text}; the window holds {plan.blocks_in_window} blocks, fewer than the {needed} that this store needs: "
        "raise data.memory_mib, lower train.batch_size, or pack the store"
    )
