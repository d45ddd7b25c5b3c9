"""Scores of scib-metrics for some cells, written to scib_reference.json next to this file.

Run it in an environment with scib-metrics 0.5.10: ``python tests/dist_scvi/report/scib_reference.py``.
"""

import json
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).with_suffix(".json")


def cells(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make 700 cells of 5 labels in 3 batches, the last label in one batch: positions, batches, labels."""
    rng = np.random.default_rng(seed)
    label_n = rng.choice(5, 700, p=[0.35, 0.25, 0.2, 0.12, 0.08])
    batch_n = np.where(label_n == 4, 0, rng.choice(3, 700, p=[0.5, 0.3, 0.2]))
    center_lk, shift_bk = rng.normal(size=(5, 6)) * 1.6, rng.normal(size=(3, 6)) * 0.5
    z_nk = center_lk[label_n] + shift_bk[batch_n] * (label_n[:, None] < 2) + rng.normal(size=(700, 6)) * 0.7
    return z_nk.astype(np.float32), batch_n, label_n


def reference(seed: int) -> dict[str, float]:
    """Compute the scores with scib-metrics, given the exact neighbours."""
    import scib_metrics as scib
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    z_nk, batch_n, label_n = cells(seed)
    distance_nj, index_nj = NearestNeighbors(n_neighbors=90).fit(z_nk).kneighbors(z_nk)
    near = NeighborsResults(indices=index_nj, distances=distance_nj.astype(np.float32))
    clusters = scib.nmi_ari_cluster_labels_kmeans(z_nk, label_n)
    found = {
        "ilisi_knn": scib.ilisi_knn(near, batch_n),
        "clisi_knn": scib.clisi_knn(near, label_n),
        "kbet_per_label": scib.kbet_per_label(near.subset_neighbors(50), batch_n, label_n),
        "graph_connectivity": scib.graph_connectivity(near.subset_neighbors(15), label_n),
        "bras": scib.bras(z_nk, label_n, batch_n),
        "isolated_labels": scib.isolated_labels(z_nk, label_n, batch_n),
        "silhouette_label": scib.silhouette_label(z_nk, label_n),
        "nmi_ari_cluster_labels_kmeans_nmi": clusters["nmi"],
        "nmi_ari_cluster_labels_kmeans_ari": clusters["ari"],
    }
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    REFERENCE.write_text(json.dumps({str(seed): reference(seed) for seed in (0, 1, 2)}, indent=1) + "\n")
