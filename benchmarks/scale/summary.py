"""Medians over the rounds, efficiencies within each round, and the shares of a step.

A run is a case that was gone through once: what was asked, and what its workers answered.
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from .cost import Load
from .fit import Timed

Run = dict[str, Any]
CELLS = 1024
"""Of each worker in weak scaling, of both in strong scaling."""


def training(runs: Sequence[Run]) -> dict[str, Any]:
    """Say what two workers give over one: with as many cells each (weak), and with as many in all (strong)."""
    by_name = _by_name(runs)
    rates = {name: [_cells_per_s(run) for run in same] for name, same in by_name.items()}
    one, beside = rates[f"1 worker, {CELLS:,} cells"], rates[f"1 worker, {CELLS:,} cells, parts not timed"]
    return {
        "cases": {
            name: {
                "cells_per_s": round(median(rates[name])),
                "shares": {part: round(share, 4) for part, share in _shares(same).items()},
            }
            for name, same in by_name.items()
        },
        "weak": _efficiency(rates, f"{CELLS:,} cells", one),
        "strong": _efficiency(rates, f"{CELLS // 2} cells", one),
        "rate if parts are timed over rate if not": _ratio(one, beside),
    }


def _efficiency(rates: dict[str, list[float]], each: str, one: Sequence[float]) -> dict[str, Any]:
    together, apart = rates[f"2 workers together, {each}"], rates[f"2 workers apart, {each}"]
    return {
        "over twice one worker": _ratio(together, [2 * rate for rate in one]),
        "over two workers apart": _ratio(together, apart),
        "two workers apart over twice one worker": _ratio(apart, [2 * rate for rate in one]),
    }


def reading(runs: Sequence[Run], entries_of: dict[int, float]) -> list[dict[str, Any]]:
    """Say what one reader of all lanes and two readers of half of them give and cost."""
    rows = []
    for (genes, name), same in _by(runs, "genes", "name").items():
        cpu_s = [sum(rank["cpu_s"] for rank in run["ranks"]) / _cells(run) for run in same]
        rates = [sum(rank["cells"] / rank["seconds"] for rank in run["ranks"]) for run in same]
        rows.append(
            {
                "genes": genes,
                "case": name,
                "entries_per_cell": round(entries_of[genes], 1),
                "cells_per_s": round(median(rates)),
                "cpu_s_per_million_cells": round(1e6 * median(cpu_s), 2),
            }
        )
    return rows


def messages(runs: Sequence[Run]) -> dict[int, float]:
    """Give the median seconds in which so many bytes were added up."""
    by_size = _by(runs, "n_bytes").items()
    return {size: median(run["ranks"][0]["seconds"] for run in same) for (size,), same in by_size}


def timed(runs: Sequence[Run], entries_of: dict[int, float]) -> list[Timed]:
    """Give the median step of each case and its parts, as the cost model takes them."""
    cases = []
    for (genes, name), same in _by(runs, "genes", "name").items():
        first, shares = same[0], _shares(same)
        if first["timed"]:
            rate = median(rank["cells_per_s"] for run in same for rank in run["ranks"])
            step = first["batch_size"] / rate
            parts = {part: shares[part] * step for part in ("all_reduce", "optimizer", "reading")}
            load = Load(genes, entries_of[genes], first["cells_each"])
            cases.append(Timed(name, first["who"], load, step, **parts))
    return cases


def overlap(runs: Sequence[Run]) -> float:
    """Smallest part of the time of two workers apart in which the other was at work too."""
    shares = [1.0]
    for run in runs:
        if run["who"] == "apart":
            begins, ends = ([rank[edge] for rank in run["ranks"]] for edge in ("began", "ended"))
            shares.append((min(ends) - max(begins)) / (max(ends) - min(begins)))
    return round(min(shares), 3)


def _cells_per_s(run: Run) -> float:
    """Cells per second of all workers; of those together the first tells it for both."""
    return sum(float(rank["cells_per_s"]) for rank in run["ranks"])


def _cells(run: Run) -> int:
    return sum(int(rank["cells"]) for rank in run["ranks"])


def _shares(same: Sequence[Run]) -> dict[str, float]:
    """Median share of each part in the steps of the first worker."""
    told = [run["ranks"][0]["shares"] for run in same]
    return {part: median(shares[part] for shares in told) for part in told[0]}


def _ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    rounds = [round(a / b, 4) for a, b in zip(above, below, strict=True)]
    return {"median": round(median(rounds), 4), "rounds": rounds}


def _by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {name: same for (name,), same in _by(runs, "name").items()}


def _by(runs: Sequence[Run], *keys: str) -> dict[tuple[Any, ...], list[Run]]:
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(run[key] for key in keys)].append(run)
    return groups
