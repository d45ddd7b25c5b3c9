"""The state of a run besides weights and optimizer, which is part of each checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from dist_scvi.config.schema import RunConfig, TrainConfig
from dist_scvi.loaders import Plan
from dist_scvi.metrics.history import values_by_name
from dist_scvi.metrics.metrics_file import Row
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.training.schedule import Schedule


@dataclass(slots=True)
class RunState:
    """Position of a run, its schedule, and its best validation."""

    schedule: Schedule
    done: int = 0
    """Steps taken since the start of the run."""
    best_step: int | None = None
    """Steps done at the best validation."""
    best: dict[str, Tensor] | None = None
    """The weights at that validation, if the run ends with them."""

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any], plan: Plan) -> "RunState":
        """Return the state that `to_dict` returned as plain values."""
        done = saved["epoch"] * plan.steps_per_epoch + saved["step"]
        return cls(Schedule.from_plain(saved["schedule"]), done, saved["best_step"])

    def to_dict(self, config: RunConfig, plan: Plan, spec: ModelSpec) -> dict[str, Any]:
        """Return the state as plain values, together with the run and the model that it belongs to."""
        return {
            **self.position(plan),
            "config": config.model_dump(mode="json"),
            "spec": spec.model_dump(mode="json"),
            "schedule": asdict(self.schedule),
            "best_step": self.best_step,
        }

    def position(self, plan: Plan) -> dict[str, int]:
        """Return the next ``epoch`` and ``step``."""
        epoch, step = divmod(self.done, plan.steps_per_epoch)
        return {"epoch": epoch, "step": step}

    def after_validation(self, row: Row, settings: TrainConfig, module: VAE) -> bool:
        """Update the schedule with a validation, and keep the weights if it is the best and the run ends with them.

        Returns
        -------
        bool
            Whether it is the best so far.
        """
        before = self.schedule
        self.schedule = before.after(settings, row["epoch"], values_by_name(row))
        if self.schedule.monitor.best == before.monitor.best:
            return False
        self.best_step = self.done
        if settings.load_best:
            self.best = {name: value.cpu().clone() for name, value in module.state_dict().items()}
        return True
