"""Which cells are trained on when. Arithmetic only: no files, no clock, no environment, no array of all rows.

The training cells of an epoch are thought of as one line: the blocks of the store in a seeded order, laid end to end.
The line is cut into equal spans, one per lane. A lane reads its span window by window, shuffles the cells of a window,
and deals them out in minibatches. A global minibatch takes the same number of cells from every lane, and rank r of W
serves the lanes r, r + W, ...: so what a step trains on does not depend on W, and any step is found from (epoch, step)
alone.

Shape letters in this file
    b   blocks or strata
    n   cells, as row numbers of the store
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .hashing import hash_keys, hash_rows, permute

Split = Literal["train", "validation", "test"]

_SPLIT_KEY, _BLOCK_KEY, _TAIL_KEY, _CELL_KEY = 1, 2, 3, 4
_STRATUM_CELLS = (20, 100, 1000)
_BLOCK_CELLS = (320, 160, 80, 40, 20)
_WINDOWS_HELD = 3
"""The window in use, the next one, and the pieces it is joined from."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The order of a run. Equal plans give equal orders on every machine; see `make_plan`."""

    n_cells: int
    """Cells of the store."""
    batch_size: int
    """Cells of a global minibatch, one optimizer step."""
    lanes: int
    """Streams that make up a global minibatch; a multiple of every world size that is to be used."""
    micro_cells: int
    """Cells that batch normalisation sees together."""
    block_cells: int
    """Rows read together."""
    window_steps: int
    """Steps whose cells are shuffled together."""
    train_size: float
    validation_size: float
    seed: int

    @property
    def stratum_cells(self) -> int:
        """Rows of which a fixed number, chosen by the hash of each row, goes to each split."""
        return _stratum_cells(self.train_size, self.validation_size)

    @property
    def lane_cells(self) -> int:
        """Cells of one lane in one step."""
        return self.batch_size // self.lanes

    @property
    def n_train(self) -> int:
        """Cells trained on in every epoch."""
        return self.split_cells("train")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, equal on all ranks.

        The cells left over make a last, smaller step. Less than two a lane would be too few for a variance: they join
        the step before.
        """
        full, left = divmod(self.n_train // self.lanes, self.lane_cells)
        return full + 1 if left >= 2 or full == 0 else full

    @property
    def windows_per_epoch(self) -> int:
        """Windows in an epoch."""
        return -(-self.steps_per_epoch // self.window_steps)

    @property
    def blocks_in_window(self) -> int | None:
        """Blocks shuffled together over all lanes, or None if a window holds the whole epoch."""
        if self.windows_per_epoch == 1:
            return None
        train_in_block = self.block_cells // self.stratum_cells * self.quota("train", self.stratum_cells)
        return self.window_steps * self.batch_size // train_in_block

    def quota(self, split: Split, rows: int) -> int:
        """Cells that `split` gets out of a stratum of `rows`."""
        train = math.floor(rows * self.train_size + 0.5)
        if split == "train":
            return train
        validation = min(rows - train, math.floor(rows * self.validation_size + 0.5))
        return validation if split == "validation" else rows - train - validation

    def split_cells(self, split: Split) -> int:
        """Cells of `split` in the whole store."""
        strata, rest = divmod(self.n_cells, self.stratum_cells)
        return strata * self.quota(split, self.stratum_cells) + self.quota(split, rest)

    def step_cells(self, step: int) -> int:
        """Cells of global minibatch `step`, over all ranks."""
        done = step * self.batch_size
        return self.n_train - done if step == self.steps_per_epoch - 1 else self.batch_size

    def entropy_loss_bits(self, n_labels: int) -> float:
        """Predict by how many bits a minibatch is less diverse than the atlas, if every block is of one label.

        Notes
        -----
        ``(K - 1) / (2 ln 2) (1 / m + 1 / R)`` for K labels, m cells and R blocks: the Miller-Madow bias of the plug-in
        entropy.
        """
        blocks = self.blocks_in_window
        return (n_labels - 1) / (2 * math.log(2)) * (1 / self.batch_size + (1 / blocks if blocks else 0.0))


def make_plan(
    *,
    n_cells: int,
    n_entries: int,
    n_genes: int,
    batch_size: int,
    lanes: int,
    micro_cells: int = 128,
    train_size: float = 0.9,
    validation_size: float | None = None,
    seed: int = 0,
    memory_bytes: int = 512 << 20,
    block_cells: int | None = None,
    window_cells: int | None = None,
) -> Plan:
    """Lay out a run over `n_cells` cells with `n_entries` stored counts.

    Parameters
    ----------
    batch_size
        Cells of a global minibatch, a multiple of `lanes` and at least two for each.
    train_size, validation_size
        Shares of the cells, in steps of 0.001; what they leave is the test split. `validation_size` is the rest by
        default.
    memory_bytes
        Bound for the windows that one process holds if it serves all lanes; sets `window_cells`.
    block_cells
        Rows read together, by default the most that leave ``R >= 4 batch_size`` blocks in a window (CorgiPile, SIGMOD
        2022).
    window_cells
        Cells shuffled together.

    Raises
    ------
    ValueError
        If sizes do not fit each other or the store holds too few cells.
    """
    validation_size = round(1 - train_size, 9) if validation_size is None else validation_size
    _check_sizes(batch_size, lanes, micro_cells, train_size, validation_size)
    stratum = _stratum_cells(train_size, validation_size)
    if window_cells is None:
        bytes_per_cell = n_entries / n_cells * (2 + (2 if n_genes <= 1 << 16 else 4)) + 40
        window_cells = int(memory_bytes / (_WINDOWS_HELD * bytes_per_cell))
    blocks = [size for size in _BLOCK_CELLS if size % stratum == 0] or [stratum]
    if block_cells is not None and (block_cells < stratum or block_cells % stratum):
        raise ValueError(f"block_cells={block_cells} must be a multiple of {stratum} for train_size={train_size}")
    plan = Plan(n_cells, batch_size, lanes, micro_cells, block_cells or blocks[0], 1, train_size, validation_size, seed)
    if plan.n_train < 2 * lanes:
        raise ValueError(
            f"{plan.n_train} training cells (of {n_cells}) do not give two to each of {lanes} lanes: lower train.lanes"
        )
    window_steps = min(max(1, window_cells // batch_size), plan.steps_per_epoch)
    if block_cells is None and window_steps < plan.steps_per_epoch:
        diverse = [size for size in blocks if window_steps >= 4 * size * train_size]
        plan = replace(plan, block_cells=diverse[0] if diverse else blocks[-1])
    return replace(plan, window_steps=window_steps)


def check_world_size(lanes: int, world_size: int) -> None:
    """Refuse a world size that does not divide the lanes.

    Raises
    ------
    ValueError
        With the list of those that do.
    """
    if lanes % world_size:
        allowed = ", ".join(str(size) for size in range(1, lanes + 1) if lanes % size == 0)
        raise ValueError(
            f"{world_size} workers cannot share {lanes} lanes evenly: use {allowed}, or change train.lanes"
        )


def lane_span(plan: Plan, lane: int, step: int) -> tuple[int, int]:
    """Where the cells of `step` lie among the cells of `lane` in one epoch."""
    low = step * plan.lane_cells
    return low, _lane_length(plan, lane) if step == plan.steps_per_epoch - 1 else low + plan.lane_cells


def window_rows(plan: Plan, epoch: int, lane: int, window: int) -> NDArray[np.int64]:
    """Give the rows that `lane` trains on in one window, in training order."""
    first = window * plan.window_steps
    last = min(first + plan.window_steps, plan.steps_per_epoch) - 1
    offset = lane * plan.n_train // plan.lanes
    low, high = offset + lane_span(plan, lane, first)[0], offset + lane_span(plan, lane, last)[1]
    row_n = split_rows(plan, "train", low, high, epoch=epoch)
    return row_n[np.argsort(hash_rows(row_n, plan.seed, _CELL_KEY, epoch), kind="stable")]


def minibatch_rows(plan: Plan, epoch: int, step: int, lane: int) -> NDArray[np.int64]:
    """Give the rows that `lane` trains on in `step`; the stream deals out the same from whole windows."""
    window = step // plan.window_steps
    begin, _ = lane_span(plan, lane, window * plan.window_steps)
    low, high = lane_span(plan, lane, step)
    return window_rows(plan, epoch, lane, window)[low - begin : high - begin]


def micro_sizes(n_cells: int, micro_cells: int) -> tuple[int, ...]:
    """Cut one lane's cells of a step into micro-minibatches of about `micro_cells`, as evenly as can be.

    None has a single cell unless there is only one in all.
    """
    parts = min(max(1, round(n_cells / micro_cells)), max(1, n_cells // 2))
    return tuple((n_cells + part) // parts for part in range(parts))


def split_rows(plan: Plan, split: Split, low: int, high: int, *, epoch: int | None = None) -> NDArray[np.int64]:
    """Give the rows at places ``[low, high)`` on the line of `split`.

    The line is the store's own order if `epoch` is None, else the blocks in the order of that epoch. The last block is
    shorter and stands at a place of its own, so that every place on the line is found by division.
    """
    strata_in_block = plan.block_cells // plan.stratum_cells
    in_block = strata_in_block * plan.quota(split, plan.stratum_cells)
    n_full = plan.n_cells // plan.block_cells
    tail_n = _tail_rows(plan, split)
    tail_at = n_full if epoch is None else hash_keys(plan.seed, _TAIL_KEY, epoch) % (n_full + 1)
    tail_low, tail_high = tail_at * in_block, tail_at * in_block + len(tail_n)

    def full_blocks(begin: int, end: int) -> NDArray[np.int64]:
        if end <= begin:
            return np.zeros(0, dtype=np.int64)
        first = begin // in_block
        block_b = np.arange(first, (end - 1) // in_block + 1, dtype=np.int64)
        if epoch is not None:
            block_b = permute(block_b, n_full, hash_keys(plan.seed, _BLOCK_KEY, epoch))
        strata_b = (block_b[:, None] * strata_in_block + np.arange(strata_in_block)).ravel()
        return _members(plan, split, strata_b)[begin - first * in_block : end - first * in_block]

    return np.concatenate(
        [
            full_blocks(low, min(high, tail_low)),
            tail_n[max(low - tail_low, 0) : max(high - tail_low, 0)],
            full_blocks(max(low, tail_high) - len(tail_n), high - len(tail_n)),
        ]
    )


def _members(plan: Plan, split: Split, strata_b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of `split` in whole strata, rising within each."""
    size = plan.stratum_cells
    return _choose(plan, split, strata_b[:, None] * size + np.arange(size)).ravel()


def _tail_rows(plan: Plan, split: Split) -> NDArray[np.int64]:
    """Rows of `split` behind the last whole block."""
    size = plan.stratum_cells
    first, last = plan.n_cells // plan.block_cells * (plan.block_cells // size), plan.n_cells // size
    rest = np.arange(last * size, plan.n_cells)[None, :]
    return np.concatenate([_members(plan, split, np.arange(first, last)), _choose(plan, split, rest).ravel()])


def _choose(plan: Plan, split: Split, row_bn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose from each line of rows those of `split`: the lowest hashes are test, then validation, then train."""
    n = row_bn.shape[1]
    validation = n - plan.quota("train", n)
    test = validation - plan.quota("validation", n)
    low, high = {"test": (0, test), "validation": (test, validation), "train": (validation, n)}[split]
    order_bn = np.argsort(hash_rows(row_bn, plan.seed, _SPLIT_KEY), axis=1, kind="stable")
    return np.take_along_axis(row_bn, np.sort(order_bn[:, low:high], axis=1), axis=1)


def _lane_length(plan: Plan, lane: int) -> int:
    return (lane + 1) * plan.n_train // plan.lanes - lane * plan.n_train // plan.lanes


def _stratum_cells(train_size: float, validation_size: float) -> int:
    def whole(share: float, cells: int) -> bool:
        return abs(share * cells - round(share * cells)) < 1e-6

    for cells in _STRATUM_CELLS:
        if whole(train_size, cells) and whole(validation_size, cells):
            return cells
    raise ValueError(f"train_size={train_size} and validation_size={validation_size} must be given in steps of 0.001")


def _check_sizes(batch_size: int, lanes: int, micro_cells: int, train_size: float, validation_size: float) -> None:
    if lanes < 1 or batch_size < 2 * lanes or batch_size % lanes:
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of lanes={lanes} and at least twice it: every lane gives "
            f"the same "
            "number of cells to a minibatch, and normalisation needs two"
        )
    if micro_cells < 2:
        raise ValueError(f"micro_cells={micro_cells}: batch normalisation needs at least 2 cells")
    if not 0 < train_size <= 1 or validation_size < 0 or train_size + validation_size > 1 + 1e-9:
        raise ValueError(
            f"train_size={train_size} and validation_size={validation_size}: shares of all cells are needed, 0 < "
            f"train_size "
            "and together at most 1"
        )
