"""Describe what a run would read, keep in memory and compute, as printed by ``--dry-run``."""

from collections.abc import Sequence
from typing import Any

from dist_scvi.config.schema import RunConfig
from dist_scvi.loaders import CellData, Plan
from dist_scvi.loaders.order.column_sampling import ColumnSplit
from dist_scvi.loaders.order.plan import check_world_size
from dist_scvi.loaders.order.seeded_split import TEST, VALIDATION
from dist_scvi.loaders.stores.collection import Collection, format_unmatched
from dist_scvi.metrics.run_record import CHECKPOINTS
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_spec import spec_of
from dist_scvi.storage.lease import check_not_locked
from dist_scvi.storage.run_storage import LocalStorage
from dist_scvi.training.checkpoint import check_same_run, fingerprint, newest_checkpoint
from dist_scvi.training.initial_model import begin
from dist_scvi.training.resolve import check_config, labelled_plan_of, resolve
from dist_scvi.training.run_folder import check_folder_is_free
from dist_scvi.training.worker import fix_soma_timestamp, storage_of_run
from dist_scvi.transfer.scarches import reference_obstacle


def preview(
    config: RunConfig, data: CellData, *, workers: int, allow: Sequence[str] = (), fresh: bool = False
) -> dict[str, Any]:
    """Describe what a run would read, keep in memory and do, without doing it.

    Raises
    ------
    ValueError
        As training would: sizes or a model to start from that do not fit, a number of workers that does not divide
        the lanes, another process that writes the run, or a checkpoint of another run.
    """
    check_config(config)
    place = storage_of_run(config)
    if isinstance(place, LocalStorage):
        check_folder_is_free(place.path)
    config = fix_soma_timestamp(config, place)
    check_not_locked(place)
    # This process does not have the lease, so it must not rename damaged checkpoints.
    try:
        checkpoint = newest_checkpoint(place.subfolder(CHECKPOINTS), mend=False)
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
    labelled_plan = labelled_plan_of(resolved, spec, data, plan)
    if checkpoint is not None:
        check_same_run(checkpoint, resolved, fingerprint(data, plan, labelled_plan), allowed=allow)
    found = _describe(resolved, data, plan, labelled_plan, workers)
    return found | ({"goes on": f"after {checkpoint.name}"} if checkpoint else {})


def _describe(
    config: RunConfig, data: CellData, plan: Plan, labelled_plan: Plan | None, workers: int
) -> dict[str, Any]:
    """Describe what a resolved run reads, keeps in memory and does."""
    density, obstacle = data.store.n_entries / data.n_cells, reference_obstacle(config.model)
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
        **(
            {"labelled": f"{labelled_plan.n_train} cells, all in {labelled_plan.steps_per_epoch} steps"}
            if labelled_plan
            else {}
        ),
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
        "reference": "fit for mapping later batches"
        if obstacle is None
        else f"unfit for mapping: {obstacle}; train --reference makes one that is",
        "run folder": config.run,
    }


def _held_out(plan: Plan) -> dict[str, str]:
    """Return the held-out categories of a column."""
    splits = plan.line.sampling.splits if plan.line else None
    if not isinstance(splits, ColumnSplit):
        return {}
    names = {"validation": splits.categories(VALIDATION), "test": splits.categories(TEST)}
    return {f"{split} of {splits.column.key}": ", ".join(found[:20]) or "none" for split, found in names.items()}


def _diversity(plan: Plan, labels: int) -> str:
    """Describe how well a minibatch mixes the atlas, even if every block is of one label."""
    text = f"a minibatch loses at most {plan.entropy_loss_bits(labels):.3f} bit of the entropy of {labels} labels"
    if plan.diverse:
        return text
    needed = 16 if plan.shuffled else 4 * plan.batch_size
    return (
        f"{text}; the window holds {plan.blocks_in_window} blocks, fewer than the {needed} that this store needs: "
        "raise data.memory_mib, lower train.batch_size, or pack the store"
    )
