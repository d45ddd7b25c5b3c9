"""Compare how well models trained here and by scvi-tools 1.4.2 fit held-out cells, transfer labels, integrate batches.

Both train SCVI, then SCANVI from it, on the same rows with the same arguments, under several seeds; the labels of some
cells are hidden from SCANVI. One script scores the latent spaces and predicted labels of both. A difference of means
is within seed noise if it is at most twice the standard deviation over seeds, pooled over the two programs. With three
seeds, 7 of 100 scores of equal programs are not (t distribution, 4 degrees of freedom); that all are does not prove
that the programs are equal, but bounds the difference.

The programs take turns, each run in a process of its own. scvi-tools and scib-metrics live in another environment:

    python3.11 -m venv .peers/scvi-tools
    .peers/scvi-tools/bin/pip install torch==2.13.0 scvi-tools==1.4.2 scib-metrics==0.5.10
    python benchmarks/integration.py --data folder/of/h5ad/files      # 20 minutes if nothing else runs

With --keep-peer, what scvi-tools answered to the same question in an earlier call is used again; no times are compared.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scanpy

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
RESULT = HERE / "results" / "integration.json"
OURS, THEIRS = "dist_scvi", "scvi_tools"
HELD_OUT = 0.1
SECONDS = ("scvi_seconds", "scanvi_seconds")
COMMON = {
    "truth_key": "cell_type",
    "batch_key": "batch",
    "labels_key": "label_shown",
    "unlabeled_category": "Unknown",
    "split_key": "split",
    "batch_size": 128,
    "n_samples_per_label": 100,
    "draws": 5,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A data set, which of its labels are hidden, and how it is trained on."""

    name: str
    file: str
    hidden: str
    """A batch whose labels are all hidden, or a share of the labelled cells."""
    model: dict[str, Any]
    scvi_epochs: int
    scanvi_epochs: int
    n_epochs_kl_warmup: int
    n_genes: int | None = None
    """Highly variable genes that are kept, or all."""


CASES = [
    Case(
        "one donor of 14 batches",
        "pbmc_pooled_21199x1208.h5ad",
        "kang_ctrl_1015",
        {"n_latent": 30, "n_layers": 2, "gene_likelihood": "nb"},
        scvi_epochs=15,
        scanvi_epochs=6,
        n_epochs_kl_warmup=10,
    ),
    Case(
        "half of the sorted cells",
        "zheng_sorted_ref_plus_donorA_5036x8845.h5ad",
        "0.5",
        {"n_latent": 10, "n_layers": 1, "gene_likelihood": "zinb"},
        scvi_epochs=20,
        scanvi_epochs=10,
        n_epochs_kl_warmup=10,
        n_genes=2000,
    ),
]


def prepare(case: Case, data: Path, path: Path) -> None:
    """Write the cells with the columns that both programs read: which are held out, and which labels are shown."""
    cells = anndata.read_h5ad(data / case.file)
    if case.n_genes is not None:
        scanpy.pp.highly_variable_genes(
            cells, n_top_genes=case.n_genes, flavor="seurat_v3", batch_key=COMMON["batch_key"], subset=True
        )
    truth_n = cells.obs[COMMON["truth_key"]].astype(object)
    rng = np.random.default_rng(0)
    held_out_n = rng.permutation(cells.n_obs) < HELD_OUT * cells.n_obs
    if case.hidden in set(cells.obs[COMMON["batch_key"]]):
        hidden_n = (cells.obs[COMMON["batch_key"]] == case.hidden).to_numpy()
    else:
        hidden_n = rng.random(cells.n_obs) < float(case.hidden)
    cells.obs[COMMON["split_key"]] = np.where(held_out_n, "validation", "train")
    cells.obs[COMMON["labels_key"]] = truth_n.mask(hidden_n | truth_n.isna(), COMMON["unlabeled_category"]).astype(str)
    cells.write_h5ad(path)


def ask(python: Path, script: str, folder: Path, job: dict[str, Any], *, keep: bool = False) -> dict[str, Any]:
    """Have a script of ``peers/`` do a job; with `keep` not if it has done the same one before."""
    folder.mkdir(parents=True, exist_ok=True)
    job_file, answer_file = folder / "job.json", folder / "answer.json"
    if not (keep and answer_file.exists() and json.loads(job_file.read_text()) == job):
        answer_file.unlink(missing_ok=True)
        job_file.write_text(json.dumps(job))
        command = [str(python), str(HERE / "peers" / f"integration_{script}.py"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(answer_file.read_text())
    print(f"{folder.parent.name}/{folder.name}: {json.dumps(answer)}", file=sys.stderr, flush=True)
    return answer


def measure(case: Case, cells: Path, pythons: dict[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Let the programs take turns over the seeds, and score all they made by one code."""
    job: dict[str, Any] = {**COMMON, **asdict(case), "cells": str(cells), "threads": options.threads}
    made = {}
    for seed in range(options.seeds):
        for program in (OURS, THEIRS) if seed % 2 == 0 else (THEIRS, OURS):
            keep = options.keep_peer and program == THEIRS
            name = f"{program}-{seed}"
            answer = ask(pythons[program], program, cells.parent / name, {**job, "seed": seed}, keep=keep)
            made[name] = {"program": program, "seed": seed, **answer}
    folders = {name: str(cells.parent / name) for name in made}
    for name, scores in ask(pythons[THEIRS], "scores", cells.parent / "scores", {**job, "folders": folders}).items():
        made[name] |= scores
    return list(made.values())


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Hold the difference of means of each score against its spread over seeds."""
    comparison: dict[str, Any] = {}
    for score in [key for key in runs[0] if key not in {"program", "seed", *SECONDS}]:
        ours, theirs = ([run[score] for run in runs if run["program"] == program] for program in (OURS, THEIRS))
        noise = statistics.mean(statistics.variance(values) for values in (ours, theirs)) ** 0.5
        difference = statistics.mean(ours) - statistics.mean(theirs)
        comparison[score] = {
            OURS: ours,
            THEIRS: theirs,
            "difference": difference,
            "seed_noise": noise,
            "within_seed_noise": abs(difference) <= 2 * noise,
        }
    return comparison


def time_ratios(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Divide the time of scvi-tools by ours, seed by seed."""
    ratios: dict[str, Any] = {}
    for key in SECONDS:
        ours, theirs = ({run["seed"]: run[key] for run in runs if run["program"] == name} for name in (OURS, THEIRS))
        pairs = [theirs[seed] / ours[seed] for seed in ours]
        ratios[key] = {"median": statistics.median(pairs), "seeds": pairs}
    return ratios


def agreement(runs: list[dict[str, Any]], cells: Path) -> dict[str, float]:
    """Give the share of the cells of unknown label to which two runs give the same, by the programs of the two.

    Two runs of one program differ by their seed alone: this is as much as can be asked of runs of two programs.
    """
    unknown_n = anndata.read_h5ad(cells, backed="r").obs[COMMON["truth_key"]].isna().to_numpy()
    predicted = [
        (run["program"], np.load(cells.parent / f"{run['program']}-{run['seed']}" / "predicted.npy")[unknown_n])
        for run in sorted(runs, key=lambda run: run["program"])
    ]
    shares: dict[str, list[float]] = {}
    for (first, label_n), (second, other_n) in combinations(predicted, 2):
        shares.setdefault(f"{first}, {second}", []).append(float(np.mean(label_n == other_n)))
    return {pair: statistics.mean(values) for pair, values in shares.items()}


def versions(python: Path) -> dict[str, str]:
    """Ask an environment for what it has of the packages that matter."""
    names = ("dist-scvi", "scvi-tools", "scib-metrics", "torch", "numpy", "scikit-learn")
    script = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    return {name: version for name, version in json.loads(done.stdout).items() if name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the .h5ad files")
    parser.add_argument("--peer", type=Path, default=Path(".peers/scvi-tools/bin/python"), help="its interpreter")
    parser.add_argument("--keep-peer", action="store_true", help="use what scvi-tools answered before")
    parser.add_argument("--seeds", type=int, default=3, help="2 at least")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="word in the name of the case to measure")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/integration"))
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.seeds < 2 or not options.peer.exists():
        parser.error(
            f"--seeds={options.seeds} --peer={options.peer}: two seeds and an interpreter that is there are needed"
        )

    pythons = {OURS: Path(sys.executable), THEIRS: options.peer}
    result: dict[str, Any] = {
        "question": "are models trained here as good as those of scvi-tools, on the same rows with the same arguments",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {os.sysconf('SC_PHYS_PAGES') * 4096 >> 30} GiB",
        "load_average_before": os.getloadavg()[0],
        "versions": {name: versions(python) for name, python in pythons.items()},
        "arguments": {**COMMON, "threads": options.threads, "held_out": HELD_OUT},
        "cases": {},
    }
    for case in [case for case in CASES if options.only in case.name]:
        cells = (options.scratch / case.name.replace(" ", "-") / "cells.h5ad").resolve()
        cells.parent.mkdir(parents=True, exist_ok=True)
        prepare(case, options.data, cells)
        runs = measure(case, cells, pythons, options)
        result["cases"][case.name] = {
            **asdict(case),
            "scores": compare(runs),
            "agreement_on_unknown_cells": agreement(runs, cells),
            "speedup": None if options.keep_peer else time_ratios(runs),
            "runs": runs,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        for name, score in result["cases"][case.name]["scores"].items():
            print(
                f"{case.name:26} {name:30}",
                *(f"{statistics.mean(score[program]):10.4f}" for program in (OURS, THEIRS)),
                "within seed noise" if score["within_seed_noise"] else f"differs by {score['difference']:.4f}",
            )


if __name__ == "__main__":
    main()
