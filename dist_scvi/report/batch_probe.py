"""A probe for leaks: how well the batch of a cell is predicted from its place in the latent space, within its label.

Shape letters in this file
    n   cells
    b   batches
    k   latent dimensions
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEAST_CELLS = 20
"""Cells of a batch within a label that are needed to learn it."""
_NEIGHBOURS, _FOLDS = 15, 3


@dataclass(frozen=True, slots=True)
class LabelLeak:
    """How well the batch is predicted within one label: balanced accuracy, scaled to 0 for chance and 1 for certain."""

    label: str
    n_cells: int
    n_batches: int
    linear: float
    """Of a logistic regression, cross-validated: a shift of whole batches."""
    local: float
    """Of the nearest other cells: a separation of any shape."""

    @property
    def leak(self) -> float:
        """The larger one."""
        return max(self.linear, self.local)


def probe_batches(
    z_nk: NDArray[np.float32],
    batch_n: NDArray[np.integer],
    label_n: NDArray[np.integer],
    labels: tuple[str, ...],
    *,
    seed: int = 0,
) -> list[LabelLeak]:
    """Predict batches within each label; labels without two batches of 20 cells are left out."""
    found = []
    for label in np.unique(label_n).tolist():
        rows = np.flatnonzero(label_n == label)
        batches, sizes = np.unique(batch_n[rows], return_counts=True)
        rows = rows[np.isin(batch_n[rows], batches[sizes >= _LEAST_CELLS])]
        if (sizes >= _LEAST_CELLS).sum() < 2:
            continue
        _, code_r = np.unique(batch_n[rows], return_inverse=True)
        linear, local = _linear(z_nk[rows], code_r, seed), _local(z_nk[rows], code_r)
        found.append(LabelLeak(labels[label], len(rows), int(code_r.max()) + 1, linear, local))
    return found


def _linear(z_nk: NDArray[np.float32], code_n: NDArray[np.integer], seed: int) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=200))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    return _above_chance(code_n, cross_val_predict(model, z_nk, code_n, cv=folds))


def _local(z_nk: NDArray[np.float32], code_n: NDArray[np.integer]) -> float:
    """Vote by the nearest other cells, each vote divided by the size of its batch."""
    from sklearn.neighbors import NearestNeighbors

    width = min(_NEIGHBOURS, len(z_nk) - 1)
    near = NearestNeighbors(n_neighbors=width).fit(z_nk).kneighbors(return_distance=False)  # without the cell itself
    size_b = np.bincount(code_n)
    votes_nb = (code_n[near][:, :, None] == np.arange(len(size_b))).sum(axis=1) / size_b
    return _above_chance(code_n, votes_nb.argmax(axis=1))


def _above_chance(code_n: NDArray[np.integer], predicted_n: NDArray[np.integer]) -> float:
    n_batches = int(code_n.max()) + 1
    recalls = [(predicted_n[code_n == batch] == batch).mean() for batch in range(n_batches)]
    return float(max(0.0, (np.mean(recalls) - 1 / n_batches) / (1 - 1 / n_batches)))
