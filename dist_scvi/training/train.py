"""Train a model: open, plan, resume, step, validate, save, in order of execution.

Shape letters in this file
    n   cells of this worker's part of a minibatch
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import torch

from dist_scvi.config.schema import RunConfig, TrainConfig
from dist_scvi.errors import StoppedError
from dist_scvi.loaders import CellData, Plan
from dist_scvi.loaders.labelled_stream import labelled_stream
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.order.plan import check_world_size
from dist_scvi.loaders.reader_threads import reserve_compute_threads
from dist_scvi.loaders.stream import train_stream
from dist_scvi.metrics.metrics_file import MetricsLog, Row
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.storage.lease import Driver
from dist_scvi.storage.run_storage import RunStorage, open_run_storage
from dist_scvi.training.checkpoint import Checkpoint, check_same_run, checkpoint_files, fingerprint, restore
from dist_scvi.training.evaluate import evaluate
from dist_scvi.training.initial_model import begin, set_library_prior
from dist_scvi.training.meter import Meter
from dist_scvi.training.resolve import labelled_plan_of, open_from, resolve
from dist_scvi.training.run_folder import RunFolder, open_run_for_writing
from dist_scvi.training.run_state import RunState
from dist_scvi.training.save_requests import SaveRequests
from dist_scvi.training.schedule import Schedule, kl_weight
from dist_scvi.training.step import average_gradients, check_weights, make_optimizer, take_step
from dist_scvi.world import World


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a run."""

    module: VAE
    spec: ModelSpec
    config: RunConfig
    """Configuration with every default filled in."""
    data: CellData
    plan: Plan
    history: list[Row]
    """Metrics of rank 0; empty elsewhere."""


def train(  # noqa: C901, PLR0912, PLR0915 - the whole run, in order
    config: RunConfig,
    *,
    data: CellData | None = None,
    world: World | None = None,
    folder: RunStorage | Path | None = None,
    on_metrics: Callable[[Row], None] | None = None,
    start: tuple[VAE, ModelSpec] | None = None,
    driver: Driver | None = None,
    requests: SaveRequests | None = None,
    allow: Sequence[str] = (),
    fresh: bool = False,
) -> Trained:
    """Train a model to the end of ``train.max_epochs``, from the newest checkpoint if there is one.

    Every worker calls it with the same arguments, except for its rank in `world`. The result does not depend on the
    number of workers beyond the rounding of sums.

    Parameters
    ----------
    config
        The run.
    data
        Open cells, for instance an AnnData in memory; by default ``config.data`` is opened.
    world
        Rank and device of this worker; one worker by default.
    folder
        Receives checkpoints, metrics and the model; without it nothing is written.
    on_metrics
        Called on rank 0 with each line of metrics.
    start
        Model to train in place, instead of one with the weights of the seed or of ``config.start_from``.
    driver
        The process that started the workers, this one by default; see `claim`.
    requests
        Requests to this worker to save, or to save and stop.
    allow
        Keys that may differ from those of the checkpoint; see `check_same_run`.
    fresh
        Start from the beginning if checkpoints were lost or none verifies.

    Raises
    ------
    ValueError
        If the cells are not raw counts, sizes or the model do not fit, or the folder belongs to another run or is being
        written by another process.
    FloatingPointError
        If the loss is not finite; nothing is saved after it.
    StoppedError
        If a stop was requested; all steps until then are saved.
    OSError
        If storage fails after all retries.
    """
    # --- open and plan
    world, requests, data = world or World(), requests or SaveRequests(), data or open_from(config.data)
    storage = None if folder is None else open_run_storage(folder)
    reserved = reserve_compute_threads(torch.get_num_threads() if world.device.type == "cpu" else 1)
    with reserved, open_run_for_writing(storage, world, driver=driver, fresh=fresh) as (writer, checkpoint):
        module, spec = start or begin(config, data, checkpoint)
        data = fit_to_spec(data, spec)
        config, plan = resolve(config, data, spec)
        check_world_size(plan.lanes, world.size)
        labelled_plan, settings = labelled_plan_of(config, spec, data, plan), config.train
        # From rank 0: a worker that refused the checkpoint alone would leave the others waiting in a collective.
        data_fingerprint = world.from_first(fingerprint(data, plan, labelled_plan) if world.rank == 0 else {})

        # --- the model, and the state that the run resumes from
        module = _prepare(module, settings, world)
        optimizer = make_optimizer(module, settings)
        model = average_gradients(module, world, settings)
        meter = Meter(world, module, settings.classification_ratio)
        state = RunState(Schedule(settings.lr))
        if checkpoint is not None:
            check_same_run(checkpoint, config, data_fingerprint, allowed=allow)
            restore(checkpoint, module, optimizer)
            state = _resume(checkpoint, config, plan, meter, writer, world)
        elif start is None and config.start_from is None and module.latent_library:
            set_library_prior(module, data, world, timeout_s=config.data.timeout_s)
        n_steps = _total_steps(config, plan)
        ended = state.done >= n_steps or state.schedule.ends(settings)
        log = writer.begin(config, state.done, ended=ended) if writer else MetricsLog(None, step=0)
        if writer:
            requests.every(settings.save_every_n_minutes)

        def log_row(row: Row) -> None:
            if world.rank == 0:
                writer.log_row(row) if writer else log.write(row)
                if on_metrics is not None:
                    on_metrics(row)

        # --- step
        requested, minibatches = torch.zeros(2), _minibatches(config, data, plan, labelled_plan, world, state.done)
        for minibatch, labelled in meter.timed(iter(()) if ended else minibatches):
            epoch, end_of_epoch = minibatch.epoch, minibatch.step == plan.steps_per_epoch - 1
            state.done = epoch * plan.steps_per_epoch + minibatch.step + 1
            weight = kl_weight(settings, epoch, state.done - 1)
            for group in optimizer.param_groups:
                group["lr"] = state.schedule.lr
            taken = take_step(
                model,
                module,
                optimizer,
                minibatch,
                labelled,
                settings,
                seed=config.seed,
                kl_weight=weight,
                world=world,
                requests=requests.read(),
            )
            meter.add(taken)
            # Requests are summed over workers with the losses; those of this step would wait for the device.
            to_save, to_stop = (number > 0 for number in requested.tolist())
            requested = taken.requests

            # --- log, validate, save
            where = _where(state, epoch, plan, settings) | {"kl_weight": weight, "lr": state.schedule.lr}
            last = state.done == n_steps
            validating = end_of_epoch and _validates(settings, epoch, last=last)
            saving = validating or to_save or to_stop or last or state.done % settings.save_every_n_steps == 0
            if end_of_epoch or last or state.done % settings.log_every_n_steps == 0:
                log_row({"kind": "train", **where, **meter.read(state.done)})
            if end_of_epoch:
                log_row({"kind": "epoch", **where, **meter.read_epoch()})
            if saving:
                meter.gather(state.done)
                check_weights(module, state.done)
            if validating and plan.split_cells("validation"):
                found = evaluate(module, data, plan, "validation", world, config, weight)
                row = {"kind": "validation", **_where(state, epoch, plan, settings), **found}
                improved = state.after_validation(row, settings, module)
                log_row(row | {"ends": state.schedule.ends(settings)})
                if improved and writer:
                    writer.save_best(state.done, module, spec, keep=settings.keep_checkpoints)
            if saving and writer:
                values = state.to_dict(config, plan, spec) | {"data": data_fingerprint, "meter": meter.state}
                writer.save(state.done, checkpoint_files(module, optimizer, values), keep=settings.keep_checkpoints)
                requests.saved()
            if last or state.schedule.ends(settings):
                break
            if to_stop:
                if writer:
                    writer.wait()
                world.wait()  # a launcher may end all workers when the first one exits, also while rank 0 still writes
                raise StoppedError(f"stopped on request after step {state.done} of {n_steps}; all of it is saved")

        # --- end
        if state.best is not None:
            module.load_state_dict(state.best)
        module.eval()
        if writer:
            ends = _reason_to_end(state, settings, plan)
            writer.finish(module, spec, epoch=state.done // plan.steps_per_epoch, step=state.done, ends=ends)
        return Trained(module, spec, config, data, plan, log.rows)


def _prepare(module: VAE, settings: TrainConfig, world: World) -> VAE:
    """Move the network to the device of this worker and set it to training mode."""
    module = module.to(world.device).train()
    module.kernels = "compiled" if settings.kernels == "compiled" else "torch"
    module.frozen = {name: mask.to(world.device) for name, mask in module.frozen.items()}
    return module


def _resume(
    checkpoint: Checkpoint, config: RunConfig, plan: Plan, meter: Meter, writer: RunFolder | None, world: World
) -> RunState:
    """Return the saved state of the run, and set the sums of `meter` to the saved ones."""
    saved, settings = checkpoint.state, config.train
    epochs_begun = saved["epoch"] + (saved["step"] > 0)
    if epochs_begun > (settings.max_epochs or 1):
        raise ValueError(
            f"{checkpoint.name} is already in epoch {epochs_begun}, beyond max_epochs={settings.max_epochs}: raise "
            "train.max_epochs, or train into a new folder with run=PATH"
        )
    state = RunState.from_saved(saved, plan)
    if settings.max_steps is not None and state.done > settings.max_steps:
        raise ValueError(
            f"{checkpoint.name} is already at step {state.done}, beyond max_steps={settings.max_steps}: raise "
            "train.max_steps, or train into a new folder with run=PATH"
        )
    meter.state = saved["meter"]
    if saved["config"]["train"]["lr"] != settings.lr:  # --allow train.lr
        state.schedule = replace(state.schedule, lr=settings.lr)
    if settings.load_best and state.best_step is not None:
        state.best = world.from_first(writer.best(state.best_step) if writer else None)
    return state


def _total_steps(config: RunConfig, plan: Plan) -> int:
    n_steps = (config.train.max_epochs or 1) * plan.steps_per_epoch
    return min(n_steps, config.train.max_steps or n_steps)


def _where(state: RunState, epoch: int, plan: Plan, settings: TrainConfig) -> Row:
    """Return the position in the run, with which each line of metrics begins."""
    return {
        "epoch": epoch,
        "step": state.done,
        "steps_per_epoch": plan.steps_per_epoch,
        "max_epochs": settings.max_epochs or 1,
    }


def _minibatches(
    config: RunConfig, data: CellData, plan: Plan, labelled_plan: Plan | None, world: World, done: int
) -> Iterator[tuple[MiniBatch, MiniBatch | None]]:
    """Yield this worker's part of every step after `done`, with its part of the labelled cells of the step."""
    n_epochs, timeout_s = config.train.max_epochs or 1, config.data.timeout_s
    share = {"rank": world.rank, "world_size": world.size}
    labelled: Iterator[MiniBatch | None] = repeat(None)
    if labelled_plan is not None:
        n_left = n_epochs * plan.steps_per_epoch - done
        labelled = labelled_stream(data, labelled_plan, **share, first_step=done, n_steps=n_left, timeout_s=timeout_s)
    epoch, step = divmod(done, plan.steps_per_epoch)
    stream = train_stream(data, plan, **share, epoch=epoch, step=step, n_epochs=n_epochs, timeout_s=timeout_s)
    yield from zip(stream, labelled, strict=False)


def _validates(settings: TrainConfig, epoch: int, *, last: bool) -> bool:
    """Return whether an epoch ends with a validation: each n-th, and the last of the run."""
    every = settings.check_val_every_n_epoch
    return last or (every > 0 and (epoch + 1) % every == 0)


def _reason_to_end(state: RunState, settings: TrainConfig, plan: Plan) -> str:
    if state.schedule.ends(settings):
        return "early_stopping"
    return "max_epochs" if state.done >= (settings.max_epochs or 1) * plan.steps_per_epoch else "max_steps"
