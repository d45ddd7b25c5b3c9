"""annbatch 0.3.1, with the pipeline of zarrs, as its documentation advises."""

import annbatch
import anndata
import numpy as np
import zarr
from measure import Job, Minibatches, measure


def minibatches(job: Job) -> Minibatches:
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    loader = annbatch.Loader(
        shuffle=True,
        batch_size=job["batch_size"],
        chunk_size=job["block_cells"],
        preload_nchunks=job["window_cells"] // job["block_cells"],
        rng=np.random.default_rng(0),
    )
    group = zarr.open_group(job["path"], mode="r")
    if group.attrs["encoding-type"] == "annbatch-preshuffled":
        loader.use_collection(annbatch.DatasetCollection(group))
    else:
        obs = anndata.io.read_elem(group["obs"])
        loader.add_dataset(anndata.io.sparse_dataset(group["X"]), obs=obs)
    gene_g = np.load(job["genes"]) if job["genes"] else None
    while True:
        for minibatch in loader:
            counts = minibatch["X"] if gene_g is None else minibatch["X"][:, gene_g]
            label_n = minibatch["obs"]["label"].cat.codes.to_numpy()
            yield counts.astype(np.float32, copy=False).toarray() if job["dense"] else counts, label_n


if __name__ == "__main__":
    measure(minibatches)
