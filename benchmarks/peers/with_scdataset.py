"""scDataset 0.3.0 over an AnnCollection of the h5ad file, its documented pair."""

import anndata
from anndata.experimental import AnnCollection
from measure import Job, Minibatches, measure
from scdataset import BlockShuffling, scDataset


def minibatches(job: Job) -> Minibatches:
    collection = AnnCollection([anndata.read_h5ad(job["path"], backed="r")], join_vars="inner")
    dataset = scDataset(
        collection,
        BlockShuffling(block_size=job["block_cells"]),
        batch_size=job["batch_size"],
        fetch_factor=job["window_cells"] // job["batch_size"],
        fetch_transform=lambda fetched: fetched.to_adata(),
        seed=0,
    )
    while True:
        for minibatch in dataset:
            counts = minibatch.X.toarray() if job["dense"] else minibatch.X
            yield counts, minibatch.obs["label"].cat.codes.to_numpy()


if __name__ == "__main__":
    measure(minibatches)
