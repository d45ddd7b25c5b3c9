"""Score what models made of cells: how well labels were transferred and batches integrated.

One code for all programs. The scores of latent spaces are those of scib-metrics (Luecken et al. 2022,
doi:10.1038/s41592-021-01336-8), from 0 to 1 and higher if better, but for two things: neighbours are exact, and LISI is
averaged over cells, where its median is 0 or 1 in most of the spaces compared here.

Shape letters in this file
    n   cells
    k   latent dimensions
    m   neighbours
"""

import json
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scib_metrics
from numpy.typing import NDArray
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import NearestNeighbors

N_NEIGHBOURS = 90


def transfer_scores(truth_n: NDArray[Any], predicted_n: NDArray[Any]) -> dict[str, float]:
    """Compare predicted labels with true ones; macro F1 is over the labels that truly occur."""
    f1 = f1_score(truth_n, predicted_n, average="macro", labels=np.unique(truth_n), zero_division=0)
    return {"accuracy": float(accuracy_score(truth_n, predicted_n)), "macro F1": float(f1)}


def latent_scores(latent_nk: NDArray[np.float32], batch_n: NDArray[Any], truth_n: NDArray[Any]) -> dict[str, float]:
    """Score a latent space; what needs labels is taken over the cells that truly have one, the others hold ''."""
    known_n = truth_n != ""
    latent, batch, truth = latent_nk[known_n], batch_n[known_n], truth_n[known_n]
    clusters = scib_metrics.nmi_ari_cluster_labels_kmeans(latent, truth)
    scores = {
        "iLISI": mixing(latent_nk, batch_n),
        "cLISI": 1 - mixing(latent, truth),
        "NMI": clusters["nmi"],
        "ARI": clusters["ari"],
        "silhouette of labels": scib_metrics.silhouette_label(latent, truth),
    }
    if len(np.unique(batch)) > 1:
        scores["silhouette of batches"] = scib_metrics.silhouette_batch(latent, truth, batch)
    return {name: float(score) for name, score in scores.items()}


def mixing(latent_nk: NDArray[np.float32], group_n: NDArray[Any]) -> float:
    """Tell from how many groups the neighbours of a cell are: 0 if from one, 1 if from all alike."""
    search = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(latent_nk)
    distance_nm, index_nm = search.kneighbors(latent_nk)
    groups_n = scib_metrics.lisi_knn(NeighborsResults(indices=index_nm, distances=distance_nm), group_n)
    return float((np.nanmean(groups_n) - 1) / (len(np.unique(group_n)) - 1))


def main(job: dict[str, Any]) -> dict[str, dict[str, float]]:
    obs = anndata.read_h5ad(job["cells"]).obs
    batch_n = obs[job["batch_key"]].astype(str).to_numpy()
    truth_n = obs[job["truth_key"]].astype(object).fillna("").to_numpy(dtype=str)
    hidden_n = (obs[job["labels_key"]] == job["unlabeled_category"]).to_numpy() & (truth_n != "")
    answer = {}
    for name, folder in job["folders"].items():
        predicted_n = np.load(Path(folder) / "predicted.npy")
        answer[name] = transfer_scores(truth_n[hidden_n], predicted_n[hidden_n])
        for model in ("SCVI", "SCANVI"):
            scores = latent_scores(np.load(Path(folder) / f"{model.lower()}.npy"), batch_n, truth_n)
            answer[name] |= {f"{model} {key}": score for key, score in scores.items()}
    return answer


if __name__ == "__main__":
    at = Path(sys.argv[1])
    (at / "answer.json").write_text(json.dumps(main(json.loads((at / "job.json").read_text()))))
