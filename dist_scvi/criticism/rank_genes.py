"""Differential expression of each group against all other cells, by ranks or by means.

Shape letters in this file
    n   cells
    g   genes
    q   groups
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import false_discovery_control, norm, rankdata, ttest_ind_from_stats

Array = NDArray[np.float64]
Method = Literal["wilcoxon", "t-test"]
_GENES_AT_ONCE = 256
_SMALL = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class RankedGenes:
    """Results of each group, shape (q, g)."""

    score_qg: Array
    adjusted_qg: Array
    """p-values after Benjamini and Hochberg."""
    log_fold_qg: Array
    """Binary logarithm of the ratio of mean expression."""


def log_normalize(counts_ng: Any, scale: float) -> Any:
    """Return the logarithm of 1 + counts scaled to the same total, as ``sc.pp.normalize_total`` and ``log1p``."""
    counts = sparse.csr_matrix(counts_ng, dtype=np.float64)
    total_n = np.asarray(counts.sum(axis=1)).ravel()
    factor_n = np.where(total_n > 0, scale / np.where(total_n > 0, total_n, 1), 0)
    return sparse.csr_matrix(sparse.diags(factor_n) @ counts).log1p()


def rank_genes(value_ng: Any, group_n: NDArray[np.integer], n_groups: int, method: Method) -> RankedGenes:
    """Compare each group with all other cells; cells of the group -1 are only among the others.

    Parameters
    ----------
    value_ng
        Logarithms of normalized expression, sparse.

    Notes
    -----
    scanpy 1.11, tools/_rank_genes_groups.py, without a correction for ties, as it is called by default.
    """
    member_qn = (group_n == np.arange(n_groups)[:, None]).astype(np.float64)
    size_q1 = member_qn.sum(axis=1, keepdims=True)
    rest_q1 = len(group_n) - size_q1
    sum_qg, square_qg = member_qn @ value_ng, member_qn @ value_ng.power(2)
    all_g, all_square_g = np.asarray(value_ng.sum(axis=0)).ravel(), np.asarray(value_ng.power(2).sum(axis=0)).ravel()
    mean_qg, mean_rest_qg = sum_qg / size_q1, (all_g - sum_qg) / rest_q1
    if method == "wilcoxon":
        rank_qg = _rank_sums(value_ng, member_qn)
        n = len(group_n)
        score_qg = (rank_qg - size_q1 * (n + 1) / 2) / np.sqrt(size_q1 * rest_q1 * (n + 1) / 12)
        p_qg = 2 * norm.sf(np.abs(score_qg))
    else:
        deviations = [
            np.sqrt(np.maximum(square / size - mean**2, 0) * size / np.maximum(size - 1, 1))
            for square, size, mean in (
                (square_qg, size_q1, mean_qg),
                (all_square_g - square_qg, rest_q1, mean_rest_qg),
            )
        ]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = ttest_ind_from_stats(
                mean_qg, deviations[0], size_q1, mean_rest_qg, deviations[1], rest_q1, equal_var=False
            )
        score_qg, p_qg = np.nan_to_num(found[0], posinf=0, neginf=0), np.where(np.isnan(found[1]), 1, found[1])
    fold_qg = np.log2((np.expm1(mean_qg) + _SMALL) / (np.expm1(mean_rest_qg) + _SMALL))
    return RankedGenes(score_qg, false_discovery_control(p_qg, axis=1), fold_qg)


def _rank_sums(value_ng: Any, member_qn: Array) -> Array:
    """Sum the ranks of the cells of each group, for some genes at a time."""
    columns = sparse.csc_matrix(value_ng)
    sums = []
    for start in range(0, columns.shape[1], _GENES_AT_ONCE):
        dense_ng = columns[:, start : start + _GENES_AT_ONCE].toarray()
        sums.append(member_qn @ rankdata(dense_ng, axis=0))
    return np.concatenate(sums, axis=1)
