"""What the plan of a run over 10^9 cells costs: to make, to find a position in, to give what is read for a window.

A seek is to the middle of an epoch and lays out the window from there on; the first one of an epoch costs more where a
column decides what is trained on, which then needs a number for each block. Memory is what Python and numpy hold after
the first seek, and at most up to then. No store is needed, for the plan is arithmetic. The job is a JSON object, the
first argument; a line of JSON answers.
"""

import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.order.column_sampling import Sampling, make_sampling, named_split
from dist_scvi.loaders.order.plan import Plan, make_plan
from dist_scvi.loaders.stream import Window, reads_of, windows

T = TypeVar("T")
N_GENES, ENTRIES_PER_CELL, CHUNK_CELLS = 20_000, 1400, 64
_EPOCH = 7
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class MadeColumn:
    """Codes of a column that says train or validation for runs of 1,000 rows, made when they are asked for."""

    n_cells: int

    def __len__(self) -> int:
        return self.n_cells

    def __getitem__(self, rows: slice) -> NDArray[np.int8]:
        start, stop, _ = rows.indices(self.n_cells)
        code_n: NDArray[np.int8] = (np.arange(start, stop) // 1000 % 10 == 0).astype(np.int8)
        return code_n


def cost_of(n_cells: int, workers: int, sampling: Sampling | None, *, shuffled: bool) -> dict[str, Any]:
    """Plan a run of `workers`, 1,024 cells and 512 MiB each, and one window of it."""
    tracemalloc.start()
    plan, plan_s = _timed(lambda: _plan(n_cells, workers, sampling, shuffled=shuffled))
    lanes, steps = range(0, plan.lanes, workers), plan.steps_per_epoch
    at = _EPOCH * steps + steps // 2

    def seek() -> Window:
        return next(windows(plan, lanes, at, at + plan.window_steps))

    first_seek_s = _timed(seek)[1]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    window = seek()
    seek_s = sorted(_timed(seek)[1] for _ in range(_REPEATS))[_REPEATS // 2]
    reads, reads_s = _timed(lambda: reads_of(window.row_n))
    return {
        "workers": workers,
        "shuffled": shuffled,
        "by_column": sampling is not None,
        "block_cells": plan.block_cells,
        "blocks": -(-n_cells // plan.block_cells),
        "window_cells": plan.window_steps * plan.batch_size,
        "steps_per_epoch": steps,
        "reads_of_a_window": len(reads[0]),
        "plan_s": plan_s,
        "first_seek_s": first_seek_s,
        "seek_s": seek_s,
        "reads_s": reads_s,
        "held_mib": held / 2**20,
        "peak_mib": peak / 2**20,
    }


def _plan(n_cells: int, workers: int, sampling: Sampling | None, *, shuffled: bool) -> Plan:
    return make_plan(
        n_cells=n_cells,
        n_entries=n_cells * ENTRIES_PER_CELL,
        n_genes=N_GENES,
        batch_size=1024 * workers,
        lanes=max(8, workers),
        sampling=sampling,
        memory_bytes=workers * (512 << 20),
        chunk_cells=CHUNK_CELLS,
        shuffled=shuffled,
    )


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def main() -> None:
    job = json.loads(sys.argv[1])
    n_cells = job["n_cells"]
    cases = [(workers, shuffled) for shuffled in (True, False) for workers in (1, 64)]
    rows = [cost_of(n_cells, workers, None, shuffled=shuffled) for workers, shuffled in cases]
    column = Categorical("split", ("train", "validation"), MadeColumn(n_cells), np.arange(2, dtype=np.int32))
    sampling, column_s = _timed(lambda: make_sampling(named_split(column, n_cells)))
    rows += [cost_of(n_cells, workers, sampling, shuffled=shuffled) for workers, shuffled in ((64, True), (1, False))]
    print(json.dumps({"n_cells": n_cells, "read_column_s": column_s, "cases": rows}), flush=True)


if __name__ == "__main__":
    main()
