"""Training, in order of execution: open, plan, resume, step, validate, save.

Shape letters in this file
    n   cells of this worker's part of a minibatch
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from dist_scvi.loaders import CellData, Plan, make_plan, open_data, open_store
from dist_scvi.loaders.plan import Split, check_world_size
from dist_scvi.loaders.sampling import open_sampling
from dist_scvi.loaders.soma_store import SomaOptions
from dist_scvi.loaders.store import read_names
from dist_scvi.loaders.strata import shares_of
from dist_scvi.loaders.stream import split_stream, train_stream

from .checkpoint import Checkpoint, check_same_run, fingerprint, newest_checkpoint, restore, save_checkpoint
from .config import DataConfig, RunConfig
from .metrics import Meter, MetricsLog, Row
from .noise import row_normal, step_noise
from .spec import ModelSpec, spec_of
from .step import average_gradients, take_step
from .vae import VAE
from .world import World

_VALIDATION_DRAW = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run leaves."""

    module: VAE
    spec: ModelSpec
    config: RunConfig
    """With every default filled in."""
    data: CellData
    history: list[Row]
    """Metrics of rank 0; empty elsewhere."""


def train(  # noqa: C901 - the whole story, in order
    config: RunConfig,
    *,
    data: CellData | None = None,
    world: World | None = None,
    folder: Path | None = None,
    on_metrics: Callable[[Row], None] | None = None,
) -> Trained:
    """Train SCVI to the end of ``train.max_epochs``, from the newest checkpoint if there is one.

    Every worker calls it with the same arguments, but for its place in `world`. The result does not depend on the
    number of workers beyond the rounding of sums.

    Parameters
    ----------
    config
        The run.
    data
        Cells already opened, for instance an AnnData in memory; else ``config.data`` is opened.
    world
        This worker's place; alone by default.
    folder
        Receives checkpoints and metrics; without it nothing is written.
    on_metrics
        Called on rank 0 with each line of metrics.

    Raises
    ------
    ValueError
        If the cells are no raw counts, sizes do not fit, or the folder belongs to another run.
    FloatingPointError
        If the loss is not finite; nothing is saved after it.
    """
    # --- open and plan
    world = world or World()
    data = data or open_from(config.data)
    config, plan = resolve(config, data)
    check_world_size(plan.lanes, world.size)
    steps, known = plan.steps_per_epoch, fingerprint(data, plan)

    # --- the model, and where it was
    spec = spec_of(config.model, config.seed, data)
    module = spec.build().to(world.device)
    optimizer = torch.optim.Adam(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=config.train.lr,
        eps=config.train.eps,
        weight_decay=config.train.weight_decay,
        fused=True,
    )
    model = average_gradients(module, world)
    checkpoint = world.from_first(_latest(folder, world))
    epoch, step = 0, 0
    if isinstance(checkpoint, ValueError):
        raise checkpoint
    if checkpoint is not None:
        check_same_run(checkpoint, config, known)
        restore(checkpoint, module, optimizer)
        epoch, step = checkpoint.state["epoch"], checkpoint.state["step"]
        if epoch + (step > 0) > (config.train.max_epochs or 1):
            raise ValueError(
                f"{checkpoint.path} is already in epoch {epoch + (step > 0)}, beyond max_epochs="
                f"{config.train.max_epochs}: raise train.max_epochs, or train into a new folder with run=PATH"
            )
    log = _open_log(folder, config, world, epoch * steps + step)
    meter = Meter(world)

    def save(at: int) -> None:
        if folder is not None and world.rank == 0:
            save_checkpoint(
                folder / "checkpoints",
                module=module,
                optimizer=optimizer,
                epoch=at // steps,
                step=at % steps,
                steps_per_epoch=steps,
                config=config,
                data=known,
            )

    def tell(row: Row) -> None:
        if world.rank == 0:
            log.write(row)
            if on_metrics is not None:
                on_metrics(row)

    # --- step
    max_epochs = config.train.max_epochs or 1
    stream = train_stream(
        data,
        plan,
        rank=world.rank,
        world_size=world.size,
        epoch=epoch,
        step=step,
        n_epochs=max_epochs,
        timeout_s=config.data.timeout_s,
    )
    model.train()
    for minibatch in meter.timed(stream):
        at = minibatch.epoch * steps + minibatch.step
        weight = kl_weight(config, minibatch.epoch, at)
        noise = step_noise(
            config.seed, minibatch.epoch, minibatch.step, minibatch.micro_keys, minibatch.micro_n, world.device
        )
        meter.add(take_step(model, module, optimizer, minibatch, noise, weight, world))

        # --- tell, validate, save
        done, last = at + 1, minibatch.step == steps - 1
        where = {"epoch": minibatch.epoch, "step": done, "steps_per_epoch": steps, "max_epochs": max_epochs}
        saving = done % config.train.save_every_n_steps == 0
        validating = last and _validates(config, minibatch.epoch, max_epochs)
        if done % config.train.log_every_n_steps == 0 or saving or last:
            tell({"kind": "train", **where, "kl_weight": weight, **meter.read(where)})
        if validating and plan.split_cells("validation"):
            tell({"kind": "validation", **where, **evaluate(module, data, plan, "validation", world, config)})
        if saving or validating:
            save(done)

    model.eval()
    return Trained(module, spec, config, data, log.rows)


def resolve(config: RunConfig, data: CellData) -> tuple[RunConfig, Plan]:
    """Fill in what the configuration leaves to the data, so that it stands in the run's record.

    Returns
    -------
    RunConfig, Plan
        ``train.max_epochs`` by the rule of scvi-tools 1.4.2 (model/_utils.py: get_max_epochs_heuristic), the length of
        the KL warm-up, the validation share, and the sizes of blocks and windows.
    """
    settings, plan = config.train, plan_of(config, data)
    shares = (None, None) if config.data.split_key else shares_of(settings.train_size, settings.validation_size)
    max_epochs = settings.max_epochs or max(1, min(round(20_000 / data.n_cells * 400), 400))
    warmup = settings.n_steps_kl_warmup
    if warmup is None and settings.n_epochs_kl_warmup is None:
        warmup = max(1, min(400, max_epochs // 2 or 1) * plan.steps_per_epoch)
    if settings.n_steps_kl_warmup is not None and settings.n_epochs_kl_warmup is not None:
        raise ValueError("train.n_steps_kl_warmup and train.n_epochs_kl_warmup are both set: choose one")
    return (
        config.model_copy(
            update={
                "data": config.data.model_copy(
                    update={"block_cells": plan.block_cells, "window_cells": plan.window_steps * plan.batch_size}
                ),
                "train": settings.model_copy(
                    update={
                        "max_epochs": max_epochs,
                        "n_steps_kl_warmup": warmup,
                        "train_size": shares[0],
                        "validation_size": shares[1],
                    }
                ),
            }
        ),
        plan,
    )


def plan_of(config: RunConfig, data: CellData) -> Plan:
    """Lay out the run; obs columns that say which cells are drawn, and how often, are read once."""
    settings = config.train
    sampling = open_sampling(
        data.store,
        seed=config.seed,
        train_size=settings.train_size,
        validation_size=settings.validation_size,
        split_key=config.data.split_key,
        holdout_key=config.data.holdout_key,
        weight_key=config.data.weight_key,
        balance_key=config.data.balance_key,
    )
    return make_plan(
        n_cells=data.n_cells,
        n_entries=data.store.n_entries,
        n_genes=data.n_genes,
        batch_size=settings.batch_size,
        lanes=settings.lanes,
        micro_cells=settings.micro_cells,
        train_size=None if sampling else settings.train_size,
        validation_size=None if sampling else settings.validation_size,
        sampling=sampling,
        seed=config.seed,
        memory_bytes=config.data.memory_mib << 20,
        block_cells=config.data.block_cells,
        window_cells=config.data.window_cells,
        chunk_cells=data.store.chunk_cells,
        shuffled=data.store.shuffled,
    )


def open_from(config: DataConfig) -> CellData:
    """Open the cells that a configuration names.

    Raises
    ------
    FileNotFoundError, ValueError
        As `open_store` and `open_data`, or if the file of genes is not there.
    """
    soma = None if config.soma is None else SomaOptions(**config.soma.model_dump())
    genes = read_names(Path(config.genes)) if isinstance(config.genes, str) else config.genes
    store = open_store(
        config.uri,
        layer=config.layer,
        genes=genes,
        join=config.join,
        source_key=config.source_key,
        soma=soma,
        storage_options=config.storage_options,
    )
    return open_data(
        store,
        batch_key=config.batch_key,
        labels_key=config.labels_key,
        categorical_covariate_keys=config.categorical_covariate_keys,
        continuous_covariate_keys=config.continuous_covariate_keys,
    )


def kl_weight(config: RunConfig, epoch: int, step: int) -> float:
    """Weight of the KL term at `step` of the run: it rises linearly from 0 to 1."""
    if config.train.n_epochs_kl_warmup is not None:
        return min(1.0, epoch / config.train.n_epochs_kl_warmup)
    return min(1.0, step / (config.train.n_steps_kl_warmup or 1))


@torch.no_grad()
def evaluate(
    module: VAE, data: CellData, plan: Plan, split: Split, world: World, config: RunConfig
) -> dict[str, float]:
    """Average the loss terms over a split, at one draw of z per cell that is keyed by the cell.

    Returns
    -------
    dict
        ``elbo`` (as scvi-tools logs it: reconstruction + kl, lower is better), ``reconstruction``, ``kl`` and
        ``cells``: exact over all workers.
    """
    training = module.training
    module.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    for minibatch in split_stream(
        data, plan, split, rank=world.rank, world_size=world.size, timeout_s=config.data.timeout_s
    ):
        cells = minibatch.to(world.device)
        qzm_nk, qzv_nk = module.encode(cells.counts_ng)
        normal = row_normal(config.seed, minibatch.row_n, _VALIDATION_DRAW, config.model.n_latent)
        terms = module.terms(cells, qzm_nk, qzv_nk, torch.from_numpy(normal).to(world.device))
        sums += torch.stack(
            [terms.reconstruction_n.double().sum(), terms.kl_n.double().sum(), sums.new_tensor(minibatch.n_cells)]
        )
    module.train(training)
    reconstruction, kl, cells_seen = world.total(sums).tolist()
    mean = [value / max(cells_seen, 1) for value in (reconstruction, kl)]
    return {"elbo": sum(mean), "reconstruction": mean[0], "kl": mean[1], "cells": cells_seen}


def _latest(folder: Path | None, world: World) -> Checkpoint | ValueError | None:
    """Find where to begin, on rank 0; a refusal is handed to all workers rather than left for them to wait on."""
    if folder is None or world.rank != 0:
        return None
    try:
        return newest_checkpoint(folder / "checkpoints")
    except ValueError as error:
        return error


def _open_log(folder: Path | None, config: RunConfig, world: World, step: int) -> MetricsLog:
    """Begin the record of a run, on rank 0: its resolved configuration, its workers, its metrics."""
    if folder is None or world.rank != 0:
        return MetricsLog(None, step=step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return MetricsLog(folder / "metrics.jsonl", step=step)


def _validates(config: RunConfig, epoch: int, max_epochs: int) -> bool:
    every = config.train.check_val_every_n_epoch
    return epoch == max_epochs - 1 or (every > 0 and (epoch + 1) % every == 0)
