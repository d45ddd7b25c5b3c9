"""The training order. Arithmetic only: no clock, no environment, no array of all rows.

The training cells of an epoch form one sequence, the *line*: the blocks of the store in a seeded order, one after the
other. The line is cut into equal spans, one per lane. A lane reads its span window by window, shuffles the cells of a
window, and divides them into minibatches. A global minibatch takes the same number of cells from every lane, and rank r
of W serves the lanes r, r + W, ... So the cells of a step do not depend on W, and any step is found from (epoch, step)
alone.

There are three implementations of the line. `SeededSplit` finds a cell by division and keeps no state.
`WeightedOrder`, for splits by a column and for weights, keeps one number for each block; with weights a row can occur
several times in a window. `ListedOrder` of ``labelled_stream`` lists a few rows individually.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.order.column_sampling import Sampling
from dist_scvi.loaders.order.keyed_hash import hash_rows
from dist_scvi.loaders.order.seeded_split import TRAIN, VALIDATION, SeededSplit, shares_of
from dist_scvi.loaders.order.weighted_order import EpochOrder, WeightedOrder

Split = Literal["train", "validation", "test"]

_CELL_KEY = 4
_BLOCK_CELLS = (16, 4096)
"""Least and most rows of a block: for fewer the request costs more than the data, more gain nothing."""
_BLOCK_CHUNKS = 16
"""Chunks of a block above which the rows that are decompressed but not used, one chunk a block, do not matter."""
_LONG_BLOCK = 320
"""Rows that are always read together if the window allows it."""
_BLOCKS_IF_SHUFFLED = 16
_BLOCKS_PER_CELL = 4
_WINDOWS_HELD = 3
"""Windows in memory: the one in use, the next one, and the parts that the next one is joined from."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The order of a run. Plans with equal fields and lines have the same order on every machine; see `make_plan`."""

    n_cells: int
    """Cells of the store."""
    batch_size: int
    """Cells of a global minibatch, one optimizer step."""
    lanes: int
    """Streams that a global minibatch consists of; a multiple of every world size in use."""
    micro_cells: int
    """Cells that batch normalisation sees together."""
    block_cells: int
    """Rows read together."""
    window_steps: int
    """Steps whose cells are shuffled together."""
    train_size: float
    """Share of the cells. If a column defines the split, the share that results from it."""
    validation_size: float
    """Share of the cells, as for `train_size`."""
    seed: int
    chunk_cells: int = 1
    """Rows that the store decompresses together."""
    shuffled: bool = False
    """Whether the store holds its rows in a random order."""
    line: EpochOrder | None = field(default=None, compare=False, repr=False)
    """Order of the training cells, if columns define the split or the weights."""

    @property
    def strata(self) -> SeededSplit:
        """The seeded split, meaningful only if `line` is None."""
        return SeededSplit(self.n_cells, self.train_size, self.validation_size, self.seed)

    @property
    def lane_cells(self) -> int:
        """Cells of one lane in one step."""
        return self.batch_size // self.lanes

    @property
    def n_train(self) -> int:
        """Cells trained on in every epoch."""
        return self.line.n_draws if self.line else self.strata.split_cells(TRAIN)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, equal on all ranks.

        The remaining cells form a last, smaller step. If they are fewer than two per lane, too few for a variance, they
        are added to the step before.
        """
        return count_steps(self.n_train, self.lanes, self.lane_cells)

    @property
    def windows_per_epoch(self) -> int:
        """Windows in an epoch."""
        return -(-self.steps_per_epoch // self.window_steps)

    @property
    def blocks_in_window(self) -> int | None:
        """Blocks shuffled together over all lanes, or None if a window holds the whole epoch."""
        return None if self.windows_per_epoch == 1 else round(self.window_steps * self.batch_size / self._block_train)

    @property
    def diverse(self) -> bool:
        """Whether a window mixes enough blocks: four for every cell of a minibatch, or 16 if the store is shuffled."""
        return self.blocks_in_window is None or self.blocks_in_window >= _blocks_needed(
            self.batch_size, shuffled=self.shuffled
        )

    @property
    def read_amplification(self) -> float:
        """Rows that the store decompresses for each cell trained on, if one process serves all lanes.

        A block of b rows decompresses b rows and one chunk less one row. Each cut by the end of a window adds another
        chunk less one row.
        """
        blocks = self.line.n_blocks if self.line else -(-self.n_cells // self.block_cells)
        pieces = blocks + self.lanes * self.windows_per_epoch
        decompressed = blocks * self.block_cells + pieces * (self.chunk_cells - 1)
        return min(decompressed, self.windows_per_epoch * self.n_cells) / self.n_train

    @property
    def _block_train(self) -> float:
        """Training cells of a block."""
        if self.line:
            return self.line.block_draws
        split_block = self.strata.stratum_cells
        return self.block_cells // split_block * self.strata.quota(TRAIN, split_block)

    def split_cells(self, split: Split) -> int:
        """Cells of `split` in the whole store."""
        return (self.line.sampling if self.line else self.strata).split_cells(_number(split))

    def trains_on(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return whether each row of ``[start, stop)`` is trained on: in train, with a weight above 0."""
        if self.line:
            return self.line.sampling.masses(start, stop) > 0
        return np.equal(self.strata.split_of(start, stop), TRAIN)

    def step_cells(self, step: int) -> int:
        """Cells of global minibatch `step`, over all ranks."""
        done = step * self.batch_size
        return self.n_train - done if step == self.steps_per_epoch - 1 else self.batch_size

    def entropy_loss_bits(self, n_labels: int) -> float:
        """Predict by how many bits a minibatch is less diverse than the atlas, if every block is of one label.

        Notes
        -----
        ``(K - 1) / (2 ln 2) (1 / m - 1 / w + b (1 / w - 1 / n))`` for K labels, minibatches of m cells, windows of w,
        blocks of b training cells and n of these in all: the Miller-Madow bias of the plug-in entropy of m cells drawn
        from a window, whose ``w / b`` blocks are drawn from the store, both without replacement.
        """
        window = min(self.window_steps * self.batch_size, self.n_train)
        spread = 1 / self.batch_size - 1 / window + self._block_train * (1 / window - 1 / self.n_train)
        return (n_labels - 1) / (2 * math.log(2)) * max(0.0, spread)


def make_plan(
    *,
    n_cells: int,
    n_entries: int,
    n_genes: int,
    batch_size: int,
    lanes: int,
    micro_cells: int = 128,
    train_size: float | None = None,
    validation_size: float | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    memory_bytes: int = 512 << 20,
    block_cells: int | None = None,
    window_cells: int | None = None,
    chunk_cells: int = 1,
    shuffled: bool = False,
) -> Plan:
    """Lay out a run over `n_cells` cells with `n_entries` stored counts.

    Parameters
    ----------
    batch_size
        Cells of a global minibatch, a multiple of `lanes` and at least two for each.
    train_size, validation_size
        Shares of the cells, in steps of 0.001; what they leave is the test split. `train_size` is 0.9 by default and
        `validation_size` the rest.
    sampling
        The split and masses of the rows, instead of the two before; see `open_sampling`. An epoch has as many draws as
        there are training cells.
    memory_bytes
        Upper bound for the windows in the memory of one process that serves all lanes; sets `window_cells`.
    block_cells
        Rows read together, by default the most that leave enough blocks in a window: ``4 batch_size``, or 16 if
        `shuffled` (CorgiPile, SIGMOD 2022). If no size does, ``Plan.diverse`` is False.
    window_cells
        Cells shuffled together.
    chunk_cells
        Rows that the store decompresses together; longer chunks lead to longer blocks.
    shuffled
        Whether the rows of the store are in a random order.

    Raises
    ------
    ValueError
        If sizes are inconsistent, there are too few training cells, or both shares and `sampling` are given.
    """
    check_sizes(batch_size, lanes, micro_cells)
    if sampling and not train_size is validation_size is None:
        raise ValueError(
            f"train_size={train_size}, validation_size={validation_size}: give these to open_sampling instead"
        )
    train_size, validation_size = shares_of(train_size, validation_size)
    strata = SeededSplit(n_cells, train_size, validation_size, seed)
    n_train = (sampling or strata).split_cells(TRAIN)
    if n_train < 2 * lanes:
        raise ValueError(
            f"{n_train} training cells (of {n_cells}) do not give two to each of {lanes} lanes: lower train.lanes"
        )
    # A block of whole strata has the same number of training cells as every other, so that a place on the line is found
    # by division.
    split_block = 1 if sampling else strata.stratum_cells
    if block_cells is not None and (block_cells < split_block or block_cells % split_block):
        raise ValueError(f"block_cells={block_cells} must be a multiple of {split_block} for train_size={train_size}")
    if window_cells is None:
        # 2 bytes for a count, 2 or 4 for a gene number, and 40 for the row itself.
        bytes_per_cell = n_entries / n_cells * (2 + (2 if n_genes <= 1 << 16 else 4)) + 40
        window_cells = int(memory_bytes / (_WINDOWS_HELD * bytes_per_cell))
    window_steps = min(max(1, window_cells // batch_size), count_steps(n_train, lanes, batch_size // lanes))
    if block_cells is None:
        # In a split by a column all cells of a block can be training cells.
        stratum_train = split_block if sampling else strata.quota(TRAIN, split_block)
        n_strata = window_steps * batch_size // (_blocks_needed(batch_size, shuffled=shuffled) * stratum_train)
        block_cells = _block_cells(n_strata * split_block, split_block, chunk_cells)
    return Plan(
        n_cells,
        batch_size,
        lanes,
        micro_cells,
        block_cells,
        window_steps,
        n_train / n_cells if sampling else train_size,
        sampling.split_cells(VALIDATION) / n_cells if sampling else validation_size,
        seed,
        chunk_cells,
        shuffled,
        WeightedOrder(sampling, block_cells, seed) if sampling else None,
    )


def check_world_size(lanes: int, world_size: int) -> None:
    """Refuse a world size that does not divide the lanes.

    Raises
    ------
    ValueError
        With the list of the world sizes that do.
    """
    if lanes % world_size:
        allowed = ", ".join(str(size) for size in range(1, lanes + 1) if lanes % size == 0)
        raise ValueError(
            f"{world_size} workers cannot share {lanes} lanes evenly: use {allowed}, or change train.lanes"
        )


def usable_workers(lanes: int, least: int, most: int) -> int:
    """Return the greatest number of workers from `least` to `most` that can share the lanes evenly.

    Raises
    ------
    ValueError
        If there is none, with the list of the numbers that can.
    """
    for size in range(most, least - 1, -1):
        if lanes % size == 0:
            return size
    check_world_size(lanes, most)
    return most


def lane_span(plan: Plan, lane: int, step: int) -> tuple[int, int]:
    """Return first cell and last + 1 of `step` among the cells of `lane` in one epoch."""
    low = step * plan.lane_cells
    return low, _lane_length(plan, lane) if step == plan.steps_per_epoch - 1 else low + plan.lane_cells


def window_rows(plan: Plan, epoch: int, lane: int, window: int) -> NDArray[np.int64]:
    """Return the rows that `lane` trains on in one window, in training order."""
    first = window * plan.window_steps
    last = min(first + plan.window_steps, plan.steps_per_epoch) - 1
    offset = lane * plan.n_train // plan.lanes
    low, high = offset + lane_span(plan, lane, first)[0], offset + lane_span(plan, lane, last)[1]
    if plan.line:
        # Keyed by the number of the draw: keyed by the row, the draws of one row would be next to each other.
        row_n, key_n = plan.line.draws(epoch, low, high), np.arange(low, high)
    else:
        # Keyed by the row, so that the order within a window does not depend on the order of its blocks.
        row_n = key_n = plan.strata.line(TRAIN, low, high, block_cells=plan.block_cells, epoch=epoch)
    return row_n[np.argsort(hash_rows(key_n, plan.seed, _CELL_KEY, epoch), kind="stable")]


def count_steps(n_train: int, lanes: int, lane_cells: int) -> int:
    """Return the number of steps for `n_train` cells in `lanes`; see `Plan.steps_per_epoch`."""
    # The shortest lane decides: all ranks must take the same number of steps, or a collective operation never ends.
    full, left = divmod(n_train // lanes, lane_cells)
    return full + 1 if left >= 2 or full == 0 else full


def micro_sizes(n_cells: int, micro_cells: int) -> tuple[int, ...]:
    """Cut one lane's cells of a step into micro-minibatches of about `micro_cells`, of sizes as equal as possible.

    None has a single cell unless `n_cells` is 1.
    """
    parts = min(max(1, round(n_cells / micro_cells)), max(1, n_cells // 2))
    return tuple((n_cells + part) // parts for part in range(parts))


def split_rows(plan: Plan, split: Split, low: int, high: int) -> NDArray[np.int64]:
    """Return the rows at places ``[low, high)`` among those of `split`, in the order of the store."""
    if plan.line:
        return plan.line.sampling.rows(_number(split), low, high)
    return plan.strata.line(_number(split), low, high, block_cells=plan.block_cells, epoch=None)


def _lane_length(plan: Plan, lane: int) -> int:
    return (lane + 1) * plan.n_train // plan.lanes - lane * plan.n_train // plan.lanes


def _number(split: Split) -> int:
    return get_args(Split).index(split)


def _blocks_needed(batch_size: int, *, shuffled: bool) -> int:
    return _BLOCKS_IF_SHUFFLED if shuffled else _BLOCKS_PER_CELL * batch_size


def _block_cells(diverse: int, split_block: int, chunk_cells: int) -> int:
    """Return the rows of a block, given that a window is diverse with at most `diverse` rows a block.

    If that is a small part of a chunk, a block is a quarter of a chunk, for which five times as many rows are read.
    """
    most = min(max(_LONG_BLOCK, _BLOCK_CHUNKS * chunk_cells), _BLOCK_CELLS[1])
    least = min(max(_BLOCK_CELLS[0], chunk_cells // 4), most)
    return max(min(max(diverse, least), most) // split_block, 1) * split_block


def check_sizes(batch_size: int, lanes: int, micro_cells: int) -> None:
    """Check that the sizes of minibatches, lanes and micro-minibatches, in cells, are consistent.

    Raises
    ------
    ValueError
        If they are not.
    """
    if lanes < 1 or batch_size < 2 * lanes or batch_size % lanes:
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of lanes={lanes} and at least twice it: every lane gives the "
            "same number of cells to a minibatch, and normalisation needs two"
        )
    if micro_cells < 2:
        raise ValueError(f"micro_cells={micro_cells}: batch normalisation needs at least 2 cells")
