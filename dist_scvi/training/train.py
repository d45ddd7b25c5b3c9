"""Training, in order of execution: open, plan, resume, step, validate, save.

Shape letters in this file
    n   cells of this worker's part of a minibatch
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor

from dist_scvi.config.schema import RunConfig
from dist_scvi.errors import StoppedError
from dist_scvi.loaders import CellData, Plan
from dist_scvi.loaders.labelled_stream import labelled_stream
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.order.plan import check_world_size
from dist_scvi.loaders.stream import train_stream
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.storage.lease import Driver
from dist_scvi.storage.run_storage import RunStorage, open_run_storage
from dist_scvi.training.checkpoint import check_same_run, checkpoint_files, fingerprint, restore
from dist_scvi.training.evaluate import evaluate
from dist_scvi.training.initial_model import begin, set_library_prior
from dist_scvi.training.metrics import Meter, MetricsLog, Row, named
from dist_scvi.training.resolve import labelled_plan_of, open_from, resolve
from dist_scvi.training.run_folder import open_run_for_writing
from dist_scvi.training.save_requests import SaveRequests
from dist_scvi.training.schedule import Schedule, kl_weight
from dist_scvi.training.step import average_gradients, check_weights, make_optimizer, take_step
from dist_scvi.world import World


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run leaves."""

    module: VAE
    spec: ModelSpec
    config: RunConfig
    """With every default filled in."""
    data: CellData
    plan: Plan
    history: list[Row]
    """Metrics of rank 0; empty elsewhere."""


def train(  # noqa: C901, PLR0912, PLR0915 - the whole story, in order
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
        Receives checkpoints, metrics and the model; without it nothing is written.
    on_metrics
        Called on rank 0 with each line of metrics.
    start
        What to begin with, and to train in place, rather than the weights of the seed or of ``config.start_from``.
    driver
        The process that started the workers, this one by default; see `claim`.
    asks
        Through which others ask this worker for a save, or a save and the end.
    allow
        Keys that may differ from those of the checkpoint; see `check_same_run`.
    fresh
        Begin anew if checkpoints were lost or none verifies.

    Raises
    ------
    ValueError
        If the cells are no raw counts, sizes or the model do not fit, or the folder belongs to another run or is being
        written by another process.
    FloatingPointError
        If the loss is not finite; nothing is saved after it.
    StoppedError
        If it was asked to stop; what was done is saved.
    OSError
        If storage fails for good.
    """
    # --- open and plan
    world, requests, data = world or World(), requests or SaveRequests(), data or open_from(config.data)
    place = None if folder is None else open_run_storage(folder)
    with open_run_for_writing(place, world, driver=driver, fresh=fresh) as (writer, checkpoint):
        module, spec = start or begin(config, data, checkpoint)
        data = fit_to_spec(data, spec)
        config, plan = resolve(config, data, spec)
        check_world_size(plan.lanes, world.size)
        beside = labelled_plan_of(config, spec, data, plan)
        settings, steps = config.train, plan.steps_per_epoch
        known = world.from_first(fingerprint(data, plan, beside) if world.rank == 0 else {})

        # --- the model, and where it was
        module = module.to(world.device).train()
        module.kernels = "compiled" if settings.kernels == "compiled" else "torch"
        module.frozen = {name: mask.to(world.device) for name, mask in module.frozen.items()}
        optimizer = make_optimizer(module, settings)
        model = average_gradients(module, world, settings)
        max_epochs, epoch, step = settings.max_epochs or 1, 0, 0
        schedule, meter = Schedule(settings.lr), Meter(world, module, settings.classification_ratio)
        best: dict[str, Tensor] | None = None
        best_step: int | None = None
        if checkpoint is not None:
            check_same_run(checkpoint, config, known, allowed=allow)
            restore(checkpoint, module, optimizer)
            kept = checkpoint.state
            epoch, step, best_step, meter.state = kept["epoch"], kept["step"], kept["best_step"], kept["meter"]
            if epoch + (step > 0) > max_epochs:
                raise ValueError(
                    f"{checkpoint.name} is already in epoch {epoch + (step > 0)}, beyond max_epochs={max_epochs}: "
                    "raise train.max_epochs, or train into a new folder with run=PATH"
                )
            schedule = Schedule.from_plain(kept["schedule"])
            if kept["config"]["train"]["lr"] != settings.lr:  # allowed to change
                schedule = replace(schedule, lr=settings.lr)
            if settings.load_best and best_step is not None:
                best = world.from_first(writer.best(best_step) if writer else None)
        elif start is None and config.start_from is None and module.latent_library:
            set_library_prior(module, data, world, timeout_s=config.data.timeout_s)
        ended = epoch >= max_epochs or schedule.ends(settings)
        log = writer.begin(config, epoch * steps + step, ended=ended) if writer else MetricsLog(None, step=0)
        if writer:
            requests.every(settings.save_every_n_minutes)

        def tell(row: Row) -> None:
            if world.rank == 0:
                writer.tell(row) if writer else log.write(row)
                if on_metrics is not None:
                    on_metrics(row)

        # --- step
        done, asked = epoch * steps + step, torch.zeros(2)
        parts = _minibatches(config, data, plan, beside, world, epoch, step)
        for minibatch, labelled in meter.timed(iter(()) if ended else parts):
            done, last = minibatch.epoch * steps + minibatch.step + 1, minibatch.step == steps - 1
            weight = kl_weight(settings, minibatch.epoch, done - 1)
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr
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
                asked=requests.read(),
            )
            meter.add(taken)
            # What was asked in the step before is read now, when it has come in and nothing waits for it.
            to_save, to_stop = (number > 0 for number in asked.tolist())
            asked = taken.asked

            # --- tell, validate, save
            where = {"epoch": minibatch.epoch, "step": done, "steps_per_epoch": steps, "max_epochs": max_epochs}
            rates = {"kl_weight": weight, "lr": schedule.lr}
            validating = last and _validates(config, minibatch.epoch, max_epochs)
            saving = validating or to_save or to_stop or done % settings.save_every_n_steps == 0
            if done % settings.log_every_n_steps == 0 or last:
                tell({"kind": "train", **where, **rates, **meter.read(done)})
            if last:
                tell({"kind": "epoch", **where, **rates, **meter.read_epoch()})
            if saving:
                meter.gather(done)
                check_weights(module, done)
            if validating and plan.split_cells("validation"):
                found = evaluate(module, data, plan, "validation", world, config, weight)
                row = {"kind": "validation", **where, **found}
                before, schedule = schedule, schedule.after(settings, minibatch.epoch, named(row))
                tell(row | {"ends": schedule.ends(settings)})
                if schedule.monitor.best != before.monitor.best:
                    best_step = done
                    if settings.load_best:
                        best = {name: value.cpu().clone() for name, value in module.state_dict().items()}
                    if writer:
                        writer.save_best(done, module, spec, keep=settings.keep_checkpoints)
            if saving and writer:
                state = {
                    "epoch": done // steps,
                    "step": done % steps,
                    "config": config.model_dump(mode="json"),
                    "data": known,
                    "spec": spec.model_dump(mode="json"),
                    "schedule": asdict(schedule),
                    "meter": meter.state,
                    "best_step": best_step,
                }
                writer.save(done, checkpoint_files(module, optimizer, state), keep=settings.keep_checkpoints)
                requests.saved()
            if schedule.ends(settings):
                break
            if to_stop and done < max_epochs * steps:
                if writer:
                    writer.wait()
                world.wait()  # a launcher may end all workers when the first one leaves
                raise StoppedError(f"stopped as asked after step {done} of {max_epochs * steps}; all of it is saved")

        if best is not None:
            module.load_state_dict(best)
        module.eval()
        if writer:
            ends = "early_stopping" if schedule.ends(settings) else "max_epochs"
            writer.finish(module, spec, epoch=done // steps, step=done, ends=ends)
        return Trained(module, spec, config, data, plan, log.rows)


def _minibatches(
    config: RunConfig, data: CellData, plan: Plan, beside: Plan | None, world: World, epoch: int, step: int
) -> Iterator[tuple[MiniBatch, MiniBatch | None]]:
    """Yield this worker's part of every step that is left, and of the labelled cells beside it."""
    done, n_epochs, timeout_s = epoch * plan.steps_per_epoch + step, config.train.max_epochs or 1, config.data.timeout_s
    where = {"rank": world.rank, "world_size": world.size}
    labelled: Iterator[MiniBatch | None] = repeat(None)
    if beside is not None:
        n_steps = n_epochs * plan.steps_per_epoch - done
        labelled = labelled_stream(data, beside, **where, first_step=done, n_steps=n_steps, timeout_s=timeout_s)
    stream = train_stream(data, plan, **where, epoch=epoch, step=step, n_epochs=n_epochs, timeout_s=timeout_s)
    yield from zip(stream, labelled, strict=False)


def _validates(config: RunConfig, epoch: int, max_epochs: int) -> bool:
    every = config.train.check_val_every_n_epoch
    return epoch == max_epochs - 1 or (every > 0 and (epoch + 1) % every == 0)
