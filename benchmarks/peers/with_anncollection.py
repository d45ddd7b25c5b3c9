"""AnnCollection of anndata, asked for random cells of the h5ad file as its AnnLoader does."""

import anndata
import numpy as np
from anndata.experimental import AnnCollection
from measure import Job, Minibatches, measure


def minibatches(job: Job) -> Minibatches:
    collection = AnnCollection([anndata.read_h5ad(job["path"], backed="r")], join_vars="inner")
    rng = np.random.default_rng(0)
    while True:
        row_n = rng.permutation(len(collection))
        for start in range(0, len(row_n), job["batch_size"]):
            minibatch = collection[np.sort(row_n[start : start + job["batch_size"]])]
            counts = minibatch.X.toarray() if job["dense"] else minibatch.X
            yield counts, np.asarray(minibatch.obs["label"].cat.codes)


if __name__ == "__main__":
    measure(minibatches)
