"""Calibration of probabilities by a temperature, and split-conformal prediction sets.

Shape letters in this file
    n   cells
    l   labels
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

F8 = NDArray[np.float64]
_LOWEST, _HIGHEST = 0.02, 50.0


def tempered(log_nl: F8, temperature: float) -> F8:
    """Divide logarithms of probabilities by a temperature, and normalise them."""
    return np.asarray(log_softmax(log_nl / temperature, axis=1))


def fit_temperature(log_nl: F8, label_n: NDArray[np.int64]) -> float:
    """Find the temperature with the highest likelihood of the true labels.

    Notes
    -----
    Guo et al. 2017, arXiv:1706.04599.
    """
    place_n = np.arange(len(label_n))

    def loss(log_temperature: float) -> float:
        return float(-tempered(log_nl, math.exp(log_temperature))[place_n, label_n].mean())

    found = minimize_scalar(loss, bounds=(math.log(_LOWEST), math.log(_HIGHEST)), method="bounded")
    return math.exp(float(found.x))


def conformal_threshold(log_nl: F8, label_n: NDArray[np.int64], coverage: float) -> float:
    """Return the smallest log probability of labels that belong to prediction sets.

    Parameters
    ----------
    log_nl
        Logarithms of probabilities of cells that were held out.
    coverage
        Probability that a set has the true label, if new cells are like those held out.

    Notes
    -----
    The score of least ambiguous sets (Sadinle et al. 2019, doi:10.1080/01621459.2017.1395341), one minus the
    probability, in the finite-sample form of split conformal prediction: the score of rank (n + 1) * coverage. A
    logarithm, because probabilities near 1 are equal in their last digit, and ties would widen the sets.
    """
    score_n = np.sort(-log_nl[np.arange(len(label_n)), label_n])
    rank = math.ceil((len(score_n) + 1) * coverage)
    return -math.inf if rank > len(score_n) else -float(score_n[rank - 1])


def calibration_error(log_nl: F8, label_n: NDArray[np.int64], n_bins: int = 15) -> float:
    """Return the expected calibration error: the mean distance of confidence and accuracy over bins of confidence."""
    confidence_n, right_n = np.exp(log_nl.max(axis=1)), log_nl.argmax(axis=1) == label_n
    bin_n = np.minimum((confidence_n * n_bins).astype(np.int64), n_bins - 1)
    difference_b = np.bincount(bin_n, weights=confidence_n - right_n, minlength=n_bins)
    return float(np.abs(difference_b).sum() / len(label_n))
