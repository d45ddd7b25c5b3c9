"""The seeded split: a fixed number of rows of every stratum, chosen by hash, is held out. No array of all rows.

Shape letters in this file
    b   blocks or strata
    n   cells, as row numbers of the store
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.order.keyed_hash import hash_keys, hash_rows, permute

TRAIN, VALIDATION, TEST, LEFT_OUT = 0, 1, 2, -1
"""Numbers of the splits."""
_SPLIT_KEY, _BLOCK_KEY, _TAIL_KEY = 1, 2, 3
_STRATUM_CELLS = (1, 20, 100, 1000)


@dataclass(frozen=True, slots=True)
class SeededSplit:
    """The split of `n_cells` rows by shares and a seed; see `shares_of`."""

    n_cells: int
    train_size: float
    validation_size: float
    seed: int

    @property
    def stratum_cells(self) -> int:
        """Rows of a stratum, of which a fixed number, chosen by the hash of each row, is in each split.

        Raises
        ------
        ValueError
            If the shares are finer than 0.001.
        """
        # The smallest stratum in which the shares are whole numbers of cells: strata divide blocks, and small ones
        # allow small blocks.
        for cells in _STRATUM_CELLS:
            if all(
                abs(share * cells - round(share * cells)) < 1e-6 for share in (self.train_size, self.validation_size)
            ):
                return cells
        raise ValueError(
            f"train_size={self.train_size} and validation_size={self.validation_size} must be given in steps of 0.001"
        )

    def quota(self, split: int, rows: int) -> int:
        """Return the number of cells of `split` in a stratum of `rows` rows."""
        train = math.floor(rows * self.train_size + 0.5)
        validation = min(rows - train, math.floor(rows * self.validation_size + 0.5))
        return (train, validation, rows - train - validation)[split]

    def split_cells(self, split: int) -> int:
        """Cells of `split` in the whole store."""
        strata, rest = divmod(self.n_cells, self.stratum_cells)
        return strata * self.quota(split, self.stratum_cells) + self.quota(split, rest)

    def split_of(self, start: int, stop: int) -> NDArray[np.int8]:
        """Return the split of each row of ``[start, stop)``."""
        size = self.stratum_cells
        low, high = start // size * size, min(-(-stop // size) * size, self.n_cells)
        row_n = np.arange(low, high)
        whole = len(row_n) // size * size
        parts = self._assign(row_n[:whole].reshape(-1, size)), self._assign(row_n[None, whole:])
        return np.concatenate([part.ravel() for part in parts])[start - low : stop - low]

    def line(self, split: int, low: int, high: int, *, block_cells: int, epoch: int | None) -> NDArray[np.int64]:
        """Return the rows at places ``[low, high)`` on the line of `split`.

        The line is the order of the store if `epoch` is None, else the blocks in the order of that epoch. The last
        block can be shorter; it is not part of the permutation but inserted at a seeded place, so that every place on
        the line is found by division.
        """
        strata_in_block = block_cells // self.stratum_cells
        in_block = strata_in_block * self.quota(split, self.stratum_cells)
        n_full = self.n_cells // block_cells
        tail_n = n_full * block_cells + np.flatnonzero(self.split_of(n_full * block_cells, self.n_cells) == split)
        tail_at = n_full if epoch is None else hash_keys(self.seed, _TAIL_KEY, epoch) % (n_full + 1)
        tail_low, tail_high = tail_at * in_block, tail_at * in_block + len(tail_n)

        def full_blocks(begin: int, end: int) -> NDArray[np.int64]:
            if end <= begin:
                return np.zeros(0, dtype=np.int64)
            first = begin // in_block
            block_b = np.arange(first, (end - 1) // in_block + 1, dtype=np.int64)
            if epoch is not None:
                block_b = order_of_blocks(block_b, n_full, self.seed, epoch)
            strata_b = (block_b[:, None] * strata_in_block + np.arange(strata_in_block)).ravel()
            row_bn = strata_b[:, None] * self.stratum_cells + np.arange(self.stratum_cells)
            row_n: NDArray[np.int64] = row_bn[self._assign(row_bn) == split]
            return row_n[begin - first * in_block : end - first * in_block]

        return np.concatenate(
            [
                full_blocks(low, min(high, tail_low)),
                tail_n[max(low - tail_low, 0) : max(high - tail_low, 0)],
                full_blocks(max(low, tail_high) - len(tail_n), high - len(tail_n)),
            ]
        )

    def _assign(self, row_bn: NDArray[np.int64]) -> NDArray[np.int8]:
        """Return the split of each row, stratum by stratum: the lowest hashes are test, then validation, then train."""
        split_bn = np.full(row_bn.shape, TRAIN, dtype=np.int8)
        rows = row_bn.shape[1]
        held_out = rows - self.quota(TRAIN, rows)
        if held_out:
            # A stable sort: equal hashes have the same order on every machine.
            order_bn = np.argsort(hash_rows(row_bn, self.seed, _SPLIT_KEY), axis=1, kind="stable")[:, :held_out]
            test = self.quota(TEST, rows)
            np.put_along_axis(split_bn, order_bn[:, :test], TEST, axis=1)
            np.put_along_axis(split_bn, order_bn[:, test:], VALIDATION, axis=1)
        return split_bn


def shares_of(train_size: float | None, validation_size: float | None) -> tuple[float, float]:
    """Return the shares of training, by default 0.9, and validation, by default the rest. What remains is test.

    Raises
    ------
    ValueError
        If they are not valid shares.
    """
    train_size = 0.9 if train_size is None else train_size
    validation_size = round(1 - train_size, 9) if validation_size is None else validation_size
    if not 0 < train_size <= 1 or validation_size < 0 or train_size + validation_size > 1 + 1e-9:
        raise ValueError(
            f"train_size={train_size} and validation_size={validation_size}: shares of all cells are needed, 0 < "
            "train_size and together at most 1"
        )
    return train_size, validation_size


def order_of_blocks(place_b: NDArray[np.int64], n_blocks: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the blocks at the places `place_b` of an epoch."""
    return permute(place_b, n_blocks, hash_keys(seed, _BLOCK_KEY, epoch))
