"""Fit the cost model to what was measured on this machine, and check it on what was not used for that.

Shape letters in this file
    m   measured cases
    c   constants
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from .cost import ADAM_BYTES, Link, Load, Machine, all_reduce_s, predict
from .count import WorkOf


@dataclass(frozen=True, slots=True)
class Timed:
    """A measured case: seconds of a step and of its parts."""

    name: str
    who: str
    """one, apart or together, the last two by two workers."""
    load: Load
    """Of each worker."""
    step: float
    all_reduce: float
    optimizer: float
    reading: float

    @property
    def workers(self) -> int:
        """Workers that share a step."""
        return 2 if self.who == "together" else 1

    @property
    def compute(self) -> float:
        """What is left of the step: forward, backward, making counts dense, and what is between."""
        return self.step - self.all_reduce - self.optimizer - self.reading


def fit_here(
    timed_m: Sequence[Timed], work_of: WorkOf, flops_per_s: float, read_c: NDArray[np.float64], link: Link
) -> Machine:
    """Fit a machine by least squares of relative errors, none of its constants below 0.

    Parameters
    ----------
    timed_m
        Cases of one worker, of two apart and of two together, as many as there are.
    flops_per_s
        Measured by products of matrices alone: they grow as other operators do, which no fit could tell apart.
    read_c, link
        Measured alone: seconds of the reader for a cell and for an entry; messages.
    """
    alone = [timed for timed in timed_m if timed.who == "one"]
    works = [work_of(timed.load.cells, timed.load.genes, timed.load.entries_per_cell) for timed in alone]
    terms_mc = [
        (work.memory_bytes, work.kernels, timed.load.cells * timed.load.entries_per_cell)
        for work, timed in zip(works, alone, strict=True)
    ]
    products_m = np.array([work.flops for work in works]) / flops_per_s
    compute_m = np.array([timed.compute for timed in alone])
    per_byte, kernel_s, entry_s = nnls(np.array(terms_mc) / compute_m[:, None], 1 - products_m / compute_m)[0]
    moved_m = ADAM_BYTES * np.array([work.parameters for work in works])
    machine = Machine(
        flops_per_s=flops_per_s,
        memory_bytes_per_s=1 / float(per_byte) if per_byte else math.inf,
        kernel_s=float(kernel_s),
        entry_s=float(entry_s),
        async_kernels=False,
        optimizer_bytes_per_s=1 / _slope(moved_m, np.array([timed.optimizer for timed in alone])),
        bus_bytes_per_s=math.inf,
        read_cell_s=float(read_c[0]),
        read_entry_s=float(read_c[1]),
        disk_bytes_per_s=math.inf,
        workers_per_node=2,
        within=link,
        between=link,
    )
    machine = replace(machine, crowding=_crowding(timed_m, work_of, machine))
    return replace(machine, jitter=_jitter(timed_m, work_of, machine))


def fit_link(seconds_of: dict[int, float]) -> Link:
    """Fit latency and bandwidth to messages of several sizes, in bytes, between two workers."""
    sizes_m, seconds_m = np.array(list(seconds_of), dtype=float), np.array(list(seconds_of.values()))
    terms_mc = np.stack([np.ones_like(sizes_m), sizes_m], axis=1)
    latency_s, per_byte = nnls(terms_mc / seconds_m[:, None], np.ones_like(seconds_m))[0]
    return Link(float(latency_s), float(1 / per_byte))


def fit_reading(entries_per_cell_m: Sequence[float], seconds_per_cell_m: Sequence[float]) -> NDArray[np.float64]:
    """Fit the seconds of a reader for a cell, and for a stored entry."""
    terms_mc = np.stack([np.ones(len(entries_per_cell_m)), np.array(entries_per_cell_m)], axis=1)
    fitted: NDArray[np.float64] = nnls(terms_mc, np.array(seconds_per_cell_m))[0]
    return fitted


def check(
    timed_m: Sequence[Timed], fitted_on: Sequence[Timed], work_of: WorkOf, machine: Machine
) -> list[dict[str, Any]]:
    """Put what is predicted for each case beside what was measured."""
    rows = []
    for timed in timed_m:
        predicted = predict(machine, work_of, timed.load, timed.workers, crowded=timed.who != "one")
        measured = timed.workers * timed.load.cells / timed.step
        rows.append(
            {
                "case": timed.name,
                "genes": timed.load.genes,
                "used_in_fit": timed in fitted_on,
                "measured_cells_per_s": round(measured),
                "predicted_cells_per_s": round(predicted.cells_per_s),
                "error": round(predicted.cells_per_s / measured - 1, 4),
                "all_reduce_ms": {
                    "measured": round(1e3 * timed.all_reduce, 2),
                    "predicted": round(1e3 * predicted.all_reduce, 2),
                },
            }
        )
    return rows


def _crowding(timed_m: Sequence[Timed], work_of: WorkOf, machine: Machine) -> float:
    """Factor by which two workers that share nothing but the machine are slower than one alone."""
    apart = [timed for timed in timed_m if timed.who == "apart"]
    free = [predict(machine, work_of, timed.load, 1) for timed in apart]
    return _slope(np.array([each.compute + each.optimizer for each in free]), np.array([timed.step for timed in apart]))


def _jitter(timed_m: Sequence[Timed], work_of: WorkOf, machine: Machine) -> float:
    """Share of its computing for which a worker waits, beyond the time of the messages."""
    together = [timed for timed in timed_m if timed.who == "together"]
    compute_m, waited_m = [], []
    for timed in together:
        work = work_of(timed.load.cells, timed.load.genes, timed.load.entries_per_cell)
        compute_m.append(predict(machine, work_of, timed.load, 1, crowded=True).compute)
        waited_m.append(timed.all_reduce - all_reduce_s(machine, 4 * work.parameters, timed.workers))
    return max(0.0, _slope(np.array(compute_m), np.array(waited_m)))


def _slope(x_m: NDArray[np.float64], y_m: NDArray[np.float64]) -> float:
    return float(x_m @ y_m / (x_m @ x_m))
