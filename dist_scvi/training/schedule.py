"""The weight of the KL term, the learning rate, and early stopping in the course of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dist_scvi.config.schema import TrainConfig

_LEAST_CHANGE = 1e-8
"""Smallest change of the learning rate, as in torch."""


def kl_weight(settings: TrainConfig, epoch: int, step: int) -> float:
    """Return the weight of the KL term at `step` of the run, in `epoch`: it rises linearly in the warm-up.

    scvi-tools 1.4.2, train/_trainingplans.py: _compute_kl_weight.
    """
    done, warmup = step, settings.n_steps_kl_warmup
    if settings.n_epochs_kl_warmup is not None:
        done, warmup = epoch, settings.n_epochs_kl_warmup
    if not warmup or done >= warmup:
        return settings.max_kl_weight
    return settings.min_kl_weight + (settings.max_kl_weight - settings.min_kl_weight) * (done / warmup)


@dataclass(frozen=True, slots=True)
class Watch:
    """The best value so far, and the number of later values that were not better."""

    best: float | None = None
    waited: int = 0

    def after(self, value: float, *, least: float) -> "Watch":
        """Add a value; lower is better, and one that is not finite is never better."""
        if math.isfinite(value) and (self.best is None or value < self.best - least):
            return Watch(value)
        return Watch(self.best, self.waited + 1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate and early stopping after the validations so far. It is part of a checkpoint."""

    lr: float
    plateau: Watch = field(default_factory=Watch)
    """State of the metric that the learning rate depends on."""
    monitor: Watch = field(default_factory=Watch)
    """State of the metric that early stopping depends on, with the opposite sign if higher is better."""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Schedule":
        """Return the schedule from the result of ``dataclasses.asdict``."""
        return cls(plain["lr"], Watch(**plain["plateau"]), Watch(**plain["monitor"]))

    def after(self, settings: TrainConfig, epoch: int, metrics: Mapping[str, float]) -> "Schedule":
        """Return the schedule after one more validation, at the end of `epoch`, with metrics named as in scvi-tools.

        Raises
        ------
        ValueError
            If the metric to watch is not among them.

        Notes
        -----
        The learning rate follows torch's ReduceLROnPlateau with absolute thresholds, the end Lightning's EarlyStopping,
        as in scvi-tools 1.4.2, train/_trainingplans.py and _callbacks.py; both count validations.
        """
        after = self._lowered(settings, metrics) if settings.reduce_lr_on_plateau else self
        if epoch < settings.early_stopping_warmup_epochs:
            return after
        name = settings.early_stopping_monitor
        if name not in metrics:
            raise ValueError(
                f"train.early_stopping_monitor={name}: no cell of the validation has a label; watch another one of "
                f"{', '.join(metrics)}, or validate on more cells"
            )
        value = metrics[name] if settings.early_stopping_mode == "min" else -metrics[name]
        return replace(after, monitor=self.monitor.after(value, least=settings.early_stopping_min_delta))

    def _lowered(self, settings: TrainConfig, metrics: Mapping[str, float]) -> "Schedule":
        watch = self.plateau.after(metrics[settings.lr_scheduler_metric], least=settings.lr_threshold)
        if watch.waited <= settings.lr_patience:
            return replace(self, plateau=watch)
        lower = max(self.lr * settings.lr_factor, settings.lr_min)
        return replace(self, lr=lower if self.lr - lower > _LEAST_CHANGE else self.lr, plateau=Watch(watch.best))

    def ends(self, settings: TrainConfig) -> bool:
        """Return whether the run ends here."""
        return settings.early_stopping and self.monitor.waited >= settings.early_stopping_patience
