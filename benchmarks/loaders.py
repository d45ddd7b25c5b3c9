"""Compare how fast loaders deliver minibatches of cells that lie on disk, and what that costs.

The same synthetic cells, like those of Tahoe-100M, are written in the format each program reads. Every program shuffles
the same number of blocks of the same length together, and gives the same minibatches: rows of a CSR matrix, or dense
float32. Each measurement is a process of its own; the programs take turns, so that what disturbs the machine disturbs
all. Hot means that the files were read just before; cold that the page cache was told to forget them
(posix_fadvise), which ``mb_from_disk_per_s`` bears out.

    python benchmarks/loaders.py --setup /usr/bin/python3.12     # once: the peers, in environments of their own
    python benchmarks/loaders.py --scratch /big/disk             # 5 minutes to write the stores once, then 15
    python benchmarks/loaders.py --scratch /big/disk --quick     # 2 minutes, to see that all of it runs
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from peers.cells import N_GENES, load_cells
from peers.measure import entropy_bits, files_of
from peers.stores import make_stores

HERE = Path(__file__).parent
RESULT = HERE / "results" / "loaders.json"
ANNBATCH, PEERS = Path(".peers/annbatch"), Path(".peers/loaders")
INSTALLED = {
    ANNBATCH: ["annbatch[zarrs]==0.3.1"],
    PEERS: ["scdataset==0.3.0", "tiledbsoma-ml==0.1.0", "torch"],
}
TOLD = ("cells_per_s", "share_of_ceiling", "cpu_s_per_million_cells", "p99_next_ms", "peak_rss_mib", "median", "error")
N_SUBSET = 2000
LIMIT_S = 180


@dataclass(frozen=True, slots=True)
class Program:
    """A script of ``peers/`` over one of the stores."""

    script: str
    store: str
    python: str
    """ours, annbatch or peers."""
    slow: bool = False
    """Measured once where it is not the main question."""
    windowed: bool = True
    """Whether it reads a window ahead, so that only whole windows say how fast it is."""

    @property
    def name(self) -> str:
        """As it stands in the result."""
        return f"{self.script}@{self.store}"


OURS = [Program("dist_scvi", store, "ours") for store in ("packed", "annbatch", "zarr", "h5ad", "soma")]
THEIRS = [Program("annbatch", store, "annbatch") for store in ("annbatch", "packed")]
OTHERS = [
    Program("scdataset", "h5ad", "peers", slow=True),
    Program("anncollection", "h5ad", "peers", slow=True, windowed=False),
    Program("soma_ml", "soma", "peers", slow=True),
    Program("soma_slices", "soma", "peers", slow=True, windowed=False),
]
FAST = [OURS[0], OURS[1], THEIRS[0]]
RATIOS = {"own stores": (OURS[0].name, THEIRS[0].name), "the same store": (OURS[1].name, THEIRS[0].name)}
CEILINGS = ("packed", "annbatch", "zarr", "h5ad")


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of some programs."""

    name: str
    programs: list[Program]
    batch_size: int = 1024
    dense: bool = False
    cold: bool = False
    steps: bool = False
    genes: str | None = None
    """Of 2,000 genes, ``read`` them only, or drop the others ``after``."""
    block_cells: int | None = None
    """Cells of a block, if others than in all cases."""


CASES = [
    Case("csr, 1024 cells", [*OURS, *THEIRS, *OTHERS], steps=True),
    Case("csr, 4096 cells", FAST + OTHERS, batch_size=4096),
    Case("csr, 4096 cells, blocks of 4096", [OURS[4], OTHERS[3]], batch_size=4096, block_cells=4096),
    Case("csr, 1024 cells, cold", FAST + OTHERS, cold=True),
    Case("dense, 1024 cells", FAST + OTHERS[:3], dense=True),
    Case("dense, 4096 cells", FAST, batch_size=4096, dense=True),
    Case("2000 genes, read", FAST[:2], genes="read"),
    Case("2000 genes, others dropped after", FAST, genes="after"),
]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    n_cells: int = 98_304
    block_cells: int = 256
    window_cells: int = 16_384
    seconds: float = 2.0
    rounds: int = 3


QUICK = Sizes(n_cells=16_384, block_cells=256, window_cells=4_096, seconds=0.5, rounds=1)


def setup(python312: str) -> None:
    """Make the environments of the peers, with our versions of what they share with us."""
    for folder, packages in INSTALLED.items():
        subprocess.run([python312 if folder == ANNBATCH else sys.executable, "-m", "venv", folder], check=True)
        constraints = HERE.parent / "constraints.txt"
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-c", constraints, *packages], check=True)


def run(python: Path | str, script: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a script of ``peers/`` and return its answer, or its last words."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # the training step shall take one core
    command = [python, HERE / "peers" / f"{script}.py", json.dumps(job)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {LIMIT_S} s"}
    except subprocess.CalledProcessError as failed:
        return {"error": failed.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def read_through(path: Path) -> None:
    for file in files_of(path):
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass


def measure_round(
    case: Case, programs: list[Program], paths: dict[str, Path], pythons: dict[str, Path], sizes: Sizes
) -> list[dict]:
    """Give every program its turn."""
    runs = []
    for program in programs:
        path = paths[program.store]
        if not case.cold:
            read_through(path)
        job = {
            "path": str(path),
            "batch_size": case.batch_size,
            "dense": case.dense,
            "cold": case.cold,
            "steps": case.steps,
            "genes": str(paths["genes"]) if case.genes else None,
            "read_genes": case.genes == "read",
            **asdict(sizes if program.windowed else replace(sizes, window_cells=case.batch_size)),
        }
        job["block_cells"] = case.block_cells or job["block_cells"]
        answer = run(pythons[program.python], f"with_{program.script}", job)
        runs.append({"case": case.name, "program": program.name, **answer})
        print(json.dumps(runs[-1]), file=sys.stderr)
    return runs


def summarise(runs: list[dict], ceilings: dict[str, float]) -> dict[str, Any]:
    """Take medians over the rounds, the share of what the store allows, and ratios of programs side by side."""
    summary: dict[str, Any] = {}
    for case in dict.fromkeys(run["case"] for run in runs):
        of_case = [run for run in runs if run["case"] == case]
        by_name = {name: [r for r in of_case if r["program"] == name] for name in {r["program"]: 0 for r in of_case}}
        summary[case] = {name: _medians(same) for name, same in by_name.items()}
        for name, medians in summary[case].items():
            ceiling = ceilings.get(name.split("@")[1])
            if ceiling and "cells_per_s" in medians:
                medians["share_of_ceiling"] = round(medians["cells_per_s"] / ceiling, 3)
        for what, (ours, theirs) in RATIOS.items():
            pairs = zip(by_name.get(ours, []), by_name.get(theirs, []), strict=False)
            ratios = [a["cells_per_s"] / b["cells_per_s"] for a, b in pairs if "error" not in a and "error" not in b]
            if ratios:
                summary[case][f"ours over annbatch, {what}"] = {
                    "median": round(statistics.median(ratios), 2),
                    "rounds": [round(ratio, 2) for ratio in ratios],
                }
    return summary


def _medians(runs: list[dict]) -> dict[str, Any]:
    whole = [run for run in runs if "error" not in run]
    if not whole:
        return {"error": runs[0]["error"]}
    keys = [key for key in whole[0] if key not in {"case", "program"}]
    return {key: float(f"{statistics.median(run[key] for run in whole):.5g}") for key in keys}


def measure_all(cases: list[Case], paths: dict[str, Path], pythons: dict[str, Path], sizes: Sizes) -> dict[str, Any]:
    """Take all rounds of all cases, and the ceilings of the machine between them."""
    cells, load_average = load_cells(paths["cells"]), os.getloadavg()[0]
    np.save(paths["genes"], np.sort(np.random.default_rng(0).choice(np.unique(cells.genes_e), N_SUBSET, replace=False)))
    runs: list[dict] = []
    rates: dict[str, list[float]] = {store: [] for store in CEILINGS}
    for number in range(sizes.rounds):
        for store in CEILINGS:
            job = {"path": str(paths[store]), "seconds": sizes.seconds / 2}
            rates[store].append(run(sys.executable, "ceiling", job)["entries_per_s"])
        for case in cases:
            slow = case is CASES[0] or (number == 0 and sizes.rounds > 1)
            programs = [program for program in case.programs if slow or not program.slow]
            runs += measure_round(case, programs, paths, pythons, sizes)
    entries_per_cell = len(cells.counts_e) / sizes.n_cells
    ceilings = {store: statistics.median(of_store) / entries_per_cell for store, of_store in rates.items()}
    soma = [run["cells_per_s"] for run in runs if run["program"] == "soma_slices@soma" and "cells_per_s" in run]
    if soma:
        ceilings["soma"] = statistics.median(soma)
    size = {store: sum(file.stat().st_size for file in files_of(paths[store])) for store in (*CEILINGS, "soma")}
    return {
        "question": "cells per second that a loader gives, what they cost, and how evenly they come",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {os.sysconf('SC_PHYS_PAGES') * 4096 >> 30} GiB",
        "load_average_before": load_average,
        "versions": {name: versions(python) for name, python in pythons.items()},
        "sizes": {**asdict(sizes), "n_genes": N_GENES, "entries_per_cell": round(entries_per_cell, 1)},
        "label_entropy_bits_of_all_cells": round(entropy_bits(np.bincount(cells.label_n)), 4),
        "bytes_per_entry": {store: round(bytes_ / len(cells.counts_e), 3) for store, bytes_ in size.items()},
        "ceiling_cells_per_s": {store: round(rate) for store, rate in ceilings.items()},
        "cases": summarise(runs, ceilings),
        "runs": runs,
    }


def versions(python: Path) -> dict[str, str]:
    """Ask an environment for what it has of the packages that matter."""
    names = "annbatch", "anndata", "zarr", "zarrs", "scDataset", "tiledbsoma", "tiledbsoma-ml", "numpy", "torch"
    ask = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    return {name: version for name, version in json.loads(done.stdout).items() if name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", metavar="PYTHON3.12", help="make the environments of the peers and stop")
    parser.add_argument("--scratch", type=Path, default=Path("scratch"), help="folder for the stores, which are kept")
    parser.add_argument("--annbatch-python", type=Path, default=ANNBATCH / "bin" / "python")
    parser.add_argument("--peer-python", type=Path, default=PEERS / "bin" / "python")
    parser.add_argument("--cells", type=int, help="a multiple of the window, so that windows are whole; 98304")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--sorted", action="store_true", help="write the cells of one label together")
    parser.add_argument("--only", nargs="+", default=[""], help="words in the names of the cases to measure")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.setup:
        setup(options.setup)
        return
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(sizes, n_cells=options.cells or sizes.n_cells, rounds=options.rounds or sizes.rounds)
    pythons = {"ours": Path(sys.executable), "annbatch": options.annbatch_python, "peers": options.peer_python}
    for python in pythons.values():
        if not python.exists():
            parser.error(f"no {python}: make the peers with --setup, or name it")
    paths = make_stores(options.scratch, sizes.n_cells, options.annbatch_python, label_sorted=options.sorted)
    cases = [case for case in CASES if any(word in case.name for word in options.only)]
    result = measure_all(cases, paths, pythons, sizes)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for case, programs in result["cases"].items():
        for name, medians in programs.items():
            print(f"{case:32} {name:38}", *(f"{key} {medians[key]}" for key in TOLD if key in medians))


if __name__ == "__main__":
    main()
