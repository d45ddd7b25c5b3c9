"""Measure how training scales from one worker to two here, and predict from it what GPUs would do.

- What do two workers give over one on this machine, with the same minibatch (strong) and with 1,024 cells each (weak),
  and where does the time of a step go? Two workers apart, that know nothing of each other, tell what the machine alone
  takes away: the "cores" of many virtual machines are threads of one.
- What will 1 to 64 GPUs do? The work of a step is counted; a model of its cost is fitted to part of the measurements
  and checked on the rest; the constants of GPUs are assumed (scale/gpus.py).
- What does the plan of 10^9 cells cost (scale/plan.py)?

    python benchmarks/scaling.py --scratch /big/disk            # 11 minutes
    python benchmarks/scaling.py --scratch /big/disk --quick    # 2 minutes, to see that all of it runs
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from scale import summary
from scale.count import WorkOf, count_work
from scale.fit import check, fit_here, fit_link, fit_reading
from scale.gpus import ASSUMED, predictions
from scale.summary import CELLS, Run
from table import scaling_tables

from dist_scvi.loaders.pack.pack import pack_store
from dist_scvi.loaders.simulate import simulate
from dist_scvi.loaders.stores.open import open_store

HERE = Path(__file__).parent
RESULT = HERE / "results" / "scaling.json"
LIMIT_S = 600
WHO = {"one": "1 worker", "apart": "2 workers apart", "together": "2 workers together"}
HELD_OUT_GENES = 8000
"""What two workers do with so many genes is predicted, and not used in the fit."""
MESSAGES = tuple(1 << power for power in range(10, 25, 2))
"""Bytes that are added up alone: 1 KiB to 16 MiB."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    cells: dict[int, int]
    """Of the stores, by their number of genes."""
    rounds: int = 3
    window_cells: int = 8192
    plan_cells: int = 10**9


FULL = Sizes({2000: 49_152, 8000: 18_432})
QUICK = Sizes({2000: 12_288, 8000: 12_288}, rounds=1, window_cells=4096, plan_cells=10**7)


@dataclass(frozen=True, slots=True)
class Store:
    """Cells on disk, as simulated and packed."""

    plain: str
    packed: str
    n_cells: int
    n_genes: int
    entries_per_cell: float


def make_store(scratch: Path, n_cells: int, n_genes: int) -> Store:
    """Simulate and pack cells, if an earlier run has not."""
    plain = scratch / f"scaling-{n_cells}x{n_genes}.zarr"
    packed = plain.with_name(f"packed-{plain.name}")
    if not plain.exists():
        simulate(plain, n_cells=n_cells, n_genes=n_genes)
    if not packed.exists():
        pack_store(partial(open_store, plain), packed)
    return Store(str(plain), str(packed), n_cells, n_genes, open_store(packed).n_entries / n_cells)


def training_cases(store: Store, sizes: Sizes) -> list[Run]:
    """List what is trained."""
    asked = [("one", CELLS, False)]
    asked += [(who, cells, True) for who in WHO for cells in (CELLS, CELLS // 2)]
    cases = []
    for who, each, timed in asked:
        batch_size = 2 * each if who == "together" else each
        cases.append(
            {
                "what": "train",
                "name": f"{WHO[who]}, {each:,} cells{'' if timed else ', parts not timed'}",
                "who": who,
                "timed": timed,
                "store": store.packed,
                "genes": store.n_genes,
                "cells_each": each,
                "batch_size": batch_size,
                "steps_per_row": max(1, store.n_cells // batch_size // 6),
                "window_cells": sizes.window_cells,
            }
        )
    return cases


def reading_cases(store: Store, sizes: Sizes) -> list[Run]:
    """List what is only read: all lanes by one reader, or half of them by each of two at once."""
    return [
        {
            "what": "read",
            "name": f"{readers}, {kind}",
            "who": who,
            "store": uri,
            "genes": store.n_genes,
            "window_cells": sizes.window_cells,
            "epochs": 8,
        }
        for kind, uri in (("packed", store.packed), ("as simulated", store.plain))
        for who, readers in (("one", "1 reader of all lanes"), ("together", "2 readers of half of them"))
    ]


def go_through(cases: Sequence[Run]) -> list[Run]:
    """Let two processes of one thread each go through the cases, and add to each what they answered.

    What is not timed by parts comes first, before the timers are set.
    """
    ordered = sorted(cases, key=lambda case: case.get("timed", True))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(HERE / "scale" / "worker.py"), json.dumps({"cases": ordered})],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the workers failed:\n{done.stderr[-4000:]}")
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    runs = [{**case, "ranks": [rank for rank in ranks if rank]} for case, ranks in zip(ordered, answers, strict=True)]
    for run in runs:
        print(json.dumps({key: run[key] for key in ("name", "genes", "ranks") if key in run}), file=sys.stderr)
    return runs


def cases_of_a_round(stores: Sequence[Store], sizes: Sizes) -> list[Run]:
    """List a warm-up, what is trained, and what the parts of the machine do alone."""
    cases: list[Run] = [{**training_cases(stores[0], sizes)[0], "what": "train", "name": "warm-up", "who": "apart"}]
    for store in stores:
        cases += training_cases(store, sizes) + reading_cases(store, sizes)
        cases.append({"what": "multiply", "name": "multiply", "who": "one", "n_cells": CELLS, "n_genes": store.n_genes})
    return cases + [{"what": "send", "name": "send", "who": "together", "n_bytes": n_bytes} for n_bytes in MESSAGES]


def model_of(runs: list[Run], work_of: WorkOf, entries_of: dict[int, float]) -> dict[str, Any]:
    """Fit the cost model, check it on what two workers did with `HELD_OUT_GENES`, and predict."""
    readers = [row for row in summary.reading(_only(runs, "read"), entries_of) if row["case"].endswith("lanes, packed")]
    flops_per_s = median(run["ranks"][0]["flops_per_s"] for run in _only(runs, "multiply"))
    link = fit_link(summary.messages(_only(runs, "send")))
    read_c = fit_reading([row["entries_per_cell"] for row in readers], [1 / row["cells_per_s"] for row in readers])
    cases = summary.timed(_only(runs, "train"), entries_of)
    known = [case for case in cases if case.who == "one" or case.load.genes != HELD_OUT_GENES]
    here = fit_here(known, work_of, flops_per_s, read_c, link)
    return {
        "counted": {
            "terms": "1, n, g, n g, entries",
            "coefficients": work_of.coefficients.tolist(),
            "misfit": work_of.misfit,
        },
        "this_machine": {name: value for name, value in asdict(here).items() if value != math.inf},
        "check": check(cases, known, work_of, here),
        "assumed_of_gpus": ASSUMED,
        "predicted": predictions(work_of, here),
    }


def measure_all(stores: Sequence[Store], sizes: Sizes) -> dict[str, Any]:
    """Take all rounds, and what is measured once."""
    load_average, entries_of = os.getloadavg()[0], {store.n_genes: store.entries_per_cell for store in stores}
    cases = cases_of_a_round(stores, sizes)
    runs = [run for _ in range(sizes.rounds) for run in go_through(cases) if run["name"] != "warm-up"]
    trained = _only(runs, "train")
    plan = [sys.executable, str(HERE / "scale" / "plan.py"), json.dumps({"n_cells": sizes.plan_cells})]
    planned = subprocess.run(plan, capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout
    return {
        "question": "cells per second of two workers over one, of GPUs by a model of cost, and the cost of a plan",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {os.sysconf('SC_PHYS_PAGES') * 4096 >> 30} GiB",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("torch", "numpy", "zarr", "zarrs")},
        "load_average_before": load_average,
        "sizes": asdict(sizes),
        "entries_per_cell": {genes: round(entries, 1) for genes, entries in entries_of.items()},
        "training": {
            genes: {**summary.training(of_genes), "overlap_of_workers_apart": summary.overlap(of_genes)}
            for genes, of_genes in ((genes, [run for run in trained if run["genes"] == genes]) for genes in entries_of)
        },
        "reading": summary.reading(_only(runs, "read"), entries_of),
        "model": model_of(runs, count_work(), entries_of),
        "plan": json.loads(planned),
        "runs": runs,
    }


def _only(runs: Sequence[Run], what: str) -> list[Run]:
    return [run for run in runs if run["what"] == what]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("scratch"), help="folder for the stores, which are kept")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT, help="a figure of the same name, .svg, lies beside it")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    sizes = replace(sizes, rounds=options.rounds or sizes.rounds)
    options.scratch.mkdir(parents=True, exist_ok=True)
    stores = [make_store(options.scratch, n_cells, n_genes) for n_genes, n_cells in sizes.cells.items()]
    result = measure_all(stores, sizes)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n\n".join(scaling_tables(options.out)))
    try:
        from scale.figure import draw
    except ImportError:
        print("no figure: matplotlib is not installed", file=sys.stderr)
    else:
        draw(json.loads(options.out.read_text()), options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
