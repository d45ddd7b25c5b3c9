"""Train SCVI, then SCANVI from it, with this package."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch

import dist_scvi
from dist_scvi.config import TrainConfig
from dist_scvi.model import SCANVI, SCVI
from dist_scvi.train import train
from dist_scvi.world import World


def fit(model: SCVI | SCANVI, split_key: str, settings: dict[str, Any]) -> float:
    """Do what ``model.train`` does, but with the split that a column gives, and tell the seconds it took."""
    config = model.run_config(TrainConfig(**settings, lanes=1, check_val_every_n_epoch=0))
    config = config.model_copy(update={"data": config.data.model_copy(update={"split_key": split_key})})
    begin = time.perf_counter()
    trained = train(config, data=model.data, world=model.world, start=(model.module, model.spec))
    model.module, model.is_trained = trained.module, True
    return time.perf_counter() - begin


def main(job: dict[str, Any], out: Path) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    cells = anndata.read_h5ad(job["cells"])
    held_out = np.flatnonzero(cells.obs[job["split_key"]] == "validation")
    common = {key: job[key] for key in ("batch_size", "n_epochs_kl_warmup")}
    data = dist_scvi.open(cells, batch_key=job["batch_key"], labels_key=job["labels_key"])
    model = SCVI(data, **job["model"], seed=job["seed"], world=World())
    scvi_seconds = fit(model, job["split_key"], {**common, "max_epochs": job["scvi_epochs"]})
    elbo = [abs(model.get_elbo(indices=held_out, seed=draw)) for draw in range(job["draws"])]
    np.save(out / "scvi.npy", model.get_latent_representation())

    labelled = SCANVI.from_scvi_model(model, unlabeled_category=job["unlabeled_category"])
    common |= {"max_epochs": job["scanvi_epochs"], "n_samples_per_label": job["n_samples_per_label"]}
    scanvi_seconds = fit(labelled, job["split_key"], common)
    np.save(out / "scanvi.npy", labelled.get_latent_representation())
    np.save(out / "predicted.npy", np.asarray(labelled.predict(), dtype=str))
    return {"elbo": float(np.mean(elbo)), "scvi_seconds": scvi_seconds, "scanvi_seconds": scanvi_seconds}


if __name__ == "__main__":
    at = Path(sys.argv[1])
    (at / "answer.json").write_text(json.dumps(main(json.loads((at / "job.json").read_text()), at)))
