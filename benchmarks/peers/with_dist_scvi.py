"""Our own stream, over any store it opens."""

from pathlib import Path

import numpy as np
from measure import Job, Minibatches, measure
from scipy import sparse

from dist_scvi.loaders import make_plan, open_data
from dist_scvi.loaders.stream import train_stream


def minibatches(job: Job) -> Minibatches:
    path, gene_g = Path(job["path"]), np.load(job["genes"]) if job["genes"] else None
    if job["read_genes"]:
        data = open_data(path, labels_key="label", genes=[f"gene{gene:05d}" for gene in gene_g])
    else:
        data = open_data(path, labels_key="label")
    plan = make_plan(
        n_cells=data.n_cells,
        n_entries=data.store.n_entries,
        n_genes=data.n_genes,
        batch_size=job["batch_size"],
        lanes=1,
        train_size=1.0,
        block_cells=job["block_cells"],
        window_cells=job["window_cells"],
    )
    for minibatch in train_stream(data, plan, rank=0, world_size=1, epoch=0, step=0, n_epochs=1 << 30):
        if job["dense"]:
            yield minibatch.to("cpu").counts_ng, minibatch.label_n
        elif gene_g is not None and not job["read_genes"]:
            rows = minibatch.counts
            counts = sparse.csr_matrix((rows.counts_e, rows.genes_e, rows.indptr), shape=(rows.n_cells, data.n_genes))
            yield counts[:, gene_g], minibatch.label_n
        else:
            yield minibatch.counts, minibatch.label_n


if __name__ == "__main__":
    measure(minibatches)
