"""The results of a report as plain values: the JSON file, and the file that MultiQC reads."""

import math
from dataclasses import asdict
from typing import Any

from dist_scvi.report.held_out import HeldOutCells
from dist_scvi.report.label_check import LabelCheck
from dist_scvi.report.measure import Measurements, SampleSizes
from dist_scvi.report.subject import Subject
from dist_scvi.report.verdict import Verdict

FORMAT = "dist_scvi.report/1"


def plain_results(subject: Subject, found: Measurements, verdict: Verdict, sizes: SampleSizes) -> dict[str, Any]:
    """Return all numbers of a report; those that are not finite become None."""
    results = {
        "format": FORMAT,
        "title": subject.title,
        "verdict": asdict(verdict),
        "data": {
            "uri": None if subject.data is None else subject.data.store.uri,
            "n_cells": found.sample.n_cells,
            "n_genes": len(subject.spec.var_names),
            "split": dict(subject.split_sizes),
        },
        "model": subject.spec.model.model_dump(mode="json"),
        "config": dict(subject.config),
        "facts": dict(subject.facts),
        "command": subject.command,
        "sampling": {
            **asdict(sizes),
            "sampled_cells": len(found.sample.row_m),
            "strata": found.sample.n_strata,
            "is_everything": found.sample.is_everything,
            "neighbours": "all cells of the atlas" if subject.atlas is not None else "the sampled cells",
        },
        "training": {
            name: float(table.iloc[:, 0].to_numpy()[-1]) for name, table in subject.history.items() if len(table)
        },
        "held_out": {**_loss_of(found.held_out), "split": found.held_out_split},
        "training_cells": _loss_of(found.trained_on),
        "latent": {
            "kl": found.use.kl_k.tolist(),
            "variance": found.use.variance_k.tolist(),
            "collapsed": found.use.collapsed,
        },
        "scores": {name: asdict(score) for name, score in found.scores.items()},
        "batch_leak": [asdict(leak) for leak in found.leaks],
        "labels": None if found.labels is None else _labels_of(found.labels),
        "criticism": None if found.counts is None else found.counts.to_dict(),
        "donors": {"key": found.donor_key, "losses": [{**asdict(one), "gain": one.gain} for one in found.donors]},
        "notes": found.notes,
    }
    plain: dict[str, Any] = _finite(results)
    return plain


def multiqc_section(subject: Subject, found: Measurements) -> dict[str, Any]:
    """Return a table of custom content for MultiQC, with one row, the run.

    Notes
    -----
    MultiQC reads files whose names end with ``_mqc.json``.
    """
    row: dict[str, float] = {name: score.value for name, score in found.scores.items()}
    if found.held_out is not None:
        row |= {"elbo": float(found.held_out.elbo_n.mean()), "gain": 100 * found.held_out.gain}
    if found.labels is not None:
        row |= {"label_accuracy": found.labels.accuracy, "calibration_error": found.labels.calibration_error}
    if found.counts is not None:
        row["cv_cell_pearson"] = found.counts.cv_cell.pearson
    row["collapsed_dimensions"] = len(found.use.collapsed)
    headers = {name: {"title": _TITLES.get(name, name.replace("_", " ")), "format": "{:,.3f}"} for name in row}
    return {
        "id": "dist_scvi",
        "section_name": "dist_scvi",
        "description": "Quality of trained models; higher scores are better, a lower ELBO is better.",
        "plot_type": "table",
        "pconfig": {"id": "dist_scvi_table", "title": "dist_scvi: models"},
        "headers": headers,
        "data": {subject.title: _finite(row)},
    }


_TITLES = {
    "elbo": "held-out ELBO",
    "gain": "better than baseline, %",
    "ilisi_knn": "iLISI",
    "clisi_knn": "cLISI",
    "kbet_per_label": "kBET",
    "bras": "BRAS",
    "nmi_ari_cluster_labels_kmeans_nmi": "NMI",
    "nmi_ari_cluster_labels_kmeans_ari": "ARI",
}


def _loss_of(cells: HeldOutCells | None) -> dict[str, Any]:
    if cells is None:
        return {}
    elbo, baseline = float(cells.elbo_n.mean()), float(cells.baseline_n.mean())
    return {"n_cells": len(cells.row_n), "elbo": elbo, "baseline": baseline, "gain": cells.gain}


def _labels_of(check: LabelCheck) -> dict[str, Any]:
    return {
        "method": check.method,
        "n_cells": check.n_cells,
        "accuracy": check.accuracy,
        "f1_macro": check.f1_macro,
        "calibration_error": check.calibration_error,
        "brier": check.brier,
        "labels": list(check.labels),
        "confusion": check.confusion_ll.astype(int).tolist(),
        "reliability": [
            {"confidence": confidence, "accuracy": accuracy, "n_cells": n_cells}
            for confidence, accuracy, n_cells in zip(
                check.bin_confidence.tolist(), check.bin_accuracy.tolist(), check.bin_cells.tolist(), strict=True
            )
        ],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
