"""The line of an epoch for rows of unequal mass: any draw is found with one number for each block.

The line consists of the blocks in a seeded order, each as long as the sum of the masses of its rows. An epoch makes as
many draws as there are training cells, at equal distances: systematic sampling (Madow, Ann. Math. Stat. 1949). So a row
of mass w is drawn n w / M times, rounded down or up, for n draws from a line of length M; if all masses are 1, exactly
once.

Shape letters in this file
    b   blocks
    n   draws
    r   rows of the blocks that are drawn from
"""

from functools import lru_cache
from hashlib import sha256
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.order.column_sampling import Sampling
from dist_scvi.loaders.order.keyed_hash import hash_keys
from dist_scvi.loaders.order.seeded_split import TRAIN, order_of_blocks

_OFFSET_KEY = 5
_SCAN_ROWS = 1 << 18


class EpochOrder(Protocol):
    """The cells of an epoch in training order; any part of it can be computed on its own."""

    @property
    def sampling(self) -> Sampling:
        """Which rows are trained on at all."""

    @property
    def n_draws(self) -> int:
        """Cells of an epoch."""

    @property
    def n_blocks(self) -> int:
        """Blocks of rows that are read for an epoch."""

    @property
    def block_draws(self) -> float:
        """Draws that come from one block."""

    @property
    def digest(self) -> str:
        """A short hash that changes with the rows."""

    def draws(self, epoch: int, low: int, high: int) -> NDArray[np.int64]:
        """Return the rows of draws ``[low, high)`` of an epoch."""


class WeightedOrder:
    """Blocks of rows and their masses.

    Parameters
    ----------
    sampling
        The masses of the rows; read once on construction, and later for the blocks that are drawn from.
    block_cells
        Rows of a block.
    seed
        Seed of the order of the blocks and of the place of the first draw.
    """

    def __init__(self, sampling: Sampling, block_cells: int, seed: int) -> None:
        self.sampling = sampling
        self._block_cells, self._seed = block_cells, seed
        n_cells, step = sampling.n_cells, max(1, _SCAN_ROWS // block_cells) * block_cells
        parts = []
        for start in range(0, n_cells, step):
            mass_r = sampling.masses(start, min(start + step, n_cells))
            parts.append(np.add.reduceat(mass_r, np.arange(0, len(mass_r), block_cells)))
        self._mass_b = np.concatenate(parts)
        self._length = int(self._mass_b.sum())
        self._stops = lru_cache(2)(self._stops_of)

    @property
    def n_draws(self) -> int:
        """Draws of an epoch: as many as there are training cells."""
        return self.sampling.split_cells(TRAIN)

    @property
    def n_blocks(self) -> int:
        """Blocks with training cells."""
        return int(np.count_nonzero(self._mass_b))

    @property
    def block_draws(self) -> float:
        """Draws from one block, averaged with the masses of the blocks as weights, as in the variance of a window."""
        share_b = self._mass_b / self._length
        return self.n_draws * float(share_b @ share_b)

    @property
    def digest(self) -> str:
        """A short hash that changes with the masses and splits."""
        return sha256(self._mass_b.tobytes() + self.sampling.stop_sp.tobytes()).hexdigest()[:16]

    def draws(self, epoch: int, low: int, high: int) -> NDArray[np.int64]:
        """Return the rows of draws ``[low, high)`` of an epoch; a row of large mass can be drawn repeatedly."""
        n_draws, n_blocks = self.n_draws, len(self._mass_b)
        offset = hash_keys(self._seed, _OFFSET_KEY, epoch) % self._length
        # floor((draw * length + offset) / n_draws), computed without the product, which can exceed 64 bits. Integers
        # rather than floats: rounding could draw a row of mass 1 twice, and another one never.
        each, rest = divmod(self._length, n_draws)
        draw_n = np.arange(low, high, dtype=np.int64)
        mass_n = draw_n * each + (draw_n * rest + offset) // n_draws
        stop_b = self._stops(epoch)
        place_b, drawn_n = np.unique(np.searchsorted(stop_b, mass_n, side="right"), return_inverse=True)
        block_b, rising_b = np.unique(order_of_blocks(place_b, n_blocks, self._seed, epoch), return_inverse=True)
        mass_b = self._mass_b[block_b]
        row_r, mass_r = self._masses(block_b)
        # Blocks are read in the order of the store, not of the epoch, so that neighbours share a read. This converts
        # places on the line of the epoch to places on the line of these blocks only.
        shift_b = (np.cumsum(mass_b) - mass_b)[rising_b] - (stop_b[place_b] - mass_b[rising_b])
        drawn: NDArray[np.int64] = row_r[np.searchsorted(np.cumsum(mass_r), mass_n + shift_b[drawn_n], side="right")]
        return drawn

    def _masses(self, block_b: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of the blocks `block_b`, in increasing order, and their masses; neighbours share a read."""
        size = self._block_cells
        ranges = [
            (int(run[0]) * size, min((int(run[-1]) + 1) * size, self.sampling.n_cells))
            for run in np.split(block_b, np.flatnonzero(np.diff(block_b) > 1) + 1)
        ]
        row_r = np.concatenate([np.arange(start, stop) for start, stop in ranges])
        return row_r, np.concatenate([self.sampling.masses(start, stop) for start, stop in ranges])

    def _stops_of(self, epoch: int) -> NDArray[np.int64]:
        """Return the end of each block on the line of an epoch."""
        n_blocks = len(self._mass_b)
        return np.cumsum(self._mass_b[order_of_blocks(np.arange(n_blocks), n_blocks, self._seed, epoch)])
