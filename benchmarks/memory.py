"""Measure whether the memory of training grows with the number of cells, here and in scvi-tools 1.4.2.

Simulated atlases of 2,000 genes are trained on for as many steps as need several windows; the peak resident memory of
each process is what the kernel says at its end. scvi-tools holds the AnnData, so it runs a few steps only, in its own
environment (see elbo.py for how to make it; without it the peer is left out and the result says so).

    python benchmarks/memory.py --scratch /big/disk --peer-python .peers/scvi-tools/bin/python
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from dist_scvi.loaders.simulate import simulate

N_GENES = 2000
RESULT = Path(__file__).parent / "results" / "memory.json"
OURS = """
import json, os, resource, sys, torch
from dist_scvi.config.schema import DataConfig, RunConfig, TrainConfig
from dist_scvi.training.train import train
job = json.loads(sys.argv[1])
torch.set_num_threads(1)
def told(row):
    if row["step"] >= job["steps"]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"peak_mib": peak, "steps": row["step"]}), flush=True)
        os._exit(0)
data = DataConfig(uri=job["store"], batch_key="batch")
train(RunConfig(data=data, train=TrainConfig(max_epochs=100)), on_metrics=told)
"""
PEER = """
import json, resource, sys, warnings
warnings.filterwarnings("ignore")
import anndata, scvi, torch
job = json.loads(sys.argv[1])
torch.set_num_threads(1)
adata = anndata.read_zarr(job["store"])
adata.X = adata.X.astype("float32")
scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
model = scvi.model.SCVI(adata)
model.train(max_epochs=1, max_steps=job["steps"], train_size=1.0, batch_size=1024, accelerator="cpu", logger=False,
            enable_progress_bar=False)
print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "steps": job["steps"]}))
"""


def measure(python: str | Path, script: str, job: dict) -> dict:
    done = subprocess.run([python, "-c", script, json.dumps(job)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the simulated atlases, which are kept")
    parser.add_argument("--cells", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--steps", type=int, default=600, help="steps of 1,024 cells")
    parser.add_argument("--peer-python", type=Path, default=Path(".peers/scvi-tools/bin/python"))
    parser.add_argument("--peer-steps", type=int, default=20)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    runs = []
    for cells in options.cells:
        store = options.scratch / f"simulated-{cells}.zarr"
        if not store.exists():
            simulate(store, n_cells=cells, n_genes=N_GENES)
        ours = measure(sys.executable, OURS, {"store": str(store), "steps": options.steps})
        run = {"cells": cells, "genes": N_GENES, "ours": ours}
        if options.peer_python.exists():
            run["scvi_tools"] = measure(options.peer_python, PEER, {"store": str(store), "steps": options.peer_steps})
        print(json.dumps(run), file=sys.stderr)
        runs.append(run)
    result = {
        "question": "peak resident memory of one training process, MiB, by cells of the atlas",
        "peer": "scvi-tools 1.4.2, AnnData in memory" if "scvi_tools" in runs[0] else "absent",
        "growth_ours": runs[-1]["ours"]["peak_mib"] / runs[0]["ours"]["peak_mib"],
        "runs": runs,
    }
    if "scvi_tools" in runs[0]:
        result["growth_scvi_tools"] = runs[-1]["scvi_tools"]["peak_mib"] / runs[0]["scvi_tools"]["peak_mib"]
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
