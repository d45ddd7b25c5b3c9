"""How well labels are predicted: sums that workers add up, and the exact metrics that follow from them.

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
_N_PLACES = _N_BINS + 1
"""Confidence of exactly 1 has a place of its own, as in torchmetrics."""


def n_classification_sums(n_labels: int) -> int:
    """Give the length of what `classification_sums` gives."""
    return 1 + 3 * n_labels + 3 * _N_PLACES


@torch.no_grad()
def classification_sums(logits_ml: Tensor, label_m: Tensor) -> Tensor:
    """Sum up what `classification_metrics` needs of some cells, float64.

    Parameters
    ----------
    label_m
        The true labels; cells of label -1 do not count.
    """
    n_labels = logits_ml.shape[-1]
    counts_m = (label_m >= 0).double()
    true_m = label_m.clamp(min=0)
    cross_m = torch.where(label_m >= 0, F.cross_entropy(logits_ml, true_m, reduction="none"), 0).double()
    confidence_m, said_m = torch.softmax(logits_ml, dim=-1).max(dim=-1)
    right_m = counts_m * (said_m == true_m)
    edges = torch.linspace(0, 1, _N_PLACES, device=logits_ml.device)
    bin_mb = _indicator(torch.bucketize(confidence_m, edges, right=True) - 1, _N_PLACES)
    true_ml, said_ml = _indicator(true_m, n_labels), _indicator(said_m, n_labels)
    return torch.cat(
        [
            cross_m.sum()[None],
            counts_m @ true_ml,
            counts_m @ said_ml,
            right_m @ true_ml,
            counts_m @ bin_mb,
            (counts_m * confidence_m) @ bin_mb,
            right_m @ bin_mb,
        ]
    )


def classification_metrics(sums: NDArray[np.float64]) -> dict[str, float]:
    """Make metrics of sums over all workers; none if no cell has a label.

    Returns
    -------
    dict
        ``classification_loss`` (mean cross-entropy), ``accuracy``, ``f1_score`` (micro average, as scvi-tools logs it),
        ``f1_score_macro`` (mean over the labels that occur or are predicted), ``calibration_error`` (expected, of
        the most probable label, in 15 bins of confidence) and ``labelled_cells``.

    Notes
    -----
    Definitions of torchmetrics, which scvi-tools 1.4.2 uses (train/_trainingplans.py). There they are means over
    minibatches, and over workers not added up.
    """
    n_labels = (len(sums) - 1 - 3 * _N_PLACES) // 3
    true_l, said_l, right_l = sums[1 : 1 + 3 * n_labels].reshape(3, n_labels)
    cells_b, confidence_b, right_b = sums[1 + 3 * n_labels :].reshape(3, _N_PLACES)
    n_cells = true_l.sum()
    if not n_cells:
        return {}
    there = true_l + said_l > 0
    return {
        "classification_loss": float(sums[0] / n_cells),
        "accuracy": float(right_l.sum() / n_cells),
        "f1_score": float(2 * right_l.sum() / (true_l + said_l).sum()),
        "f1_score_macro": float(np.mean(2 * right_l[there] / (true_l + said_l)[there])),
        "calibration_error": float(np.abs(right_b - confidence_b).sum() / cells_b.sum()),
        "labelled_cells": int(n_cells),
    }


def _indicator(index_m: Tensor, n: int) -> Tensor:
    return (index_m[:, None] == torch.arange(n, device=index_m.device)).double()
