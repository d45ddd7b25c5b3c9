"""Sums over groups of cells that do not depend on the order of addition or the number of workers.

Values are added as whole numbers: a value is a multiple of 2**-35 and a remainder in multiples of 2**-70. The last bits
of floating-point sums would depend on the order.

Shape letters in this file
    n   cells
    g   genes
    q   groups
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

_WORD = float(1 << 35)


@dataclass(frozen=True, slots=True, eq=False)
class GroupSums:
    """Sums of values from 0 to `largest` by group and gene."""

    word_qgw: NDArray[np.int64]
    """High and low words of the sums of values and of their squares, shape (q, g, 4)."""
    above_qg: NDArray[np.int64]
    """Cells whose value is above the threshold."""
    n_q: NDArray[np.int64]
    unit: float
    """Power of two that brings the values into [0, 1]."""

    @classmethod
    def empty(cls, n_groups: int, n_genes: int, *, largest: float = 1.0) -> "GroupSums":
        """Start with zero sums."""
        unit = 2.0 ** -np.ceil(np.log2(largest))
        words = np.zeros((n_groups, n_genes, 4), dtype=np.int64)
        return cls(words, np.zeros((n_groups, n_genes), np.int64), np.zeros(n_groups, np.int64), float(unit))

    def add(self, value_ng: NDArray[np.float32], group_n: NDArray[np.int32], threshold: float) -> None:
        """Add cells; those of group -1 are ignored."""
        _add(value_ng, group_n, threshold, self.unit, self.word_qgw, self.above_qg, self.n_q)

    def mean(self) -> NDArray[np.float64]:
        """Return the mean of each group and gene, NaN for a group without cells."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_qg: NDArray[np.float64] = _joined(self.word_qgw[..., :2]) / self.unit / self.n_q[:, None]
        return mean_qg

    def variance(self) -> NDArray[np.float64]:
        """Return the population variance of each group and gene."""
        with np.errstate(invalid="ignore", divide="ignore"):
            square_qg = _joined(self.word_qgw[..., 2:]) / self.unit**2 / self.n_q[:, None]
        return np.maximum(square_qg - self.mean() ** 2, 0)

    def fraction(self) -> NDArray[np.float64]:
        """Return the share of cells above the threshold."""
        with np.errstate(invalid="ignore", divide="ignore"):
            share_qg: NDArray[np.float64] = self.above_qg / self.n_q[:, None]
        return share_qg


def _joined(word_qgw: NDArray[np.int64]) -> NDArray[np.float64]:
    high_qg, low_qg = word_qgw[..., 0], word_qgw[..., 1]
    value_qg: NDArray[np.float64] = (high_qg + low_qg / _WORD) / _WORD
    return value_qg


@njit(nogil=True, cache=True)
def _add(
    value_ng: NDArray[np.float32],
    group_n: NDArray[np.int32],
    threshold: float,
    unit: float,
    word_qgw: NDArray[np.int64],
    above_qg: NDArray[np.int64],
    n_q: NDArray[np.int64],
) -> None:
    """Add values in two words each: 2**28 cells fit, and the result does not depend on their order."""
    word = 34359738368.0
    for cell in range(value_ng.shape[0]):
        group = group_n[cell]
        if group < 0:
            continue
        n_q[group] += 1
        for gene in range(value_ng.shape[1]):
            value = value_ng[cell, gene]
            above_qg[group, gene] += value > threshold
            scaled = value * unit * word
            high = np.int64(scaled)
            word_qgw[group, gene, 0] += high
            word_qgw[group, gene, 1] += np.int64((scaled - high) * word)
            scaled = (value * unit) * (value * unit) * word
            high = np.int64(scaled)
            word_qgw[group, gene, 2] += high
            word_qgw[group, gene, 3] += np.int64((scaled - high) * word)
