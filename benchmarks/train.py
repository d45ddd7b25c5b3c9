"""Measure training steps, here and in scvi-tools, on the same counts with the same options, turn by turn.

Each side is a process of its own that holds its model; in every round each trains the same number of epochs while the
other sleeps, so that a busy machine slows both. Ratios are of medians over rounds, of wall time and of CPU time; on a
machine that others use the latter is the steadier. The floor is the eight dense products of a step (two of the first
layer, three of each head of the decoder) at the rate torch multiplies at here, on one thread. Both sides judge the same
held-out cells at the end.

    python3.11 -m venv .peers/scvi-tools && .peers/scvi-tools/bin/pip install torch==2.13.0 scvi-tools==1.4.2
    python benchmarks/train.py --data kang_ctrl_stim_2000x9015.h5ad --peer-python .peers/scvi-tools/bin/python
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from scipy import sparse

RESULT = Path(__file__).parent / "results" / "train.json"
N_CELLS = 8_192
HELD_OUT = 800
COMMON = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import anndata, numpy as np, torch
job = json.loads(sys.argv[1])
torch.set_num_threads(job["threads"])
adata = anndata.read_h5ad(job["data"])
held_out = np.arange(adata.n_obs - job["held_out"], adata.n_obs)
def serve(train, elbo):
    for line in sys.stdin:
        begin, cpu = time.perf_counter(), time.process_time()
        if line.startswith("train"):
            train(int(line.split()[1]))
            answer = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
        else:
            answer = {"elbo": elbo()}
        print("ANSWER" + json.dumps(answer), flush=True)
"""
OURS = """
import dist_scvi
adata.obs["split"] = np.where(np.isin(np.arange(adata.n_obs), held_out), "validation", "train")
Model = getattr(dist_scvi.model, job["model"])
setup = {"labels_key": "label", "unlabeled_category": "unknown"} if job["model"] == "SCANVI" else {}
Model.setup_anndata(adata, batch_key="batch", **setup)
model = Model(adata, gene_likelihood=job["likelihood"])
def train(epochs):
    model.train(max_epochs=epochs, batch_size=job["minibatch"], enable_progress_bar=False, check_val_every_n_epoch=0,
                accelerator="cpu", data_kwargs={"split_key": "split"},
                plan_kwargs={"n_epochs_kl_warmup": 400, "kernels": job["kernels"], "precision": job["precision"]})
serve(train, lambda: -float(model.get_elbo(indices=held_out)))
"""
PEER = """
import scvi
scvi.settings.verbosity = 40
Model = getattr(scvi.model, job["model"])
setup = {"labels_key": "label", "unlabeled_category": "unknown"} if job["model"] == "SCANVI" else {}
Model.setup_anndata(adata, batch_key="batch", **setup)
model = Model(adata, gene_likelihood=job["likelihood"])
kept = np.setdiff1d(np.arange(adata.n_obs), held_out)
def train(epochs):
    model.train(max_epochs=epochs, batch_size=job["minibatch"], accelerator="cpu", enable_progress_bar=False,
                logger=False, datasplitter_kwargs={"external_indexing": [kept, held_out, np.array([], dtype=int)]})
serve(train, lambda: abs(float(model.get_elbo(indices=held_out))))
"""


def counts_like(path: Path, n_genes: int, out: Path) -> None:
    """Draw cells of `path` again and again, its most variable genes first, repeated beyond what it has."""
    adata, rng = ad.read_h5ad(path), np.random.default_rng(0)
    counts = sparse.csr_matrix(adata.X)
    mean = np.asarray(counts.mean(axis=0)).ravel()
    order = np.argsort(-mean, kind="stable")
    genes = np.resize(order, n_genes)
    drawn = ad.AnnData(counts[rng.integers(0, adata.n_obs, N_CELLS)][:, genes].astype(np.float32))
    drawn.var_names = [f"g{gene}" for gene in range(n_genes)]
    drawn.obs["batch"] = rng.choice(["a", "b"], N_CELLS)
    label = [f"l{code}" for code in rng.integers(0, 8, N_CELLS)]
    drawn.obs["label"] = np.where(rng.random(N_CELLS) < 0.5, label, "unknown")
    for column in ("batch", "label"):
        drawn.obs[column] = drawn.obs[column].astype("category")
    drawn.write_h5ad(out)


class Side:
    """A process that trains when it is told to."""

    def __init__(self, python: str, script: str, job: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [python, "-c", COMMON + script, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, question: str) -> dict[str, float]:
        """Send a line, and wait for the answer."""
        to, answers = self.process.stdin, self.process.stdout
        assert to is not None
        assert answers is not None
        to.write(question + "\n")
        to.flush()
        for line in answers:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        raise RuntimeError(f"a side ended with {self.process.wait()}; run its script by hand to see why")

    def end(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def floor_seconds(n: int, g: int, heads: int, hidden: int = 128) -> float:
    """Measure the dense products of a step on one thread, each into memory that is already there."""
    torch.set_num_threads(1)
    x, h, w = torch.randn(n, g), torch.randn(n, hidden), torch.randn(g, hidden)
    out_ng, out_gh, out_nh = torch.empty(n, g), torch.empty(g, hidden), torch.empty(n, hidden)
    first = [lambda: torch.mm(x, w, out=out_nh), lambda: torch.mm(x.t(), h, out=out_gh)]
    head = [
        lambda: torch.mm(h, w.t(), out=out_ng),
        lambda: torch.mm(x.t(), h, out=out_gh),
        lambda: torch.mm(x, w, out=out_nh),
    ]
    total = 0.0
    for multiply in first + heads * head:
        times = []
        for _ in range(5):
            begin = time.process_time()
            multiply()
            times.append(time.process_time() - begin)
        total += min(times)
    return total


def measure(options: argparse.Namespace, data: Path, case: dict[str, Any]) -> dict[str, Any]:
    job = case | {"data": str(data), "held_out": HELD_OUT, "kernels": "compiled", "precision": options.precision}
    n_train = N_CELLS - HELD_OUT
    epochs = options.epochs
    sides = {"dist_scvi": Side(sys.executable, OURS, job)}
    if options.peer_python.exists():
        sides["scvi_tools"] = Side(str(options.peer_python), PEER, job)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for name, side in sides.items():
        side.ask("train 1")  # compiles, and fills caches
        side.ask("train 1")
        rounds[name] = []
    for _ in range(options.rounds):
        for name, side in sides.items():
            rounds[name].append(side.ask(f"train {epochs}"))
    elbo = {name: side.ask("elbo")["elbo"] for name, side in sides.items()}
    for side in sides.values():
        side.end()
    cells = n_train * epochs
    found: dict[str, Any] = dict(case)
    for name, times in rounds.items():
        found[name] = {
            "cells_per_s": [cells / time_of["seconds"] for time_of in times],
            "cells_per_cpu_s": [cells / time_of["cpu"] for time_of in times],
            "elbo": elbo[name],
        }
    if "scvi_tools" in found:
        for key in ("cells_per_s", "cells_per_cpu_s"):
            ours, theirs = (statistics.median(found[name][key]) for name in ("dist_scvi", "scvi_tools"))
            found[f"ratio_{key}"] = ours / theirs
        found["elbo_ratio"] = elbo["dist_scvi"] / elbo["scvi_tools"]
    floor = floor_seconds(case["minibatch"], case["genes"], 2 if case["likelihood"] == "zinb" else 1)
    found["floor_cells_per_cpu_s"] = case["minibatch"] / floor
    found["share_of_floor"] = max(found["dist_scvi"]["cells_per_cpu_s"]) / found["floor_cells_per_cpu_s"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="h5ad whose cells are drawn again")
    parser.add_argument("--peer-python", type=Path, default=Path(".peers/scvi-tools/bin/python"))
    parser.add_argument("--genes", type=int, nargs="+", default=[2000, 8000])
    parser.add_argument("--minibatch", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--likelihood", nargs="+", default=["zinb"])
    parser.add_argument("--model", nargs="+", default=["SCVI"])
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="of a round")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    runs = []
    result = {
        "question": "cells/s of training, here over scvi-tools 1.4.2; interleaved rounds, medians",
        "precision": options.precision,
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg(),
        "runs": runs,
    }
    with tempfile.TemporaryDirectory() as name:
        for genes in options.genes:
            data = Path(name) / f"{genes}.h5ad"
            counts_like(options.data, genes, data)
            for model, likelihood, minibatch, threads in product(
                options.model, options.likelihood, options.minibatch, options.threads
            ):
                case = {"model": model, "likelihood": likelihood, "genes": genes}
                found = measure(options, data, case | {"minibatch": minibatch, "threads": threads})
                runs.append(found)
                print(
                    json.dumps({key: value for key, value in found.items() if not isinstance(value, dict)}), flush=True
                )
                result["load_after"] = os.getloadavg()
                options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
