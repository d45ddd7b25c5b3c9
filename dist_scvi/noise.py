"""Random numbers that belong to a cell or a micro-minibatch, not to the process that happens to draw them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from dist_scvi.loaders.hashing import hash_keys, hash_rows

_STEP_KEY, _ROW_KEY = 101, 102


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one minibatch: a generator for each of its micro-minibatches, read in the order the model asks."""

    generators: tuple[torch.Generator | None, ...]
    """None stands for torch's own generator."""
    sizes: list[int]
    """Cells of each micro-minibatch."""

    def normal(self, like_nk: Tensor) -> Tensor:
        """Draw standard normals in the shape of `like_nk`."""
        return torch.cat(
            [
                torch.normal(torch.zeros_like(part), torch.ones_like(part), generator=generator)
                for part, generator in zip(torch.split(like_nk, self.sizes), self.generators, strict=True)
            ]
        )

    def dropout(self, hidden_nh: Tensor, rate: float) -> Tensor:
        """Set each value to 0 with probability `rate` and scale up the others."""
        keep = torch.empty_like(hidden_nh)
        for part, generator in zip(torch.split(keep, self.sizes), self.generators, strict=True):
            part.bernoulli_(1 - rate, generator=generator)
        return hidden_nh * keep.div_(1 - rate)


def global_noise(n_cells: int) -> Noise:
    """Draw from torch's own generator in the order of scvi-tools, so that one seed gives both the same numbers."""
    return Noise((None,), [n_cells])


def step_noise(
    seed: int, epoch: int, step: int, micro_keys: tuple[int, ...], sizes: tuple[int, ...], device: torch.device
) -> Noise:
    """Key the noise of a training step by its place in the run: the same for every world size, and after a restart."""
    generators = []
    for key in micro_keys:
        generator = torch.Generator(device)
        generator.manual_seed(hash_keys(seed, _STEP_KEY, epoch, step, key))
        generators.append(generator)
    return Noise(tuple(generators), list(sizes))


def row_normal(seed: int, row_n: NDArray[np.int64], draw: int, n_columns: int) -> NDArray[np.float32]:
    """Draw standard normals of shape (n, `n_columns`) that depend on (`seed`, row, `draw`) alone.

    The answer of a query does not change with its chunks or workers.
    """
    bits = np.stack([hash_rows(row_n, seed, _ROW_KEY, draw, column) for column in range(n_columns)], axis=1)
    # 52 bits and a half: with one more, the largest would round to 1 and give infinity.
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) / (1 << 52)
    return ndtri(uniform).astype(np.float32)
