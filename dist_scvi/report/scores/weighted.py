"""Statistics of a sample whose cells stand for several cells each, and their bootstrap intervals.

Shape letters in this file
    n   cells
    c   clusters
    l   labels
    s   bootstrap samples
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
Statistic = Callable[[Weights], float]
"""A score as a function of the weight of each cell; NaN where it is not defined."""


def weighted_median(value_n: NDArray[np.float64]) -> Statistic:
    """Return the median of values as a function of their weights; values that are NaN are left out."""
    order_n = np.argsort(value_n, kind="stable")
    order_n = order_n[~np.isnan(value_n[order_n])]
    sorted_n = value_n[order_n]

    def median(weight_n: Weights) -> float:
        total_n = np.cumsum(weight_n[order_n])
        if not len(total_n) or total_n[-1] <= 0:
            return float("nan")
        half = total_n[-1] / 2
        # With equal weights these are the middle value, or the two of which the median is the mean.
        low, high = np.searchsorted(total_n, half, side="left"), np.searchsorted(total_n, half, side="right")
        return float((sorted_n[low] + sorted_n[min(high, len(sorted_n) - 1)]) / 2)

    return median


def mean_of_group_means(value_n: NDArray[np.float64], group_n: NDArray[np.integer]) -> Statistic:
    """Return the mean over groups of the mean of each; NaN values and negative groups are left out."""
    kept_n = np.flatnonzero(~np.isnan(value_n) & (group_n >= 0))
    value_k, group_k = value_n[kept_n], group_n[kept_n]

    def mean(weight_n: Weights) -> float:
        weight_k = weight_n[kept_n]
        size_l = np.bincount(group_k, weights=weight_k)
        mean_l = np.bincount(group_k, weights=weight_k * value_k)[size_l > 0] / size_l[size_l > 0]
        return float(mean_l.mean()) if len(mean_l) else float("nan")

    return mean


def weighted_mean(value_n: NDArray[np.float64]) -> Statistic:
    """Return the mean of values as a function of their weights."""
    return lambda weight_n: float(np.average(value_n, weights=weight_n))


def mutual_information(cluster_n: NDArray[np.integer], label_n: NDArray[np.integer]) -> Statistic:
    """Return the mutual information of clusters and labels over the mean of their entropies (NMI)."""

    def information(weight_n: Weights) -> float:
        share_cl = _contingency(cluster_n, label_n, weight_n) / weight_n.sum()
        share_c, share_l = share_cl.sum(axis=1), share_cl.sum(axis=0)
        expected_cl = share_c[:, None] * share_l
        there = share_cl > 0
        shared = float((share_cl[there] * np.log(share_cl[there] / expected_cl[there])).sum())
        entropies = (_entropy(share_c) + _entropy(share_l)) / 2
        return shared / entropies if entropies > 0 else 1.0

    return information


def adjusted_rand(cluster_n: NDArray[np.integer], label_n: NDArray[np.integer]) -> Statistic:
    """Return the share of pairs of cells on which clusters and labels agree, corrected for chance (ARI)."""

    def rand(weight_n: Weights) -> float:
        # Weights are scaled to the size of the sample: pairs are counted among its cells.
        size_cl = _contingency(cluster_n, label_n, weight_n * (len(weight_n) / weight_n.sum()))
        both = float(_pairs(size_cl))
        of_c, of_l = float(_pairs(size_cl.sum(axis=1))), float(_pairs(size_cl.sum(axis=0)))
        expected = of_c * of_l / float(_pairs(size_cl.sum()))
        most = (of_c + of_l) / 2
        return (both - expected) / (most - expected) if most != expected else 1.0

    return rand


def bootstrap_weights(
    weight_n: Weights, stratum_n: NDArray[np.integer], n_samples: int, *, seed: int
) -> list[NDArray[np.float64]]:
    """Draw each stratum of cells again with replacement; return the weights of the cells in each such sample."""
    rng = np.random.default_rng(seed)
    order_n = np.argsort(stratum_n, kind="stable")
    sorted_n = stratum_n[order_n]
    first_n = np.searchsorted(sorted_n, sorted_n, side="left")
    size_n = np.searchsorted(sorted_n, sorted_n, side="right") - first_n
    drawn = []
    for _ in range(n_samples):
        pick_n = first_n + (rng.random(len(order_n)) * size_n).astype(np.int64)
        drawn.append(np.bincount(order_n[pick_n], minlength=len(order_n)) * weight_n)
    return drawn


def _contingency(cluster_n: NDArray[np.integer], label_n: NDArray[np.integer], weight_n: Weights) -> Weights:
    n_labels = int(label_n.max()) + 1
    code_n = cluster_n.astype(np.int64) * n_labels + label_n
    n_clusters = int(cluster_n.max()) + 1
    size = np.bincount(code_n, weights=weight_n, minlength=n_clusters * n_labels).astype(np.float64)
    return size.reshape(n_clusters, n_labels)


def _entropy(share: Weights) -> float:
    present = share[share > 0]
    return float(-(present * np.log(present)).sum())


def _pairs(size: NDArray[np.float64] | np.float64) -> np.float64:
    return np.float64((size * (size - 1) / 2).sum())
