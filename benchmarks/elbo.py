"""Compare how well models trained here and by scvi-tools 1.4.2 fit held-out cells.

Both train SCVI with the same options (scvi-tools' defaults, KL warm-up over 400 epochs included) on the same cells,
and are judged on the same held-out cells, by their negative ELBO at one draw of z, averaged over draws. scvi-tools
runs in an environment of its own:

    python3.11 -m venv .peers/scvi-tools && .peers/scvi-tools/bin/pip install torch==2.13.0 scvi-tools==1.4.2
    python benchmarks/elbo.py --data pbmc_pooled_21199x1208.h5ad --batch-key batch
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import dist_scvi
from dist_scvi.config.schema import DataConfig, RunConfig, TrainConfig
from dist_scvi.loaders import CellData
from dist_scvi.loaders.order.plan import split_rows
from dist_scvi.training.resolve import resolve

N_DRAWS = 5
RESULT = Path(__file__).parent / "results" / "elbo.json"
PEER = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import anndata, numpy as np, scvi, torch
job = json.load(open(sys.argv[1]))
torch.set_num_threads(job["threads"])
scvi.settings.seed = job["seed"]
adata = anndata.read_h5ad(job["data"])
scvi.model.SCVI.setup_anndata(adata, batch_key=job["batch_key"])
model = scvi.model.SCVI(adata)
train, held_out = np.load(job["train"]), np.load(job["held_out"])
begin = time.perf_counter()
model.train(max_epochs=job["epochs"], accelerator="cpu", enable_progress_bar=False, logger=False,
            datasplitter_kwargs={"external_indexing": [train, held_out, np.array([], dtype=int)]})
seconds = time.perf_counter() - begin
elbo = [abs(float(model.get_elbo(indices=held_out))) for _ in range(job["draws"])]
json.dump({"elbo": float(np.mean(elbo)), "seconds": seconds, "scvi_tools": scvi.__version__}, open(sys.argv[2], "w"))
"""


def ours(job: dict, data: CellData) -> dict:
    torch.set_num_threads(job["threads"])
    model = dist_scvi.SCVI(data, seed=job["seed"])
    begin = time.perf_counter()
    model.train(max_epochs=job["epochs"], plan_kwargs={"n_epochs_kl_warmup": 400}, enable_progress_bar=False)
    seconds = time.perf_counter() - begin
    held_out = np.load(job["held_out"])
    elbo = [-model.get_elbo(indices=held_out, seed=draw) for draw in range(job["draws"])]
    return {"elbo": float(np.mean(elbo)), "seconds": seconds}


def peer(python: Path, job: dict, folder: Path) -> dict:
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "peer.py").write_text(PEER)
    subprocess.run(
        [python, folder / "peer.py", folder / "job.json", folder / "answer.json"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return json.loads((folder / "answer.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-python", type=Path, default=Path(".peers/scvi-tools/bin/python"))
    options = parser.parse_args()

    data = dist_scvi.open_data(options.data, batch_key=options.batch_key)
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(options.seeds):
            # what SCVI.train makes of its defaults: the split depends on the seed and the shares alone
            config = RunConfig(
                seed=seed, data=DataConfig(uri=data.store.uri), train=TrainConfig(batch_size=128, lanes=1)
            )
            _, plan = resolve(config, data)
            np.save(folder / "train.npy", np.sort(split_rows(plan, "train", 0, plan.n_train)))
            np.save(folder / "held_out.npy", np.sort(split_rows(plan, "validation", 0, plan.split_cells("validation"))))
            job = {
                "data": str(options.data.resolve()),
                "batch_key": options.batch_key,
                "epochs": options.epochs,
                "seed": seed,
                "draws": N_DRAWS,
                "threads": 1,
                "train": str(folder / "train.npy"),
                "held_out": str(folder / "held_out.npy"),
            }
            run = {"seed": seed, "ours": ours(job, data), "scvi_tools": peer(options.peer_python, job, folder)}
            run["elbo_ratio"] = run["ours"]["elbo"] / run["scvi_tools"]["elbo"]
            run["speedup"] = run["scvi_tools"]["seconds"] / run["ours"]["seconds"]
            print(json.dumps(run), file=sys.stderr)
            runs.append(run)
    result = {
        "question": "held-out negative ELBO, ours over scvi-tools (below 1 is better), same cells and options",
        "data": options.data.name,
        "epochs": options.epochs,
        "threads": 1,
        "elbo_ratio_median": statistics.median(run["elbo_ratio"] for run in runs),
        "elbo_ratio_worst": max(run["elbo_ratio"] for run in runs),
        "speedup_median": statistics.median(run["speedup"] for run in runs),
        "runs": runs,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=1))


if __name__ == "__main__":
    main()
