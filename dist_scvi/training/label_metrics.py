"""Metrics of the predicted labels: sums that workers add up, and the exact metrics computed from them.

Shape letters in this file
    m   cells
    l   labels
    b   bins of confidence
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_N_BINS = 15
_N_BIN_SUMS = _N_BINS + 1
"""A confidence of exactly 1 has a separate bin, as in torchmetrics."""


def n_classification_sums(n_labels: int) -> int:
    """Return the length of the result of `classification_sums`."""
    return 1 + 3 * n_labels + 3 * _N_BIN_SUMS


@torch.no_grad()
def classification_sums(logits_ml: Tensor, label_m: Tensor) -> Tensor:
    """Return the sums over some cells that `classification_metrics` needs, float64.

    Parameters
    ----------
    label_m
        The true labels; cells of label -1 do not count.
    """
    n_labels = logits_ml.shape[-1]
    counts_m = (label_m >= 0).double()
    true_m = label_m.clamp(min=0)
    cross_m = torch.where(label_m >= 0, F.cross_entropy(logits_ml, true_m, reduction="none"), 0).double()
    confidence_m, predicted_m = torch.softmax(logits_ml, dim=-1).max(dim=-1)
    right_m = counts_m * (predicted_m == true_m)
    edges = torch.linspace(0, 1, _N_BIN_SUMS, device=logits_ml.device)
    bin_mb = _indicator(torch.bucketize(confidence_m, edges, right=True) - 1, _N_BIN_SUMS)
    true_ml, predicted_ml = _indicator(true_m, n_labels), _indicator(predicted_m, n_labels)
    return torch.cat(
        [
            cross_m.sum()[None],
            counts_m @ true_ml,
            counts_m @ predicted_ml,
            right_m @ true_ml,
            counts_m @ bin_mb,
            (counts_m * confidence_m) @ bin_mb,
            right_m @ bin_mb,
        ]
    )


def classification_metrics(sums: NDArray[np.float64]) -> dict[str, float]:
    """Return metrics from sums over all workers; none if no cell has a label.

    Returns
    -------
    dict
        ``classification_loss`` (mean cross-entropy), ``accuracy``, ``f1_score`` (micro average, as scvi-tools logs it),
        ``f1_score_macro`` (mean over the labels that occur or are predicted), ``calibration_error`` (expected, of
        the most probable label, in 15 bins of confidence) and ``labelled_cells``.

    Notes
    -----
    Definitions of torchmetrics, which scvi-tools 1.4.2 uses (train/_trainingplans.py). There they are means over
    minibatches and are not reduced over workers.
    """
    n_labels = (len(sums) - 1 - 3 * _N_BIN_SUMS) // 3
    true_l, predicted_l, right_l = sums[1 : 1 + 3 * n_labels].reshape(3, n_labels)
    cells_b, confidence_b, right_b = sums[1 + 3 * n_labels :].reshape(3, _N_BIN_SUMS)
    n_cells = true_l.sum()
    if not n_cells:
        return {}
    present = true_l + predicted_l > 0
    return {
        "classification_loss": float(sums[0] / n_cells),
        "accuracy": float(right_l.sum() / n_cells),
        "f1_score": float(2 * right_l.sum() / (true_l + predicted_l).sum()),
        "f1_score_macro": float(np.mean(2 * right_l[present] / (true_l + predicted_l)[present])),
        "calibration_error": float(np.abs(right_b - confidence_b).sum() / cells_b.sum()),
        "labelled_cells": int(n_cells),
    }


def _indicator(index_m: Tensor, n: int) -> Tensor:
    return (index_m[:, None] == torch.arange(n, device=index_m.device)).double()
