"""A line of metrics is the exact mean over its cells, over all workers and restarts."""

import json

import numpy as np
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.network.vae import VAE
from dist_scvi.training.meter import Meter
from dist_scvi.training.step import Step
from dist_scvi.world import World


def step_of(number: int, loss_n: list[float]) -> Step:
    """Step `number` of epochs of 4, whose losses are half reconstruction and half kl."""
    loss = torch.tensor(loss_n, dtype=torch.float64)
    sums = torch.stack([loss.sum(), loss.sum() / 2, loss.sum() / 2, torch.tensor(float(len(loss))), torch.tensor(7.0)])
    return Step(number // 4, number % 4, sums, np.arange(100, 100 + len(loss_n)), loss, torch.zeros(2))


def meter_of() -> Meter:
    return Meter(World(), VAE(3, config=ModelConfig()), 50.0)


def test_a_line_is_the_mean_over_the_cells_of_its_steps_and_an_epoch_that_of_all_its_lines() -> None:
    meter = meter_of()
    for number, losses in enumerate([[1, 2, 3], [4], [5, 5]]):
        meter.add(step_of(number, losses))
        if number:
            meter.read(0)
    assert meter.read_epoch() | {"cells_hash": 0} == {
        "loss": 20 / 6,
        "elbo": 20 / 6,
        "reconstruction": 10 / 6,
        "kl": 10 / 6,
        "cells": 6,
        "cells_hash": 0,
    }
    meter.add(step_of(4, [8, 9]))
    line = meter.read(0)
    assert (line["loss"], line["cells"], line["cells_hash"]) == (8.5, 2, 7)
    assert line.keys() >= {"cells_per_s", "steps_per_s", "wait_share", "memory_mib"}
    assert meter.read_epoch()["loss"] == 8.5


def test_an_epoch_begun_before_a_restart_is_counted_whole() -> None:
    whole, first, second = (meter_of() for _ in range(3))
    for number, losses in enumerate([[1, 2, 3], [4.5], [5, 1 / 3]]):
        for meter in (whole, first if number < 2 else second):
            meter.add(step_of(number, losses))
            meter.read(0)
            if meter is first:
                second.state = json.loads(json.dumps(first.state))
    assert second.read_epoch() == whole.read_epoch()


def test_a_loss_that_is_not_finite_names_epoch_step_and_cells() -> None:
    meter = meter_of()
    for number, losses in enumerate([[1, 2], [3, float("nan"), 4, float("inf")], [float("nan")]]):
        meter.add(step_of(4 + number, losses))
    with pytest.raises(
        FloatingPointError, match=r"became nan in step 2 of epoch 2, at 2 of 4 cells \(rows 101, 103\): lo"
    ):
        meter.read(0)


def test_no_more_than_ten_cells_are_named_and_weights_blamed_if_it_is_all_of_them() -> None:
    meter = meter_of()
    meter.add(step_of(0, [float("inf")] * 12))
    rows = ", ".join(map(str, range(100, 110)))
    with pytest.raises(
        FloatingPointError, match=rf"became inf .* at 12 of 12 cells \(rows {rows}, \.\.\.\), since the"
    ):
        meter.read(0)
