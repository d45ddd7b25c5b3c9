"""The metrics of a model as scvi-hub shows them."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.criticism.agreement import Agreement, agreement
from dist_scvi.criticism.de_agreement import COLUMNS
from dist_scvi.criticism.posterior_predictive_check import PosteriorPredictiveCheck
from dist_scvi.inference.encode_decode import Indices
from dist_scvi.storage.atomic_files import write_file

METRICS_FILE = "metrics.json"
_METRICS = ("cv_cell", "cv_gene", "diff_exp")


def create_criticism_report(
    model: Any,
    adata: Any = None,
    skip_metrics: Collection[str] = (),
    n_samples: int = 5,
    label_key: str | None = None,
    save_folder: str | Path | None = None,
    *,
    indices: Indices | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """Compute the metrics of a model for its card.

    Parameters
    ----------
    model
        A model or an atlas.
    adata
        The cells; by default those of the model.
    skip_metrics
        Of ``"cv_cell"``, ``"cv_gene"`` and ``"diff_exp"``.
    n_samples
        Draws of the counts of each cell.
    label_key
        obs column of the groups of differential expression; by default the labels of the model.
    save_folder
        Folder to which ``metrics.json`` is written, which the card of the model reads.
    indices
        Rows to use; all by default.

    Returns
    -------
    dict
        ``cell_wise_cv``, ``gene_wise_cv`` and ``diff_exp``, tables in Markdown; empty where they were skipped.

    Raises
    ------
    ValueError
        If a metric is not known, or there are no labels for ``diff_exp``.

    Notes
    -----
    scvi-tools 1.4.2, criticism/_create_criticism_report.py; there nothing is returned, and `adata` is changed.
    """
    unknown = sorted(set(skip_metrics) - set(_METRICS))
    if unknown:
        raise ValueError(f"skip_metrics has {', '.join(unknown)}: there are {', '.join(_METRICS)}")
    check = PosteriorPredictiveCheck(adata, {"model": model}, n_samples=n_samples, indices=indices, seed=seed)
    found = dict.fromkeys(("cell_wise_cv", "gene_wise_cv", "diff_exp"), "")
    if {"cv_cell", "cv_gene"} - set(skip_metrics):
        moments = check.moments("model")
        if "cv_cell" not in skip_metrics:
            splits = _splits(model, moments.row_n)
            parts = {
                name: agreement(moments.cv_cell_n[mask_n], moments.cv_cell_drawn_n[mask_n])
                for name, mask_n in splits.items()
            }
            found["cell_wise_cv"] = variation_table(parts)
        if "cv_gene" not in skip_metrics:
            found["gene_wise_cv"] = variation_table({"Training": agreement(moments.cv_gene_g, moments.cv_gene_drawn_g)})
    if "diff_exp" not in skip_metrics:
        check.differential_expression(label_key, p_val_thresh=0.2)
        found["diff_exp"] = groups_table(check.metrics["diff_exp"]["summary"])
    if save_folder is not None:
        folder = Path(save_folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / METRICS_FILE, json.dumps(found, indent=4).encode())
    return found


def variation_table(parts: dict[str, Agreement]) -> str:
    """Return the agreement of a coefficient of variation, a column for each split, as a Markdown table."""
    rows = {"Mean Absolute Error": "mae", "Pearson Correlation": "pearson"}
    rows |= {"Spearman Correlation": "spearman", "R² (R-Squared)": "r2"}
    lines = ["| Metric | " + " | ".join(f"{name} Value" for name in parts) + " |", "| --- " * (len(parts) + 1) + "|"]
    lines += [
        f"| {title} | " + " | ".join(f"{getattr(part, key):.2f}" for part in parts.values()) + " |"
        for title, key in rows.items()
    ]
    return "\n".join(lines)


def groups_table(summary: pd.DataFrame) -> str:
    """Return the agreement of differential expression by group, the largest first, as a Markdown table."""
    lines = ["| Index | " + " | ".join(COLUMNS) + " | n_cells |", "| --- " * (len(COLUMNS) + 2) + "|"]
    for row in summary.sort_values("n_cells", ascending=False).to_dict(orient="records"):
        values = " | ".join(f"{row[key]:.2f}" for key in COLUMNS)
        lines.append(f"| {row['group']} | {values} | {row['n_cells']} |")
    return "\n".join(lines)


def _splits(model: Any, row_n: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Return which of some rows are training and validation cells; all are training where that is not known."""
    try:
        parts = {"Training": model.train_indices, "Validation": model.validation_indices}
    except (ValueError, AttributeError):
        return {"Training": np.ones(len(row_n), dtype=bool)}
    masks = {name: np.isin(row_n, rows) for name, rows in parts.items()}
    if not all(mask_n.any() for mask_n in masks.values()):
        return {"Training": np.ones(len(row_n), dtype=bool)}
    return masks
