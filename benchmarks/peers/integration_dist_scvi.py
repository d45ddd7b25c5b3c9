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
from dist_scvi.model import SCANVI, SCVI


def fit(model: SCVI | SCANVI, job: dict[str, Any], **options: int) -> float:
    """Train, and tell the seconds it took."""
    begin = time.perf_counter()
    model.train(
        **options,
        batch_size=job["batch_size"],
        check_val_every_n_epoch=0,
        plan_kwargs={"n_epochs_kl_warmup": job["n_epochs_kl_warmup"]},
        data_kwargs={"split_key": job["split_key"]},
        enable_progress_bar=False,
    )
    return time.perf_counter() - begin


def main(job: dict[str, Any], out: Path) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    cells = anndata.read_h5ad(job["cells"])
    held_out = np.flatnonzero(cells.obs[job["split_key"]] == "validation")
    data = dist_scvi.open_data(cells, batch_key=job["batch_key"], labels_key=job["labels_key"])
    model = SCVI(data, **job["model"], seed=job["seed"])
    scvi_seconds = fit(model, job, max_epochs=job["scvi_epochs"])
    elbo = [abs(model.get_elbo(indices=held_out, seed=draw)) for draw in range(job["draws"])]
    np.save(out / "scvi.npy", model.get_latent_representation())

    labelled = SCANVI.from_scvi_model(model, unlabeled_category=job["unlabeled_category"])
    scanvi_seconds = fit(labelled, job, max_epochs=job["scanvi_epochs"], n_samples_per_label=job["n_samples_per_label"])
    np.save(out / "scanvi.npy", labelled.get_latent_representation())
    np.save(out / "predicted.npy", np.asarray(labelled.predict(), dtype=str))
    return {"elbo": float(np.mean(elbo)), "scvi_seconds": scvi_seconds, "scanvi_seconds": scanvi_seconds}


if __name__ == "__main__":
    at = Path(sys.argv[1])
    (at / "answer.json").write_text(json.dumps(main(json.loads((at / "job.json").read_text()), at)))
