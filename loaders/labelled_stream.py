"""The second stream of semi-supervised training: at every step a minibatch of labelled training cells.

A *pass* contains every labelled training cell once, or a new draw of a given number of each label; passes repeat
without end. They are the epochs of a separate `Plan`: step T of a run is step ``T % steps_per_epoch`` of pass
``T // steps_per_epoch``. If all cells of a pass fit into a window, they are listed, read together, and kept in memory
until the next draw.

Shape letters in this file
    d   draws of a pass
    l   labels
    n   cells, as row numbers of the store
    p   pages of rows
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.csr_rows import CsrRows, gene_type
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.data import CellData, ColumnValues, minibatch
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.order.column_sampling import Sampling, make_sampling
from dist_scvi.loaders.order.keyed_hash import hash_keys, permute
from dist_scvi.loaders.order.plan import Plan, count_steps, make_plan
from dist_scvi.loaders.order.seeded_split import LEFT_OUT, TRAIN
from dist_scvi.loaders.read_limits import READ_TIMEOUT_S
from dist_scvi.loaders.stream import Window, lane_stream, minibatches_of, prefetch, reads_of, windows

_ORDER_KEY, _SAMPLE_KEY, _LABELLED_KEY = 6, 7, 8
_PAGE_ROWS = 1024
"""Fewest rows of a page."""
_PAGE_COUNTS = 1 << 21
"""Most counts of labels by page that are kept in memory."""
_SCAN_ROWS = 1 << 18
_MICRO_KEY = 1 << 40
"""Offset of the micro-minibatch keys, so that none is equal to a key of a minibatch of all cells."""


@dataclass(frozen=True, slots=True)
class LabelledSplit:
    """The split into rows of a plan's training cells with a label, and all others."""

    label: Categorical
    plan: Plan

    @property
    def n_cells(self) -> int:
        """Cells of the store."""
        return self.plan.n_cells

    def labels(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return the label of each row of ``[start, stop)``, -1 if it has none or is not trained on."""
        label_n = self.label.codes(start, stop)
        if (label_n >= 0).any():
            label_n[~self.plan.trains_on(start, stop)] = -1
        return label_n

    def split_of(self, start: int, stop: int) -> NDArray[np.int8]:
        """Return the split of each row of ``[start, stop)``: train, or none."""
        return np.where(self.labels(start, stop) >= 0, np.int8(TRAIN), np.int8(LEFT_OUT))


class LabelSample:
    """A given number of cells of each label, sampled again in every draw, every subset equally likely.

    Parameters
    ----------
    split
        The cells to choose from; read once on construction, and later for the pages of rows with a chosen cell.
    n_samples
        Cells of each label; all cells of a label with fewer.
    seed
        Seed of the choice.
    """

    def __init__(self, split: LabelledSplit, n_samples: int, seed: int) -> None:
        self._split, self._n_samples, self._seed = split, n_samples, seed
        n_cells, n_labels = split.n_cells, len(split.label.vocabulary)
        self._page_rows = max(_PAGE_ROWS, -(-n_cells * n_labels // _PAGE_COUNTS))
        pages = max(1, _SCAN_ROWS // self._page_rows)
        parts = [self._count(page, pages) for page in range(0, -(-n_cells // self._page_rows), pages)]
        self._stop_lp = np.ascontiguousarray(np.cumsum(np.concatenate(parts), axis=0).T)
        self.size = int(np.minimum(self._stop_lp[:, -1], n_samples).sum())

    @property
    def digest(self) -> str:
        """A short hash that changes with the labels of the cells and with the number to draw."""
        return sha256(self._stop_lp.tobytes() + str(self._n_samples).encode()).hexdigest()[:16]

    def rows(self, draw: int) -> NDArray[np.int64]:
        """Return the rows of a draw, in increasing order."""
        chosen = [self._choose(draw, label) for label in range(len(self._stop_lp))]
        label_d = np.repeat(np.arange(len(chosen)), [len(page_d) for page_d, _ in chosen])
        page_d, place_d = (np.concatenate(part) for part in zip(*chosen, strict=True))
        by_page = np.argsort(page_d, kind="stable")
        parts = []
        for same in np.split(by_page, np.flatnonzero(np.diff(page_d[by_page])) + 1):
            start = int(page_d[same[0]]) * self._page_rows
            label_n = self._split.labels(start, min(start + self._page_rows, self._split.n_cells))
            by_label = np.argsort(label_n, kind="stable")
            first_d = np.searchsorted(label_n[by_label], label_d[same])
            parts.append(start + by_label[first_d + place_d[same]])
        # Sorted, because `_held` finds the rows of a window by binary search.
        return np.sort(np.concatenate(parts))

    def _choose(self, draw: int, label: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the chosen cells of a label: the page of each, and its place among the cells of the label there."""
        stop_p = self._stop_lp[label]
        n_label = int(stop_p[-1])
        rank_d = np.arange(min(n_label, self._n_samples))
        # A permutation by arithmetic rather than a random choice: no list of the cells of a label is needed.
        if len(rank_d) < n_label:
            rank_d = permute(rank_d, n_label, hash_keys(self._seed, _SAMPLE_KEY, draw, label))
        page_d = np.searchsorted(stop_p, rank_d, side="right")
        return page_d, rank_d - np.append(0, stop_p)[page_d]

    def _count(self, page: int, pages: int) -> NDArray[np.int64]:
        """Count the cells of each label on some pages, shape (p, l)."""
        start = page * self._page_rows
        label_n = self._split.labels(start, min(start + pages * self._page_rows, self._split.n_cells))
        n_pages, n_labels = -(-len(label_n) // self._page_rows), len(self._split.label.vocabulary)
        at_n = np.arange(len(label_n)) // self._page_rows * n_labels + label_n
        return np.bincount(at_n[label_n >= 0], minlength=n_pages * n_labels).reshape(n_pages, n_labels)


class ListedOrder:
    """The labelled cells of a pass, listed individually, in another order in every pass.

    Parameters
    ----------
    sampling
        All labelled training cells.
    sample
        Chooses those of a pass; None for all.
    steps
        Steps of a pass.
    redraw_steps
        Steps for which a choice is kept; a pass keeps the choice of its first step.
    seed
        Seed of the order.
    """

    def __init__(
        self, sampling: Sampling, sample: LabelSample | None, *, steps: int, redraw_steps: int, seed: int
    ) -> None:
        self.sampling, self.n_draws = sampling, sample.size if sample else sampling.split_cells(TRAIN)
        self._sample, self._steps, self._redraw_steps, self._seed = sample, steps, redraw_steps, seed
        self.rows = lru_cache(2)(self._rows_of)

    @property
    def n_blocks(self) -> int:
        """As many as cells: no two rows of a pass need be next to each other."""
        return self.n_draws

    @property
    def block_draws(self) -> float:
        """1: every block has one row."""
        return 1.0

    @property
    def digest(self) -> str:
        """A short hash that changes with the rows, and with the number of each label to draw."""
        return self._sample.digest if self._sample else sha256(self.rows(0).tobytes()).hexdigest()[:16]

    def draw_of(self, number: int) -> int:
        """Return the draw that pass `number` uses."""
        return number * self._steps // self._redraw_steps if self._sample else 0

    def draws(self, epoch: int, low: int, high: int) -> NDArray[np.int64]:
        """Return the rows at the places ``[low, high)`` of pass `epoch`."""
        order_d = permute(np.arange(low, high), self.n_draws, hash_keys(self._seed, _ORDER_KEY, epoch))
        return self.rows(self.draw_of(epoch))[order_d]

    def _rows_of(self, draw: int) -> NDArray[np.int64]:
        return self._sample.rows(draw) if self._sample else self.sampling.rows(TRAIN, 0, self.n_draws)


def count_labelled(data: CellData, plan: Plan) -> int:
    """Count the training cells that have a label."""
    return 0 if data.label is None else make_sampling(LabelledSplit(data.label, plan)).split_cells(TRAIN)


def labelled_plan(
    data: CellData,
    plan: Plan,
    *,
    n_samples_per_label: int | None = None,
    redraw_steps: int = 1,
    window_cells: int | None = None,
) -> Plan:
    """Return the plan of the passes over the labelled training cells of `plan`.

    A minibatch has as many cells as one of `plan`, or all cells of a pass if these are fewer. They are divided among as
    many lanes as can have a whole micro-minibatch each, at least one, because normalisation over a few cells is
    inaccurate; the workers of the other lanes get none.

    Parameters
    ----------
    plan
        The plan over all training cells. A cell of weight 0 is in no pass, any other exactly once for any weight.
    n_samples_per_label
        Cells of each label in a pass, drawn without replacement; all cells of a label with fewer. By default all cells
        of all labels.
    redraw_steps
        Steps for which a draw is kept: with 1 every pass has a new draw, with ``plan.steps_per_epoch`` every epoch, as
        in scvi-tools. The cells of a draw are anywhere in the store: reading them costs about as much as reading all.
    window_cells
        Cells shuffled, and kept in memory, together; by default as many as in `plan`.

    Returns
    -------
    Plan
        Its epochs are the passes.

    Raises
    ------
    ValueError
        If there are no labels, or fewer than two cells in a pass.
    """
    _check(data, n_samples_per_label, redraw_steps)
    assert data.label is not None
    seed, split = hash_keys(plan.seed, _LABELLED_KEY), LabelledSplit(data.label, plan)
    sampling = make_sampling(split)
    n_labelled = sampling.split_cells(TRAIN)
    sample = LabelSample(split, n_samples_per_label, seed) if n_samples_per_label and n_labelled else None
    n_draws = sample.size if sample else n_labelled
    if n_draws < 2:
        raise _too_few(data, n_draws, n_labelled)
    lanes = min(plan.lanes, max(1, n_draws // min(plan.lane_cells, plan.micro_cells)))
    lane_cells = plan.lane_cells if n_draws >= plan.batch_size else n_draws // lanes
    steps = count_steps(n_draws, lanes, lane_cells)
    window_cells = window_cells or plan.window_steps * plan.batch_size
    if window_cells < n_draws == n_labelled:
        return make_plan(
            n_cells=plan.n_cells,
            n_entries=data.store.n_entries,
            n_genes=data.n_genes,
            batch_size=lanes * lane_cells,
            lanes=lanes,
            micro_cells=plan.micro_cells,
            sampling=sampling,
            seed=seed,
            window_cells=window_cells,
            chunk_cells=plan.chunk_cells,
            shuffled=plan.shuffled,
        )
    return replace(
        plan,
        batch_size=lanes * lane_cells,
        lanes=lanes,
        block_cells=1,
        window_steps=min(max(1, window_cells // (lanes * lane_cells)), steps),
        train_size=n_labelled / plan.n_cells,
        validation_size=0.0,
        seed=seed,
        line=ListedOrder(sampling, sample, steps=steps, redraw_steps=redraw_steps, seed=seed),
    )


def labelled_stream(
    data: CellData,
    labelled: Plan,
    *,
    rank: int,
    world_size: int,
    first_step: int,
    n_steps: int,
    timeout_s: float = READ_TIMEOUT_S,
) -> Iterator[MiniBatch]:
    """Yield this rank's part of the labelled global minibatch at each of `n_steps` steps of a run.

    Parameters
    ----------
    labelled
        The result of `labelled_plan`. Rank r of W serves the lanes r, r + W, ...; if there are none, its minibatches
        have no cells.
    first_step
        Steps of the run done before, over all epochs. Their cells are not read.

    Returns
    -------
    Iterator of MiniBatch
        ``epoch`` is the pass and ``step`` the step in it. No number in ``micro_keys`` is one of `train_stream`.

    Raises
    ------
    ValueError
        If a row holds a value that is not a raw count.
    TimeoutError
        If cells do not arrive within `timeout_s` seconds.
    """
    lanes, stop = range(rank, labelled.lanes, world_size), first_step + n_steps
    if not lanes:
        parts = _without_cells(data, labelled, first_step, stop)
    elif isinstance(labelled.line, ListedOrder) and labelled.windows_per_epoch == 1:
        held = _held(data, labelled, labelled.line, lanes, first_step, stop, timeout_s)
        parts = minibatches_of(data, labelled, held, timeout_s=timeout_s)
    else:
        parts = lane_stream(data, labelled, lanes, first_step, stop, timeout_s=timeout_s)
    for part in parts:
        yield replace(part, micro_keys=tuple(_MICRO_KEY + key for key in part.micro_keys))


def _held(
    data: CellData, labelled: Plan, line: ListedOrder, lanes: range, first: int, stop: int, timeout_s: float
) -> Iterator[tuple[Window, CsrRows, ColumnValues]]:
    """Yield the windows of passes; each draw is read once, while the draw before is in use."""
    passes = range(first // labelled.steps_per_epoch, -(-stop // labelled.steps_per_epoch))

    def drawn() -> Iterator[tuple[NDArray[np.int64], CsrRows, ColumnValues]]:
        for draw, _ in groupby(passes, line.draw_of):
            row_n = line.rows(draw)
            yield row_n, *data.read(*reads_of(row_n))

    draws = prefetch(drawn(), 1, timeout_s)
    for _, same in groupby(windows(labelled, lanes, first, stop), lambda window: line.draw_of(window.epoch)):
        row_n, counts, columns = next(draws)
        for window in same:
            at_n = np.searchsorted(row_n, window.row_n)
            yield window, counts.take(at_n), columns.take(at_n)


def _without_cells(data: CellData, labelled: Plan, first: int, stop: int) -> Iterator[MiniBatch]:
    counts = CsrRows(np.zeros(0, np.uint8), np.zeros(0, gene_type(data.n_genes)), np.zeros(1, np.int64))
    columns, row_n = data.columns_of([(0, 1)]).take(slice(0)), np.zeros(0, np.int64)
    for at in range(first, stop):
        number, step = divmod(at, labelled.steps_per_epoch)
        yield minibatch(
            data,
            counts,
            columns,
            row_n,
            epoch=number,
            step=step,
            micro_n=(),
            micro_keys=(),
            global_cells=labelled.step_cells(step),
        )


def _check(data: CellData, n_samples_per_label: int | None, redraw_steps: int) -> None:
    if data.label is None:
        raise ValueError("the cells were opened without labels: name the obs column that holds them as labels_key")
    if n_samples_per_label is not None and n_samples_per_label < 1:
        raise ValueError(f"n_samples_per_label={n_samples_per_label}: 1 or more are needed, or None for all cells")
    if redraw_steps < 1:
        raise ValueError(f"redraw_steps={redraw_steps}: 1 or more are needed")


def _too_few(data: CellData, n_draws: int, n_labelled: int) -> ValueError:
    assert data.label is not None
    where = f"obs column '{data.label.key}' (labels_key)"
    if n_draws < n_labelled:
        return ValueError(
            f"n_samples_per_label=1 draws one cell in all, for {where} gives the training cells one label only: "
            "normalisation needs two cells, raise it"
        )
    return ValueError(
        f"{n_labelled or 'none'} of the training cells has a label in {where}, where unlabeled_category="
        f"{data.unlabeled_category!r} is none: at least two are needed; choose another column or category, or hold out "
        "fewer cells"
    )
