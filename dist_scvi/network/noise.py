"""Random numbers keyed by cell or micro-minibatch, so that they do not depend on the process that draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from dist_scvi.loaders.order.keyed_hash import hash_keys, hash_rows

_STEP_KEY, _ROW_KEY, _PART_KEY = 101, 102, 103


class Noise(Protocol):
    """Source of the random numbers of a network, which depend on the order of the calls."""

    def normal(self, like_nk: Tensor) -> Tensor:
        """Draw standard normals in the shape of `like_nk`, whose last dimension but one is that of the cells."""

    def dropout(self, hidden_nh: Tensor, rate: float) -> Tensor:
        """Set each value to 0 with probability `rate` and scale up the others."""

    def parts(self, sizes: Sequence[int]) -> "Sequence[Noise]":
        """Return separate noise for each run of cells; in training these are the micro-minibatches."""

    @property
    def keyed(self) -> bool:
        """Whether `anew` repeats the same numbers."""

    def anew(self) -> "Noise":
        """Return the noise restarted from its first number."""


@dataclass(frozen=True, slots=True)
class StepNoise:
    """The noise of one minibatch in training: a generator for each of its micro-minibatches."""

    generators: tuple[torch.Generator | None, ...]
    """None stands for torch's global generator."""
    sizes: list[int]
    """Cells of each micro-minibatch."""

    def normal(self, like_nk: Tensor) -> Tensor:
        """Draw standard normals in the shape of `like_nk`."""
        return torch.cat(
            [
                torch.normal(torch.zeros_like(part), torch.ones_like(part), generator=generator)
                for part, generator in zip(torch.split(like_nk, self.sizes, -2), self.generators, strict=True)
            ]
            or [like_nk],
            dim=-2,
        )

    def dropout(self, hidden_nh: Tensor, rate: float) -> Tensor:
        """Set each value to 0 with probability `rate` and scale up the others."""
        keep = torch.empty_like(hidden_nh)
        for part, generator in zip(torch.split(keep, self.sizes, -2), self.generators, strict=True):
            part.bernoulli_(1 - rate, generator=generator)
        return hidden_nh * keep.div_(1 - rate)

    def parts(self, sizes: Sequence[int]) -> "list[StepNoise]":
        """Return separate noise for each micro-minibatch."""
        if not self.keyed:
            return [self]
        # A derived generator for each part, which `anew` can restart without changing the numbers drawn elsewhere.
        seeds = [hash_keys(generator.initial_seed(), _PART_KEY) for generator in self.generators if generator]
        return [
            StepNoise((torch.Generator(generator.device).manual_seed(seed),), [size])
            for generator, seed, size in zip(self.generators, seeds, sizes, strict=True)
            if generator
        ]

    @property
    def keyed(self) -> bool:
        """Whether `anew` repeats the same numbers."""
        return None not in self.generators

    def anew(self) -> "StepNoise":
        """Return the noise restarted from its first number."""
        for generator in self.generators:
            assert generator is not None
            generator.manual_seed(generator.initial_seed())
        return self


class RowNoise:
    """Noise keyed by the cell, for inference: results do not depend on chunks or on the number of workers.

    Parameters
    ----------
    seed, draw
        Key of the noise; `draw` is one number for all cells, or one for each.
    row_n
        Row of each cell in the store.
    n_calls
        Number of earlier calls of `normal`.
    """

    def __init__(
        self, seed: int, row_n: NDArray[np.int64], draw: int | NDArray[np.int64] = 0, n_calls: int = 0
    ) -> None:
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed={seed}: a whole number from 0 on is needed")
        self._seed, self._row_n, self._draw = seed, row_n, draw
        self._n_calls = n_calls

    def normal(self, like_nk: Tensor) -> Tensor:
        """Draw standard normals in the shape of `like_nk`; dimensions before that of the cells repeat them."""
        seed = hash_keys(self._seed, self._n_calls) if self._n_calls else self._seed
        self._n_calls += 1
        drawn = row_normal(seed, self._row_n, self._draw, like_nk.shape[-1])
        return torch.from_numpy(drawn).to(like_nk.device).expand_as(like_nk)

    def dropout(self, hidden_nh: Tensor, rate: float) -> Tensor:
        """Return `hidden_nh` unchanged: inference has no dropout."""
        return hidden_nh

    def parts(self, sizes: Sequence[int]) -> "list[RowNoise]":
        """Return the noise of each run of cells; that of a cell does not depend on the runs."""
        cuts = np.cumsum(sizes)[:-1].tolist()
        draws = np.split(np.broadcast_to(self._draw, self._row_n.shape), cuts)
        rows = np.split(self._row_n, cuts)
        return [RowNoise(self._seed, row_n, draw_n, self._n_calls) for row_n, draw_n in zip(rows, draws, strict=True)]

    @property
    def keyed(self) -> bool:
        """Whether `anew` repeats the same numbers."""
        return False

    def anew(self) -> "RowNoise":
        """Return the noise restarted from its first call."""
        return RowNoise(self._seed, self._row_n, self._draw)


def global_noise(n_cells: int) -> StepNoise:
    """Return noise from torch's global generator, in the order of scvi-tools: the same seed gives the same numbers."""
    return StepNoise((None,), [n_cells])


def step_noise(
    seed: int, epoch: int, step: int, micro_keys: tuple[int, ...], sizes: tuple[int, ...], device: torch.device
) -> StepNoise:
    """Return the noise of a training step, keyed by its position in the run.

    A single generator that advances from step to step would need its state in a checkpoint, and its numbers would
    depend on the number of workers.
    """
    generators = []
    for key in micro_keys:
        generator = torch.Generator(device)
        generator.manual_seed(hash_keys(seed, _STEP_KEY, epoch, step, key))
        generators.append(generator)
    return StepNoise(tuple(generators), list(sizes))


def row_normal(
    seed: int, row_n: NDArray[np.int64], draw: int | NDArray[np.int64], n_columns: int
) -> NDArray[np.float32]:
    """Draw standard normals of shape (n, `n_columns`) that depend on (`seed`, row, `draw` of the row) alone.

    Results do not depend on chunks or on the number of workers.
    """
    draw_n1 = draw[:, None] if isinstance(draw, np.ndarray) else draw
    bits = hash_rows(row_n[:, None], seed, _ROW_KEY, draw_n1, np.arange(n_columns))
    # 52 bits plus a half: with 53 bits the largest value would round to 1, whose quantile is infinite.
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) / (1 << 52)
    return ndtri(uniform).astype(np.float32)
