"""Sum up losses and speed between two lines of metrics, and check that all workers have the same weights."""

import os
import time
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from dist_scvi.errors import WeightsDifferError
from dist_scvi.metrics.metrics_file import Row
from dist_scvi.network.vae import VAE
from dist_scvi.training.losses import loss_means
from dist_scvi.training.step import Step
from dist_scvi.world import World

T = TypeVar("T")
_ROWS_NAMED = 10


class Meter:
    """Sum up the steps since the last line of metrics, and of the epoch. Sums stay on the device until they are read.

    Parameters
    ----------
    world
        The workers.
    module
        The network that they train.
    classification_ratio
        Weight of the classification in the loss.
    """

    def __init__(self, world: World, module: VAE, classification_ratio: float) -> None:
        self._world, self._module, self._ratio = world, module, classification_ratio
        self._process = psutil.Process(os.getpid())
        self._steps: list[Step] = []
        self._n_timed, self._cells_timed, self._waited_s, self._began = 0, 0.0, 0.0, time.perf_counter()
        self._line_sums: list[float] = []
        self._epoch_sums: list[float] = []

    @property
    def state(self) -> dict[str, list[float]]:
        """Sums since the last line, and those of the epoch before that line, as a checkpoint keeps them."""
        return {"line": self._line_sums, "epoch": self._epoch_sums}

    @state.setter
    def state(self, state: dict[str, list[float]]) -> None:
        self._line_sums, self._epoch_sums = state["line"], state["epoch"]

    def timed(self, stream: Iterator[T]) -> Iterator[T]:
        """Yield the items of `stream` and measure the time spent waiting for them."""
        while True:
            begin = time.perf_counter()
            item = next(stream, None)
            self._waited_s += time.perf_counter() - begin
            if item is None:
                return
            yield item

    def add(self, step: Step) -> None:
        """Add one step."""
        self._steps.append(step)

    def gather(self, done: int) -> None:
        """Check the steps added since the last call. All workers decide alike whether training may continue.

        Parameters
        ----------
        done
            Number of steps done, for the message.

        Raises
        ------
        FloatingPointError
            If the loss is not finite.
        WeightsDifferError
            If workers have different weights.
        """
        if not self._steps:
            return
        # One copy to the host for all steps: each one waits for the device.
        sums_of_steps = torch.stack([step.sums for step in self._steps]).cpu().numpy()
        for step, sums in zip(self._steps, sums_of_steps, strict=True):
            if not np.isfinite(sums).all():
                self._refuse(step, sums)
        check_equal_weights(self._module, self._world, done)
        sums = sums_of_steps.sum(axis=0)
        self._n_timed += len(self._steps)
        self._cells_timed += float(sums[3])
        self._line_sums = _added(sums, self._line_sums)
        self._steps = []

    def read(self, done: int) -> Row:
        """Return averages over the steps since the last line and over all workers, and start the next line.

        Raises
        ------
        FloatingPointError, WeightsDifferError
            As `gather`.
        """
        self.gather(done)
        elapsed_s = time.perf_counter() - self._began
        worst = self._world.maximum(
            torch.tensor(
                [self._waited_s / elapsed_s, self._process.memory_info().rss / 2**20],
                dtype=torch.float64,
                device=self._world.device,
            )
        ).tolist()
        row = {
            **loss_means(np.array(self._line_sums), self._ratio),
            "cells_per_s": self._cells_timed / elapsed_s,
            "steps_per_s": self._n_timed / elapsed_s,
            "wait_share": worst[0],
            "memory_mib": worst[1],
        }
        self._epoch_sums, self._line_sums = _added(np.array(self._line_sums), self._epoch_sums), []
        self._n_timed, self._cells_timed, self._waited_s, self._began = 0, 0.0, 0.0, time.perf_counter()
        return row

    def read_epoch(self) -> Row:
        """Return averages over the epoch up to the last `read`, and start the next epoch."""
        sums, self._epoch_sums = np.array(self._epoch_sums), []
        return loss_means(sums, self._ratio)

    def _refuse(self, step: Step, sums: NDArray[np.float64]) -> None:
        """Raise an error that names the cells of all workers at which the loss is not finite."""
        mine = step.row_n[~torch.isfinite(step.loss_n).cpu().numpy()]
        found = self._world.from_all((len(mine), mine[:_ROWS_NAMED].tolist()))
        n_bad, n_cells = sum(n for n, _ in found), int(sums[3])
        rows = sorted(row for _, named in found for row in named)[:_ROWS_NAMED]
        loss, listed = loss_means(sums, self._ratio)["loss"], ", ".join(map(str, rows)) + ", ..." * (n_bad > len(rows))
        where = f"at {n_bad} of {n_cells} cells (rows {listed})" if n_bad else "in sum, but at no cell"
        raise FloatingPointError(
            f"the loss became {loss} in step {step.step + 1} of epoch {step.epoch + 1}, {where}"
            f"{', since the weights were extreme before' * (n_bad == n_cells)}: lower train.lr, or look for extreme "
            "counts with 'dist-scvi inspect'; the checkpoints before this step are kept"
        )


@torch.no_grad()
def check_equal_weights(module: VAE, world: World, done: int) -> None:
    """Compare a hash of the weights of all workers, after `done` steps.

    Raises
    ------
    WeightsDifferError
        On all workers alike, with the hash of each.
    """
    if world.size == 1:
        return
    # The sum of the bits as whole numbers is exact, so that equal weights have equal hashes in any order of addition.
    # The factor differs between tensors, so that exchanged tensors change the hash as well.
    total = torch.zeros((), dtype=torch.int64, device=world.device)
    for place, value in enumerate(module.state_dict().values(), 1):
        if value.is_floating_point():
            total += (2 * place + 1) * value.detach().float().contiguous().view(torch.int32).long().sum()
    mine = int(total) & (1 << 52) - 1  # 52 bits are exact in float64
    # The maxima of the hash and of its negative are the largest and the smallest hash, from one collective of two
    # numbers. Only the message needs all hashes.
    ends = world.maximum(torch.tensor([mine, -mine], dtype=torch.float64, device=world.device)).tolist()
    if ends[0] != -ends[1]:
        found = ", ".join(f"{rank}: {value:x}" for rank, value in enumerate(world.from_all(mine)))
        raise WeightsDifferError(
            f"after {done} steps the workers do not have the same weights (hash by rank: {found}): memory or a device "
            "of one is faulty; training resumes from the last checkpoint, on which all agreed"
        )


def _added(sums: NDArray[np.float64], to: list[float]) -> list[float]:
    added: list[float] = (sums + (np.array(to) if to else 0)).tolist()
    return added
