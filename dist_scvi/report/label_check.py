"""How well labels are predicted from the latent space: confusion, calibration, and the gain from abstaining.

Shape letters in this file
    n   cells that are predicted
    m   cells whose labels are known to the predictor
    l   labels
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.network.vae import VAE

_NEIGHBOURS = 15
_BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class LabelCheck:
    """Predicted against known labels of held-out cells."""

    method: str
    labels: tuple[str, ...]
    n_cells: int
    confusion_ll: NDArray[np.float64]
    """Cells by known label (rows) and predicted label (columns)."""
    accuracy: float
    f1_macro: float
    calibration_error: float
    """Mean distance of accuracy and confidence over bins of confidence, weighted by their cells."""
    brier: float
    bin_confidence: NDArray[np.float64]
    bin_accuracy: NDArray[np.float64]
    bin_cells: NDArray[np.int64]
    answered: NDArray[np.float64]
    """Shares of the cells, the most certain first."""
    answered_accuracy: NDArray[np.float64]
    """Accuracy among these."""


def predict_labels(
    module: VAE,
    n_labels: int,
    z_nk: NDArray[np.float32],
    reference_mk: NDArray[np.float32],
    label_m: NDArray[np.integer],
) -> tuple[NDArray[np.float64], str]:
    """Return the probability of each label, shape (n, l), and how it was found.

    Those of SCANVI are of its own classifier. For another model they are the shares of the labels among the nearest
    training cells.
    """
    if isinstance(module, SCANVAE):
        with torch.no_grad():
            z = module.latent(torch.from_numpy(z_nk).to(module.device))
            return module.probabilities(z).cpu().numpy().astype(np.float64), "the classifier of SCANVI"
    from sklearn.neighbors import NearestNeighbors

    width = min(_NEIGHBOURS, len(reference_mk))
    near = NearestNeighbors(n_neighbors=width).fit(reference_mk).kneighbors(z_nk, return_distance=False)
    votes_nl = (label_m[near][:, :, None] == np.arange(n_labels)).mean(axis=1)
    return votes_nl, f"a vote of the {width} nearest training cells in the latent space"


def check_labels(
    probability_nl: NDArray[np.float64], label_n: NDArray[np.integer], labels: tuple[str, ...], method: str
) -> LabelCheck:
    """Compare predicted with known labels.

    Notes
    -----
    Calibration error: Guo et al. 2017, arXiv:1706.04599. Accuracy by share answered is the risk-coverage curve of
    El-Yaniv and Wiener 2010.
    """
    from sklearn.metrics import f1_score

    predicted_n, confidence_n = probability_nl.argmax(axis=1), probability_nl.max(axis=1)
    right_n = predicted_n == label_n
    confusion_ll = np.zeros((len(labels), len(labels)))
    np.add.at(confusion_ll, (label_n, predicted_n), 1)
    bin_n = np.minimum((confidence_n * _BINS).astype(np.int64), _BINS - 1)
    cells = np.bincount(bin_n, minlength=_BINS)
    filled = cells > 0
    confidence = np.bincount(bin_n, weights=confidence_n, minlength=_BINS)[filled] / cells[filled]
    accuracy = np.bincount(bin_n, weights=right_n, minlength=_BINS)[filled] / cells[filled]
    order_n = np.argsort(-confidence_n, kind="stable")
    answered = np.arange(1, len(label_n) + 1)
    known_nl = np.eye(len(labels))[label_n]
    return LabelCheck(
        method=method,
        labels=labels,
        n_cells=len(label_n),
        confusion_ll=confusion_ll,
        accuracy=float(right_n.mean()),
        f1_macro=float(f1_score(label_n, predicted_n, average="macro", labels=np.unique(label_n), zero_division=0)),
        calibration_error=float((cells[filled] / len(label_n) * np.abs(confidence - accuracy)).sum()),
        brier=float(((probability_nl - known_nl) ** 2).sum(axis=1).mean()),
        bin_confidence=confidence,
        bin_accuracy=accuracy,
        bin_cells=cells[filled],
        answered=answered / len(label_n),
        answered_accuracy=np.cumsum(right_n[order_n]) / answered,
    )
