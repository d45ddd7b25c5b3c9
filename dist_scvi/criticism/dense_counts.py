"""The counts of some cells as a dense matrix.

Shape letters in this file
    n   cells
    g   genes
"""

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.minibatch import MiniBatch


def dense_counts(minibatch: MiniBatch) -> NDArray[np.float64]:
    """Return the counts of the cells of a minibatch, shape (n, g)."""
    counts_ng = np.zeros((minibatch.n_cells, minibatch.n_genes))
    row_e = np.repeat(np.arange(minibatch.n_cells), np.diff(minibatch.counts.indptr))
    counts_ng[row_e, minibatch.counts.genes_e] = minibatch.counts.counts_e  # no gene is stored twice in a row
    return counts_ng
