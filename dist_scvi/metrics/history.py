"""Metrics under the names of scvi-tools, and the history of a model in terms of them."""

from collections.abc import Sequence

import pandas as pd

from dist_scvi.metrics.metrics_file import Row

_NAMES = {
    "loss": "{}_loss",
    "elbo": "elbo_{}",
    "reconstruction": "reconstruction_loss_{}",
    "kl": "kl_local_{}",
    **{
        key: f"{{}}_{key}"
        for key in ("classification_loss", "accuracy", "f1_score", "f1_score_macro", "calibration_error")
    },
}
"""Name of each metric in scvi-tools, or a similar one; ``{}`` is the split."""


def values_by_name(row: Row) -> dict[str, float]:
    """Return the metrics of a line under their names in scvi-tools."""
    split = "validation" if row["kind"] == "validation" else "train"
    return {name.format(split): row[key] for key, name in _NAMES.items() if key in row}


def history_of(rows: Sequence[Row]) -> dict[str, pd.DataFrame]:
    """Return the history of a model as in scvi-tools, from the metrics of a run.

    Returns
    -------
    dict
        For each name a table with one column of this name. Its index is the ``epoch``, from 0; that of ``kl_weight`` is
        the ``step``, the last of those that a line covers.
    """
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["kind"] == "train":
            values.setdefault("kl_weight", {})[row["step"] - 1] = row["kl_weight"]
            continue
        more = {"lr": row["lr"], "kl_global_train": 0.0} if row["kind"] == "epoch" else {"kl_global_validation": 0.0}
        for name, value in {**values_by_name(row), **more}.items():
            values.setdefault(name, {})[row["epoch"]] = value
    return {
        name: pd.DataFrame(
            {name: list(of.values())}, index=pd.Index(list(of), name="step" if name == "kl_weight" else "epoch")
        )
        for name, of in values.items()
    }
