"""Compare two samples gene by gene over all their pairs, by sorting: each value of one with each value of the other.

The probabilities are U-statistics: their standard errors come from the means of the pair indicator over each value of
one side (Hoeffding 1948, doi:10.1214/aoms/1177730196), not from a number of pairs, which are not independent.

Shape letters in this file
    g   genes
    p   values of the first sample
    m   values of the second sample
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

_GENE_BLOCK = 512

# Columns of the result of the kernel for a gene.
_PLUS, _MINUS, _VAR_PLUS1, _VAR_PLUS2, _VAR_MINUS1, _VAR_MINUS2, _VAR_BOTH1, _VAR_BOTH2 = range(8)
_MEAN1, _MEAN2, _VAR1, _VAR2, _MIN1, _MAX1, _MIN2, _MAX2, _MEDIAN, _N_COLUMNS = range(8, 18)


@dataclass(frozen=True, slots=True, eq=False)
class SortedSample:
    """Values of a group of cells for each gene."""

    log2_gp: NDArray[np.float32]
    """Binary logarithm of the scale, ascending along p."""
    n_effective: float
    """Number of independent cells of the values."""


@dataclass(frozen=True, slots=True, eq=False)
class PairScores:
    """Statistics of all pairs of two samples, for each gene."""

    plus_g: NDArray[np.float64]
    """Share of pairs whose log fold change is at least delta."""
    minus_g: NDArray[np.float64]
    """Share of pairs whose log fold change is below -delta."""
    plus_variance_g: NDArray[np.float64]
    minus_variance_g: NDArray[np.float64]
    both_variance_g: NDArray[np.float64]
    """Estimated variances of these shares and of their sum."""
    mean_g: NDArray[np.float64]
    """Mean log fold change."""
    mean_variance_g: NDArray[np.float64]
    """Estimated variance of the mean."""
    variance_g: NDArray[np.float64]
    """Variance of the log fold change over pairs."""
    median_g: NDArray[np.float64]
    min_g: NDArray[np.float64]
    max_g: NDArray[np.float64]


def compare_pairs(
    first: SortedSample, second: SortedSample, delta: float, pseudocounts: float, described: float
) -> PairScores:
    """Compare two samples, with one pseudocount for the probabilities and another to describe the change."""
    n_genes = len(first.log2_gp)
    found = np.empty((n_genes, _N_COLUMNS))
    args = (delta, pseudocounts, described)

    def work(genes: slice) -> None:
        _compare(first.log2_gp[genes], second.log2_gp[genes], *args, found[genes])

    in_threads(work, gene_blocks(n_genes))
    n1, n2 = first.n_effective, second.n_effective
    return PairScores(
        found[:, _PLUS],
        found[:, _MINUS],
        found[:, _VAR_PLUS1] / n1 + found[:, _VAR_PLUS2] / n2,
        found[:, _VAR_MINUS1] / n1 + found[:, _VAR_MINUS2] / n2,
        found[:, _VAR_BOTH1] / n1 + found[:, _VAR_BOTH2] / n2,
        found[:, _MEAN1] - found[:, _MEAN2],
        found[:, _VAR1] / n1 + found[:, _VAR2] / n2,
        found[:, _VAR1] + found[:, _VAR2],
        found[:, _MEDIAN],
        found[:, _MIN1] - found[:, _MAX2],
        found[:, _MAX1] - found[:, _MIN2],
    )


def average_scores(parts: list[PairScores]) -> PairScores:
    """Return the average over the batches in which pairs were formed; the batches have different cells."""
    if len(parts) == 1:
        return parts[0]
    means = {name: np.mean([getattr(part, name) for part in parts], axis=0) for name in PairScores.__slots__}
    for name in ("plus_variance_g", "minus_variance_g", "both_variance_g", "mean_variance_g"):
        means[name] /= len(parts)
    means["variance_g"] = means["variance_g"] + np.var([part.mean_g for part in parts], axis=0)
    means["min_g"] = np.min([part.min_g for part in parts], axis=0)
    means["max_g"] = np.max([part.max_g for part in parts], axis=0)
    return PairScores(**means)


def sort_values(log2_gp: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sort the values of each gene in place."""
    in_threads(lambda genes: log2_gp[genes].sort(axis=1), gene_blocks(len(log2_gp)))
    return log2_gp


def gene_blocks(n_genes: int) -> Iterator[slice]:
    """Split genes into blocks."""
    return (slice(start, min(start + _GENE_BLOCK, n_genes)) for start in range(0, n_genes, _GENE_BLOCK))


def in_threads(work: Callable[[slice], None], blocks: Iterator[slice]) -> None:
    """Call `work` for each block on all cores; it must release the interpreter's lock."""
    n_threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(n_threads) as pool:
        for done in pool.map(work, blocks):
            assert done is None


@njit(nogil=True, cache=True)
def _shifted(value_p: NDArray[np.float32], pseudocounts: float, out_p: NDArray[np.float64]) -> None:
    """Compute log2(2**value + pseudocounts), which is value + log2(1 + pseudocounts / 2**value)."""
    for i in range(len(value_p)):
        value = np.float64(value_p[i])
        ratio = pseudocounts * 2.0**-value
        # Most genes are far above the pseudocount, where two terms of the series are exact to 1e-9.
        if ratio < 1e-3:
            out_p[i] = value + ratio * (1 - ratio * (0.5 - ratio / 3)) * 1.4426950408889634
        else:
            out_p[i] = value + np.log2(1 + ratio)


@njit(nogil=True, cache=True)
def _compare(
    first_gp: NDArray[np.float32],
    second_gm: NDArray[np.float32],
    delta: float,
    pseudocounts: float,
    described: float,
    found: NDArray[np.float64],
) -> None:
    p, m = first_gp.shape[1], second_gm.shape[1]
    a, b = np.empty(p), np.empty(m)
    for gene in range(first_gp.shape[0]):
        _shifted(first_gp[gene], pseudocounts, a)
        _shifted(second_gm[gene], pseudocounts, b)
        _count(a, b, delta, found[gene], 2)
        _count_columns(a, b, delta, found[gene])
        _shifted(first_gp[gene], described, a)
        _shifted(second_gm[gene], described, b)
        found[gene, 8], found[gene, 10] = a.mean(), a.var()
        found[gene, 9], found[gene, 11] = b.mean(), b.var()
        found[gene, 12], found[gene, 13], found[gene, 14], found[gene, 15] = a[0], a[-1], b[0], b[-1]
        found[gene, 16] = _median(a, b)


@njit(nogil=True, cache=True)
def _count(a: NDArray[np.float64], b: NDArray[np.float64], delta: float, found: NDArray[np.float64], at: int) -> None:
    """Compute for each value of `a` the shares of `b` that are below and above by delta: means and variances."""
    p, m = len(a), len(b)
    below, within = 0, 0
    plus, minus, plus2, minus2, both2 = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(p):
        while below < m and b[below] <= a[i] - delta:
            below += 1
        while within < m and b[within] <= a[i] + delta:
            within += 1
        up, down = below / m, (m - within) / m
        plus += up
        minus += down
        plus2 += up * up
        minus2 += down * down
        both2 += (up + down) * (up + down)
    plus, minus = plus / p, minus / p
    found[0], found[1] = plus, minus
    found[at] = max(plus2 / p - plus * plus, 0.0)
    found[at + 2] = max(minus2 / p - minus * minus, 0.0)
    found[at + 4] = max(both2 / p - (plus + minus) * (plus + minus), 0.0)


@njit(nogil=True, cache=True)
def _count_columns(a: NDArray[np.float64], b: NDArray[np.float64], delta: float, found: NDArray[np.float64]) -> None:
    """Compute the same variances over the values of `b`."""
    p, m = len(a), len(b)
    lower, upper = 0, 0
    plus2, minus2, both2 = 0.0, 0.0, 0.0
    for j in range(m):
        while upper < p and a[upper] < b[j] + delta:
            upper += 1
        while lower < p and a[lower] < b[j] - delta:
            lower += 1
        up, down = (p - upper) / p, lower / p
        plus2 += up * up
        minus2 += down * down
        both2 += (up + down) * (up + down)
    plus, minus = found[0], found[1]
    found[3] = max(plus2 / m - plus * plus, 0.0)
    found[5] = max(minus2 / m - minus * minus, 0.0)
    found[7] = max(both2 / m - (plus + minus) * (plus + minus), 0.0)


@njit(nogil=True, cache=True)
def _median(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Bisect for the median difference of 64 evenly spaced quantiles of both."""
    p, m = min(len(a), 64), min(len(b), 64)
    first, second = np.empty(p), np.empty(m)
    _evenly(a, first)
    _evenly(b, second)
    low, high = a[0] - b[-1], a[-1] - b[0]
    for _ in range(20):
        middle = (low + high) / 2
        below, j = 0, 0
        for i in range(p):
            while j < m and second[j] < first[i] - middle:
                j += 1
            below += m - j  # differences of at most the middle
        if 2 * below < p * m:
            low = middle
        else:
            high = middle
    median: float = (low + high) / 2
    return median


@njit(nogil=True, cache=True)
def _evenly(value_p: NDArray[np.float64], out_m: NDArray[np.float64]) -> None:
    """Interpolate evenly spaced quantiles of sorted values."""
    n, wanted = len(value_p), len(out_m)
    for i in range(wanted):
        place = (i + 0.5) * n / wanted - 0.5
        left = min(max(int(place), 0), max(n - 2, 0))
        right = min(left + 1, n - 1)
        out_m[i] = value_p[left] + (place - left) * (value_p[right] - value_p[left])
