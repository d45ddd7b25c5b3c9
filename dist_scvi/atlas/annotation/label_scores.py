"""Log probabilities of labels: by the classifier of SCANVI, or by the labels of the nearest cells of the atlas.

Shape letters in this file
    n   cells
    d   latent dimensions
    k   neighbours
    l   labels
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from dist_scvi.atlas.neighbors.search import Found
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.network.scanvae import SCANVAE

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """An obs column as labels."""

    key: str
    names: tuple[str, ...]
    """Labels, without that of unlabelled cells."""
    label_c: NDArray[np.int32]
    """Label of each code of the column, -1 for none; the last entry is that of a missing value, code -1."""

    def of_rows(self, atlas: AtlasReader, row_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the label of each of some rows, -1 for none."""
        unique_m, order_n = np.unique(row_n, return_inverse=True)
        return self.label_c[atlas.obs.codes(self.key, unique_m)][order_n].astype(np.int64)


def classified(module: SCANVAE, mean_nd: F4) -> F8:
    """Return the log probability of each label of the model at the mean of the posterior, shape (n, l)."""
    with torch.no_grad():
        logit_nl = module.classifier(module.latent(torch.from_numpy(mean_nd).to(module.device)))
    return np.asarray(log_softmax(logit_nl.double().cpu().numpy(), axis=1))


def voted(label_nk: NDArray[np.int64], square_nk: F4, n_labels: int, typical: float) -> F8:
    """Return the log probability of each label by the votes of neighbours, shape (n, l).

    Votes are weighted by a normal kernel as wide as the neighbours of the cell are distant. One further vote, for all
    labels alike, counts the more, the farther the neighbours are: a cell far from all others is uncertain although its
    neighbours agree.

    Parameters
    ----------
    label_nk
        Labels of the neighbours, -1 where there are fewer.
    square_nk
        Their squared distances.
    typical
        Mean squared distance of neighbours of a typical cell.
    """
    present_nk = label_nk >= 0
    square = np.where(present_nk, square_nk, 0).astype(np.float64)
    mean_n = square.sum(axis=1) / np.maximum(present_nk.sum(axis=1), 1)
    weight_nk = np.where(present_nk, np.exp(-square / np.maximum(mean_n, np.finfo(np.float64).tiny)[:, None]), 0)
    place_n = np.repeat(np.arange(len(label_nk)), label_nk.shape[1])
    vote_nl = np.zeros((len(label_nk), n_labels))
    np.add.at(vote_nl, (place_n, np.where(present_nk, label_nk, 0).ravel()), weight_nk.ravel())
    vote_nl += (mean_n / typical)[:, None] / n_labels + 1e-9
    return np.asarray(np.log(vote_nl / vote_nl.sum(axis=1, keepdims=True)))


def mean_square(found: Found) -> F8:
    """Return the mean squared distance of the neighbours of each point."""
    present = found.row_qk >= 0
    return np.asarray(np.where(present, found.square_qk, 0).sum(axis=1) / np.maximum(present.sum(axis=1), 1))
