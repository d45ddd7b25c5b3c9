"""Train SCVI, then SCANVI from it, with scvi-tools 1.4.2."""

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scvi
import torch


def main(job: dict[str, Any], out: Path) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    scvi.settings.seed = job["seed"]
    cells = anndata.read_h5ad(job["cells"])
    split = cells.obs[job["split_key"]]
    train, held_out = (np.flatnonzero(split == name) for name in ("train", "validation"))
    common = {
        "batch_size": job["batch_size"],
        "plan_kwargs": {"n_epochs_kl_warmup": job["n_epochs_kl_warmup"]},
        "datasplitter_kwargs": {"external_indexing": [train, held_out, np.array([], dtype=int)]},
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "logger": False,
    }
    scvi.model.SCVI.setup_anndata(cells, batch_key=job["batch_key"], labels_key=job["labels_key"])
    model = scvi.model.SCVI(cells, **job["model"])
    begin = time.perf_counter()
    model.train(max_epochs=job["scvi_epochs"], **common)
    scvi_seconds = time.perf_counter() - begin
    # get_elbo gives the bound itself, which is below 0
    elbo = [-float(model.get_elbo(indices=held_out)) for _ in range(job["draws"])]
    np.save(out / "scvi.npy", model.get_latent_representation())

    labelled = scvi.model.SCANVI.from_scvi_model(model, unlabeled_category=job["unlabeled_category"])
    begin = time.perf_counter()
    labelled.train(max_epochs=job["scanvi_epochs"], n_samples_per_label=job["n_samples_per_label"], **common)
    scanvi_seconds = time.perf_counter() - begin
    np.save(out / "scanvi.npy", labelled.get_latent_representation())
    np.save(out / "predicted.npy", np.asarray(labelled.predict(), dtype=str))
    return {"elbo": float(np.mean(elbo)), "scvi_seconds": scvi_seconds, "scanvi_seconds": scanvi_seconds}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    at = Path(sys.argv[1])
    (at / "answer.json").write_text(json.dumps(main(json.loads((at / "job.json").read_text()), at)))
