"""The schedule: weights, rates and ends are those of scvi-tools, torch and Lightning, and survive being written."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from dist_scvi.config.schema import TrainConfig
from dist_scvi.training.schedule import Schedule, Watch, kl_weight


def ends_at(values: list[float], **options: object) -> int | None:
    """The epoch, from 1, after which a run with these values ends."""
    settings = TrainConfig.model_validate({"early_stopping": True, **options})
    schedule = Schedule(settings.lr)
    for epoch, value in enumerate(values):
        schedule = schedule.after(settings, epoch, {settings.early_stopping_monitor: value})
        if schedule.ends(settings):
            return epoch + 1
    return None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n_steps_kl_warmup": 4}, [0, 0.25, 0.5, 0.75, 1, 1]),
        ({"n_epochs_kl_warmup": 2}, [0, 0, 0.5, 0.5, 1, 1]),
        ({"n_epochs_kl_warmup": 2, "max_kl_weight": 0.5, "min_kl_weight": 0.1}, [0.1, 0.1, 0.3, 0.3, 0.5, 0.5]),
        ({"n_steps_kl_warmup": 0, "max_kl_weight": 0.5}, [0.5] * 6),
        ({"n_epochs_kl_warmup": 0}, [1] * 6),
    ],
)
def test_the_kl_weight_rises_linearly_by_steps_or_by_epochs_as_in_scvi_tools(
    options: dict[str, float], expected: list[float]
) -> None:
    settings = TrainConfig.model_validate(options)
    assert [kl_weight(settings, step // 2, step) for step in range(6)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"lr_patience": 0},
        {"lr_patience": 2, "lr_threshold": 0.3},
        {"lr_patience": 1, "lr_factor": 0.1, "lr_min": 2e-6},
        {"lr_patience": 0, "lr": 2e-8, "lr_factor": 0.4},
    ],
)
def test_the_learning_rate_is_that_of_torch(options: dict[str, float]) -> None:
    settings = TrainConfig.model_validate({"reduce_lr_on_plateau": True, **options})
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=settings.lr)
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        patience=settings.lr_patience,
        factor=settings.lr_factor,
        threshold=settings.lr_threshold,
        min_lr=settings.lr_min,
        threshold_mode="abs",
    )
    schedule = Schedule(settings.lr)
    for epoch, value in enumerate(np.random.default_rng(0).normal(5 - np.arange(60) / 20, 0.5).tolist()):
        schedule = schedule.after(settings, epoch, {"elbo_validation": value})
        expected.step(value)
        assert schedule.lr == optimizer.param_groups[0]["lr"], epoch
    assert schedule.lr < settings.lr


def test_the_learning_rate_depends_on_the_metric_named_and_on_none_by_default() -> None:
    metrics = {"elbo_validation": 1.0, "kl_local_validation": 2.0}
    fixed = TrainConfig(lr_patience=0)
    later = Schedule(0.1).after(fixed, 0, metrics).after(fixed, 1, metrics)
    assert (later.lr, later.plateau) == (0.1, Schedule(0.1).plateau)
    by_kl = TrainConfig(reduce_lr_on_plateau=True, lr_patience=0, lr_scheduler_metric="kl_local_validation")
    first = Schedule(0.1).after(by_kl, 0, metrics)
    assert first.plateau == Watch(2.0)
    assert first.after(by_kl, 1, metrics | {"kl_local_validation": 1.0}).lr == 0.1
    assert first.after(by_kl, 1, metrics | {"elbo_validation": 0.0}).lr == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([5, 4, 4, 4, 4], {"early_stopping_patience": 2}, 4),
        ([5, 4, 4, 3, 4, 4], {"early_stopping_patience": 2}, 6),
        ([5, 4, 3, 2, 1], {"early_stopping_patience": 1}, None),
        ([5, 4.5, 4, 3.5], {"early_stopping_patience": 1, "early_stopping_min_delta": 0.5}, 2),
        ([5, 4.5, 4, 3.5], {"early_stopping_patience": 1, "early_stopping_min_delta": 0.4}, None),
        ([1, 9, 9, 9, 9], {"early_stopping_patience": 2, "early_stopping_warmup_epochs": 2}, 5),
        ([1, 2, 2, 2], {"early_stopping_patience": 2, "early_stopping_mode": "max"}, 4),
        ([5, math.nan, math.inf, 4], {"early_stopping_patience": 2}, 3),
        ([math.nan, 5, 4, 3], {"early_stopping_patience": 2}, None),
        ([5, 5, 5, 5], {"early_stopping_patience": 1, "early_stopping": False}, None),
        ([5, 5, 5, 5], {"early_stopping_patience": 1, "early_stopping": False, "load_best": True}, None),
    ],
)
def test_a_run_ends_after_as_many_validations_without_improvement(
    values: list[float], options: dict[str, object], expected: int | None
) -> None:
    assert ends_at(values, **options) == expected


def test_the_best_value_is_kept_for_early_stopping_and_for_the_best_weights() -> None:
    for options in ({"early_stopping": True}, {"load_best": True}):
        settings, schedule = TrainConfig.model_validate(options), Schedule(0.1)
        for epoch, value in enumerate([3.0, 1.0, 2.0]):
            schedule = schedule.after(settings, epoch, {"elbo_validation": value})
        assert schedule.monitor == Watch(1.0, 1)


def test_a_schedule_survives_being_written_to_a_checkpoint() -> None:
    for schedule in (Schedule(1e-3), Schedule(0.1 * 0.6, Watch(1 / 3, 4), Watch(-0.7, 2))):
        assert Schedule.from_plain(json.loads(json.dumps(asdict(schedule)))) == schedule


def test_a_metric_that_no_validation_gives_is_told_with_those_it_gives() -> None:
    settings = TrainConfig(early_stopping=True, early_stopping_monitor="validation_accuracy", early_stopping_mode="max")
    with pytest.raises(ValueError, match=r"validation_accuracy: no cell .* has a label; watch .*elbo_validation"):
        Schedule(0.1).after(settings, 0, {"elbo_validation": 1.0})
