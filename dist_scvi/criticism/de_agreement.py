"""How well differential expression in drawn counts agrees with that in observed ones, by group.

Shape letters in this file
    n   cells
    g   genes
    q   groups
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.criticism.agreement import agreement
from dist_scvi.criticism.rank_genes import Method, RankedGenes, log_normalize, rank_genes

COLUMNS = ("gene_f1", "lfc_mae", "lfc_pearson", "lfc_spearman", "roc_auc", "pr_auc")
"""Columns of ``metrics["diff_exp"]["summary"]`` in scvi-tools 1.4.2."""


def compare_groups(
    observed_ng: Any,
    drawn: Sequence[Any],
    group_n: NDArray[np.integer],
    names: Sequence[str],
    *,
    method: Method,
    scale: float,
    p_val_thresh: float,
    n_top_genes: int,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Compare the genes of each group.

    Parameters
    ----------
    observed_ng, drawn
        Observed counts, and one or several draws of them over which the results are averaged; sparse.
    group_n
        Code of each cell in `names`, -1 for none. Groups of fewer than two cells are left out.

    Returns
    -------
    tuple
        A row for each group: F1 of the top genes, agreement of fold changes, and how well the scores of the draws find
        the genes that differ in the observed counts. And the fold changes of each group, ``raw`` and ``approx``.

    Notes
    -----
    scvi-tools 1.4.2, criticism/_ppc.py: differential_expression.
    """
    size_q = np.bincount(group_n[group_n >= 0], minlength=len(names))
    kept_q = np.flatnonzero((size_q > 1) & (size_q < len(group_n)))
    code_n = np.where(group_n >= 0, np.searchsorted(kept_q, group_n).clip(0, max(0, len(kept_q) - 1)), -1)
    code_n = np.where((group_n >= 0) & np.isin(group_n, kept_q), code_n, -1)
    n_top_genes = min(n_top_genes, max(1, observed_ng.shape[1] // 10))
    truth = rank_genes(log_normalize(observed_ng, scale), code_n, len(kept_q), method)
    found = [rank_genes(log_normalize(counts, scale), code_n, len(kept_q), method) for counts in drawn]
    rows, folds = [], {}
    for at, group in enumerate(kept_q.tolist()):
        values = np.mean([_compare(truth, one, at, p_val_thresh, n_top_genes) for one in found], axis=0)
        rows.append((*values.tolist(), names[group], int(size_q[group])))
        approx_g = np.mean([one.log_fold_qg[at] for one in found], axis=0)
        folds[names[group]] = pd.DataFrame({"raw": truth.log_fold_qg[at], "approx": approx_g})
    return pd.DataFrame(rows, columns=[*COLUMNS, "group", "n_cells"]), folds


def _compare(truth: RankedGenes, found: RankedGenes, at: int, p_val_thresh: float, n_top: int) -> list[float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    score_g, fold_g, true_fold_g = found.score_qg[at], found.log_fold_qg[at], truth.log_fold_qg[at]
    top, top_true = (set(np.argsort(-score, kind="stable")[:n_top].tolist()) for score in (score_g, truth.score_qg[at]))
    differ_g = truth.adjusted_qg[at] < p_val_thresh
    if not 0 < differ_g.sum() <= 0.5 * len(differ_g):  # none or most: the genes with the smallest p-values instead
        differ_g = np.zeros(len(differ_g), dtype=bool)
        order = np.lexsort((-truth.score_qg[at], truth.adjusted_qg[at]))
        differ_g[order[:n_top]] = True
    folds = agreement(true_fold_g, fold_g)
    return [
        len(top & top_true) / n_top,  # both sets have the same size, so that precision, recall and F1 are equal
        folds.mae,
        folds.pearson,
        folds.spearman,
        float(roc_auc_score(differ_g, score_g)),
        float(average_precision_score(differ_g, score_g)),
    ]
