"""Descriptions of a model: options, sizes and columns, as text, tables and HTML."""

from typing import Any

import pandas as pd

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.loaders.data import CellData
from dist_scvi.network.model_spec import ModelSpec

_SHOWN = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood")
_NAMES = 8
"""Obs columns that are named."""


class SummaryStats(dict[str, int]):
    """Sizes by name, as items and as attributes: ``stats["n_cells"]`` and ``stats.n_cells``."""

    def __getattr__(self, name: str) -> int:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"summary_stats has no {name!r}: it has {', '.join(self)}") from None


def summary_stats(spec: ModelSpec, data: CellData) -> SummaryStats:
    """Return the sizes of a model and its data, under the names of scvi-tools."""
    return SummaryStats(
        n_batch=spec.n_batch,
        n_cells=data.n_cells,
        n_extra_categorical_covs=len(spec.categorical_covariates),
        n_extra_continuous_covs=len(spec.continuous_covariates),
        n_labels=spec.n_labels + (spec.unlabeled_category is not None),
        n_vars=len(spec.var_names),
    )


def describe_options(spec: ModelSpec, *, is_trained: bool) -> str:
    """Describe the network in one line: its main options, and all others that differ from their defaults."""
    model, default = spec.model, ModelConfig(model_name=spec.model.model_name)
    changed = [key for key in ModelConfig.model_fields if getattr(model, key) != getattr(default, key)]
    options = ", ".join(
        f"{key}: {getattr(model, key)}" for key in dict.fromkeys([*_SHOWN, *changed]) if key != "model_name"
    )
    return f"{model.model_name} model with {options}; trained: {is_trained}"


def describe_data(spec: ModelSpec, data: CellData) -> dict[str, str]:
    """Describe the cells of a model: how many, where they are, and which obs columns are used."""
    named = {"batch_key": spec.batch, "labels_key": spec.label}
    described = {
        "cells": f"{data.n_cells:,} of {printable(data.store.uri)}",
        "genes": f"{len(spec.var_names):,} of {'X' if spec.layer is None else printable(spec.layer)}",
    }
    for name, covariate in named.items():
        if covariate is not None:
            described[name] = f"{printable(covariate.key)} ({len(covariate.categories)} categories)"
    further = (*spec.keys.categorical_covariate_keys, *spec.continuous_covariates)
    if further:
        described["covariates"] = printable(", ".join(further))
    columns = data.store.obs_columns()
    more = f", ... ({len(columns)})" if len(columns) > _NAMES else ""
    described["obs columns"] = printable(", ".join(columns[:_NAMES])) + more
    return described


def setup_table(spec: ModelSpec, *, hide_state_registries: bool) -> pd.DataFrame:
    """Return which obs columns a model uses, and their categories unless they are hidden."""
    rows = [(role, one) for role, one in (("batch", spec.batch), ("labels", spec.label)) if one]
    rows += [("categorical covariate", covariate) for covariate in spec.categorical_covariates]
    records: list[tuple[Any, ...]] = []
    for role, covariate in rows:
        categories = enumerate(covariate.values().tolist())
        records += (
            [(role, covariate.key)]
            if hide_state_registries
            else [(role, covariate.key, code, category) for code, category in categories]
        )
    others = [("continuous covariate", key) for key in spec.continuous_covariates]
    others += [("size factor", spec.size_factor_key)] if spec.size_factor_key else []
    records += others if hide_state_registries else [(*other, -1, "") for other in others]
    names = ["role", "obs column", "code", "category"]
    return pd.DataFrame(records, columns=names[:2] if hide_state_registries else names)
