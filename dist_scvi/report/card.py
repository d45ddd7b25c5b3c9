"""The card of a run: what scvi-hub shows of a model, filled in with what the run knows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from dist_scvi.criticism.check import check_counts
from dist_scvi.criticism.criticism_report import groups_table, variation_table
from dist_scvi.criticism.predictive_source import PredictiveSource
from dist_scvi.report.subject import Subject
from dist_scvi.scvi_tools.hub_card import CardDetails, hub_card

_CELLS, _DRAWS = 1_000, 5


def card_of(
    subject: Subject,
    details: CardDetails | None = None,
    *,
    n_cells: int = _CELLS,
    n_samples: int = _DRAWS,
    seed: int = 0,
) -> str:
    """Return the card of a trained model, with metrics where its counts can be read.

    Parameters
    ----------
    details
        Texts that replace those that follow from the run, and license, tissues and modalities.
    n_cells
        Cells of each of training and validation on which the metrics are computed, chosen at random.
    n_samples
        Draws of the counts of each.
    """
    given = details or CardDetails()
    found = _metrics(subject, n_cells, n_samples, seed) if subject.data is not None else {}
    found |= {
        "description": _description(subject),
        "training_data": _training_data(subject),
        "training_code": _training_code(subject),
    }
    found = {name: text for name, text in found.items() if not getattr(given, name)}
    total = subject.data.n_cells if subject.data is not None else subject.atlas.n_cells if subject.atlas else 0
    minified = subject.atlas is not None
    return hub_card(subject.spec, n_cells=total, minified=minified, details=replace(given, **found))


def _metrics(subject: Subject, n_cells: int, n_samples: int, seed: int) -> dict[str, Any]:
    """Compute the metrics of scvi-hub on training and on held-out cells."""
    assert subject.data is not None
    source = PredictiveSource(subject.data, subject.module)
    if subject.sample_split is None:
        every = subject.data.n_cells
        rows = np.sort(np.random.default_rng(seed).choice(every, min(n_cells, every), replace=False))
        parts = {"Training": rows}
    else:
        named = {"Training": "train", "Validation": "validation"}
        parts = {title: subject.sample_split(split, n_cells, seed) for title, split in named.items()}  # type: ignore[arg-type]
    label_key = subject.spec.label.key if subject.spec.label else None
    checks = {
        title: check_counts(
            source, rows, n_samples=n_samples, label_key=label_key if title == "Training" else None, seed=seed
        )
        for title, rows in parts.items()
        if len(rows)
    }
    groups = checks["Training"].groups
    return {
        "cell_wise_cv": variation_table({title: check.cv_cell for title, check in checks.items()}),
        "gene_wise_cv": variation_table({title: check.cv_gene for title, check in checks.items()}),
        "diff_exp": "" if groups is None else groups_table(groups),
    }


def _description(subject: Subject) -> str:
    spec, sizes = subject.spec, subject.split_sizes
    n_cells = subject.data.n_cells if subject.data is not None else subject.atlas.n_cells if subject.atlas else 0
    lines = [
        f"{spec.model.model_name} trained with dist_scvi on {n_cells:,} cells and {len(spec.var_names):,} genes.",
    ]
    if sizes:
        lines.append("Split: " + ", ".join(f"{n:,} {name}" for name, n in sizes.items()) + " cells.")
    for covariate, what in ((spec.batch, "Batches"), (spec.label, "Labels")):
        if covariate is not None:
            lines.append(f"{what}: `{covariate.key}`, {len(covariate.categories)} values.")
    for name in ("elbo_validation", "elbo_train"):
        curve = subject.history.get(name)
        if curve is not None and len(curve):
            value = float(curve.iloc[:, 0].to_numpy()[-1])
            lines.append(f"{name} at the end, after {len(curve)} epochs: {value:,.2f} nats per cell, lower is better.")
            break
    return "\n".join(f"- {line}" if at else line + "\n" for at, line in enumerate(lines))


def _training_data(subject: Subject) -> str:
    if subject.data is None:
        return ""
    return f"`{_public(subject.data.store.uri)}`, {subject.data.n_cells:,} cells"


def _training_code(subject: Subject) -> str:
    """Return the command with the configuration, without folders of this machine."""
    if not subject.config:
        return ""
    config = _public_config(subject.config)
    config.pop("run", None)
    text = yaml.safe_dump({key: value for key, value in config.items() if value not in ({}, None)}, sort_keys=False)
    return f"`dist-scvi train run.yaml run=FOLDER`, with `run.yaml`:\n\n```yaml\n{text}```"


def _public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    public: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            public[key] = {} if key == "storage_options" else _public_config(value)
        else:
            public[key] = _public(value)
    return public


def _public(value: Any) -> Any:
    """Return a URL as it is, and of a path the last name: folders of this machine tell others nothing."""
    if isinstance(value, str):
        return value.rstrip("/").rpartition("/")[2] if value.startswith("/") else value
    if isinstance(value, Sequence):
        return [_public(one) for one in value]
    return value
