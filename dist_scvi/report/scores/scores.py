"""All scores of a sample of cells, with their intervals, and the two means that summarise them.

Shape letters in this file
    n   cells
    k   latent dimensions
    j   neighbours of a cell
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_scvi.report.scores.graph import batch_acceptance, in_largest_component
from dist_scvi.report.scores.lisi import local_simpson
from dist_scvi.report.scores.neighbours import Neighbours, nearest_within
from dist_scvi.report.scores.silhouette import silhouettes
from dist_scvi.report.scores.weighted import (
    Statistic,
    adjusted_rand,
    bootstrap_weights,
    mean_of_group_means,
    mutual_information,
    weighted_mean,
    weighted_median,
)

LISI_NEIGHBOURS, KBET_NEIGHBOURS, GRAPH_NEIGHBOURS = 90, 50, 15
"""Numbers of neighbours of scib-metrics 0.5.10, benchmark/_core.py."""

INTEGRATION = ("bras", "ilisi_knn", "kbet_per_label", "graph_connectivity")
CONSERVATION = (
    "isolated_labels",
    "nmi_ari_cluster_labels_kmeans_nmi",
    "nmi_ari_cluster_labels_kmeans_ari",
    "silhouette_label",
    "clisi_knn",
)
MEANS = {"integration": INTEGRATION, "conservation": CONSERVATION}
"""The scores of which each summary is the mean. scib-metrics names the two batch correction and bio conservation."""


@dataclass(frozen=True, slots=True)
class Score:
    """A score from 0 to 1, higher is better, with an interval."""

    value: float
    low: float
    high: float
    """Ends of the central 95 % of the bootstrap samples."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoredCells:
    """A sample of cells, all of which have a label and a batch."""

    z_nk: NDArray[np.float32]
    """Means of the posterior."""
    batch_n: NDArray[np.int64]
    """Codes from 0, each with at least one cell."""
    label_n: NDArray[np.int64]
    weight_n: NDArray[np.float64]
    """Number of cells of the store that each stands for; equal where the sample is everything."""
    neighbours: Neighbours
    """The nearest `LISI_NEIGHBOURS` cells of each, of the whole store where it can be searched."""
    batch_nj: NDArray[np.int64]
    """Batch of each of these neighbours."""
    label_nj: NDArray[np.int64]


def score_cells(cells: ScoredCells, *, n_bootstrap: int = 200, seed: int = 0, fast: bool = False) -> dict[str, Score]:
    """Score the mixing of batches and the separation of labels.

    Parameters
    ----------
    n_bootstrap
        Bootstrap samples, drawn within batch and label.
    fast
        Leave out kBET and isolated labels, which cost most.

    Returns
    -------
    dict
        Scores under the names of scib-metrics 0.5.10, and ``integration`` and ``conservation``, the means of
        `INTEGRATION` and `CONSERVATION`. Left out are those that need two batches or two labels where there is one.
    """
    statistics = _statistics(cells, seed=seed, fast=fast)
    for mean, names in MEANS.items():
        parts = [statistics[name] for name in names if name in statistics]
        if parts:
            statistics[mean] = _mean_of(parts)
    stratum_n = cells.batch_n * (int(cells.label_n.max()) + 1) + cells.label_n
    drawn = bootstrap_weights(cells.weight_n, stratum_n, n_bootstrap, seed=seed)
    found = {}
    for name, statistic in statistics.items():
        value = statistic(cells.weight_n)
        if np.isfinite(value):
            low, high = np.nanquantile([statistic(weight_n) for weight_n in drawn], [0.025, 0.975])
            found[name] = Score(value, float(low), float(high))
    return found


def _statistics(cells: ScoredCells, *, seed: int, fast: bool) -> dict[str, Statistic]:
    n_batches, n_labels = int(cells.batch_n.max()) + 1, int(cells.label_n.max()) + 1
    own = nearest_within(cells.z_nk, KBET_NEIGHBOURS)
    found: dict[str, Statistic] = {}
    if n_batches > 1:
        mixing_n = local_simpson(cells.neighbours, cells.batch_nj, n_batches)
        found["ilisi_knn"] = weighted_median((mixing_n - 1) / (n_batches - 1))
        found["bras"] = mean_of_group_means(_batch_silhouettes(cells), cells.label_n)
        if not fast:
            accepted_n = batch_acceptance(own, cells.batch_n, cells.label_n)
            found["kbet_per_label"] = mean_of_group_means(accepted_n, cells.label_n)
    inside_n = in_largest_component(own.first(GRAPH_NEIGHBOURS), cells.label_n)
    found["graph_connectivity"] = mean_of_group_means(inside_n.astype(float), cells.label_n)
    if n_labels > 1:
        purity_n = local_simpson(cells.neighbours, cells.label_nj, n_labels)
        found["clisi_knn"] = weighted_median((n_labels - purity_n) / (n_labels - 1))
        cluster_n = _clusters(cells.z_nk, n_labels, seed)
        found["nmi_ari_cluster_labels_kmeans_nmi"] = mutual_information(cluster_n, cells.label_n)
        found["nmi_ari_cluster_labels_kmeans_ari"] = adjusted_rand(cluster_n, cells.label_n)
        width_n = (silhouettes(cells.z_nk, cells.label_n, cells.weight_n) + 1) / 2
        found["silhouette_label"] = weighted_mean(width_n)
        if not fast:
            isolated_n = np.where(_is_isolated(cells), cells.label_n, -1)
            found["isolated_labels"] = mean_of_group_means(width_n, isolated_n)
    return found


def _batch_silhouettes(cells: ScoredCells) -> NDArray[np.float64]:
    """Return 1 - |silhouette| of each cell by batch within its label (BRAS); NaN where the label has one batch.

    Notes
    -----
    Rautenstrauch and Ohler 2025, doi:10.1038/s41587-025-02743-4; scib-metrics 0.5.10, metrics/_silhouette.py.
    """
    found_n = np.full(len(cells.batch_n), np.nan)
    for label in range(int(cells.label_n.max()) + 1):
        rows = np.flatnonzero(cells.label_n == label)
        _, code_n = np.unique(cells.batch_n[rows], return_inverse=True)
        if len(rows) and 1 < code_n.max() + 1 < len(rows):
            weights = cells.weight_n[rows]
            width_n = silhouettes(cells.z_nk[rows], code_n, weights, metric="cosine", between="mean_other")
            found_n[rows] = 1 - np.abs(width_n)
    return found_n


def _is_isolated(cells: ScoredCells) -> NDArray[np.bool_]:
    """Return whether the label of each cell is in the fewest batches that any label is in."""
    n_labels = int(cells.label_n.max()) + 1
    pairs = np.unique(cells.label_n * (int(cells.batch_n.max()) + 1) + cells.batch_n)
    batches_l = np.bincount(pairs // (int(cells.batch_n.max()) + 1), minlength=n_labels)
    isolated: NDArray[np.bool_] = (batches_l == batches_l[batches_l > 0].min())[cells.label_n]
    return isolated


def _clusters(z_nk: NDArray[np.float32], n_clusters: int, seed: int) -> NDArray[np.integer]:
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(n_clusters, n_init=3, random_state=seed).fit(z_nk).labels_)


def _mean_of(parts: list[Statistic]) -> Statistic:
    return lambda weight_n: float(np.nanmean([part(weight_n) for part in parts]))
