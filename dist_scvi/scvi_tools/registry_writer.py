"""Conversion of a `ModelSpec` into the registry and options that scvi-tools 1.4.2 saves with the weights.

Layouts as in scvi-tools 1.4.2: data/_manager.py, data/fields/, model/base/_save_load.py.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders.arrays.obs_columns import typed_categories
from dist_scvi.network.model_spec import Covariate, ModelSpec
from dist_scvi.scvi_tools.minified_h5ad import LATENT_PREFIX, MINIFY_TYPE
from dist_scvi.scvi_tools.registry import NAMED_OPTIONS, OTHER_OPTIONS

VERSION = "1.4.2"
"""Version of scvi-tools whose layout is written."""


def attributes_of(
    spec: ModelSpec, *, is_trained: bool = True, obs: pd.DataFrame | None = None, minified: bool = False
) -> dict[str, Any]:
    """Return the attributes from which scvi-tools 1.4.2 builds the model of `spec`.

    Parameters
    ----------
    obs
        The cells that the model will be loaded with. For models that do not record types of categories, they are taken
        from its columns; without it all categories are text.
    minified
        Whether these cells are minified.

    Raises
    ------
    ValueError
        If scvi-tools does not support such a model.
    """
    _check_offered(spec)
    registry = registry_of(spec, obs=obs)
    if minified:
        registry["field_registries"] |= minified_fields(spec)
    attributes = {"init_params_": init_params_of(spec.model), "is_trained_": is_trained, "registry_": registry}
    if spec.model.model_name == "SCANVI":
        attributes["unlabeled_category_"] = registry["setup_args"]["unlabeled_category"]
    return attributes


def registry_of(spec: ModelSpec, *, obs: pd.DataFrame | None = None, n_cells: int | None = None) -> dict[str, Any]:
    """Return the registry of scvi-tools 1.4.2: arguments of the setup, fields and their categories.

    Parameters
    ----------
    obs
        As in `attributes_of`.
    n_cells
        Number of cells of the model's data; by default the rows of `obs`.
    """
    labels, unlabeled = _written_labels(spec)
    setup: dict[str, Any] = {
        "layer": None if spec.layer == "raw/X" else spec.layer,
        "batch_key": spec.keys.batch_key,
        "labels_key": labels.key if labels else None,
    }
    if spec.model.model_name != "LinearSCVI":  # whose setup_anndata has no such arguments
        setup |= {
            "size_factor_key": spec.size_factor_key,
            "categorical_covariate_keys": list(spec.keys.categorical_covariate_keys) or None,
            "continuous_covariate_keys": list(spec.continuous_covariates) or None,
        }
    fields = _write_fields(spec, labels, obs, n_cells if n_cells is not None else 0 if obs is None else len(obs))
    if spec.model.model_name == "SCANVI":
        setup["unlabeled_category"] = None
    if labels is not None and unlabeled is not None:
        setup["unlabeled_category"] = _typed(obs, labels, (unlabeled,)).tolist()[0]
        fields["labels"]["state_registry"]["unlabeled_category"] = setup["unlabeled_category"]
    return {
        "scvi_version": VERSION,
        "model_name": spec.model.model_name,
        "setup_method_name": "setup_anndata",
        "setup_args": setup,
        "field_registries": fields,
    }


def init_params_of(model: ModelConfig) -> dict[str, Any]:
    """Return the arguments of the model's class in the form of ``init_params_`` of scvi-tools 1.4.2."""
    default = ModelConfig(model_name=model.model_name)
    named = {key: getattr(model, key) for key in NAMED_OPTIONS}
    others = {key: getattr(model, key) for key in OTHER_OPTIONS if getattr(model, key) != getattr(default, key)}
    if model.model_name == "SCANVI":
        named |= {"linear_classifier": others.pop("linear_classifier", False), "datamodule": None}
        classifier = model.classifier_parameters.model_dump(exclude_none=True)
        if classifier:
            others["classifier_parameters"] = classifier
        if model.y_prior is not None:
            others["y_prior"] = torch.tensor([model.y_prior])
    else:
        named["latent_distribution"] = others.pop("latent_distribution", default.latent_distribution)
    if model.model_name == "LinearSCVI" and "use_batch_norm" in others:
        others["use_batch_norm"] = False
    if model.embedding_dim != default.embedding_dim:
        others["batch_embedding_kwargs"] = {"embedding_dim": model.embedding_dim}
    return {"kwargs": {"kwargs" if model.model_name == "SCVI" else "model_kwargs": others}, "non_kwargs": named}


def _written_labels(spec: ModelSpec) -> tuple[Covariate | None, str | None]:
    """Return the labels with the unlabeled category last, and for SCANVI that category, which it must have."""
    if spec.label is None:
        return None, None
    unlabeled, categories = spec.unlabeled_category, spec.label.categories
    if spec.model.model_name == "SCANVI":
        unlabeled = unlabeled or "Unknown"
        # A name made up for the unlabeled category must not be that of a label, whose cells would lose it.
        while unlabeled in categories and spec.unlabeled_category is None:
            unlabeled = f"_{unlabeled}"
    whole = categories if unlabeled is None else (*categories, unlabeled)
    labels = spec.label.model_copy(update={"categories": whole})
    return labels, unlabeled if spec.model.model_name == "SCANVI" else None


def _write_fields(
    spec: ModelSpec, labels: Covariate | None, obs: pd.DataFrame | None, n_cells: int
) -> dict[str, dict[str, Any]]:
    """Return ``field_registries``."""
    g = len(spec.var_names)
    layer = None if spec.layer == "raw/X" else spec.layer
    genes = {"n_obs": n_cells, "n_vars": g, "column_names": np.array(spec.var_names, dtype=object)}
    fields = {
        "X": _field({"attr_name": "layers" if layer else "X", "attr_key": layer}, genes, n_vars=g, n_cells=n_cells),
        "batch": _write_covariate("batch", spec.batch, obs),
        "labels": _write_covariate("labels", labels, obs),
    }
    if spec.model.model_name == "LinearSCVI":
        return fields
    key, columns, numbers = spec.size_factor_key, spec.categorical_covariates, spec.continuous_covariates
    mappings = {column.key: _typed(obs, column, column.categories) for column in columns}
    categorical = {
        "mappings": mappings,
        "field_keys": list(mappings),
        "n_cats_per_key": [len(column.categories) for column in columns],
    }
    continuous = {"columns": np.array(numbers, dtype=object)}
    return fields | {
        "size_factor": _field({"attr_name": "obs", "attr_key": key} if key else {}, {}),
        "extra_categorical_covs": _joint_field("extra_categorical_covs", categorical, len(columns)),
        "extra_continuous_covs": _joint_field("extra_continuous_covs", continuous, len(numbers)),
    }


def minified_fields(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """Return the fields that minify_adata of scvi-tools adds (model/base/_base_model.py)."""
    k, prefix = spec.model.n_latent, LATENT_PREFIX[spec.model.model_name]
    return {
        **{
            f"latent_{q}": _field(
                {"attr_name": "obsm", "attr_key": f"{prefix}_latent_{q}"},
                {"column_names": np.arange(k)},
                **{f"n_latent_{q}": k},
            )
            for q in ("qzm", "qzv")
        },
        "observed_lib_size": _field({"attr_name": "obs", "attr_key": "observed_lib_size"}, {}),
        "minify_type": _field({"attr_name": "uns", "attr_key": MINIFY_TYPE}, {}),
    }


def _field(place: dict[str, Any], state: dict[str, Any], **stats: int) -> dict[str, Any]:
    return {"data_registry": place, "state_registry": state, "summary_stats": stats}


def _joint_field(name: str, state: dict[str, Any], n: int) -> dict[str, Any]:
    place = {"attr_name": "obsm", "attr_key": f"_scvi_{name}"}
    return _field(place if n else {}, state if n else {}, **{f"n_{name}": n})


def _write_covariate(name: str, covariate: Covariate | None, obs: pd.DataFrame | None) -> dict[str, Any]:
    column = f"_scvi_{name}"
    mapping = np.zeros(1, dtype=np.int64) if covariate is None else _typed(obs, covariate, covariate.categories)
    state = {"categorical_mapping": mapping, "original_key": covariate.key if covariate else column}
    return _field({"attr_name": "obs", "attr_key": column}, state, **{f"n_{name}": len(mapping)})


def _typed(obs: pd.DataFrame | None, column: Covariate, names: Sequence[str]) -> NDArray[Any]:
    """Return categories in the type of the obs column, because scvi-tools compares them with its values.

    A category without a value of that type, such as ``"Unknown"`` next to numeric labels, stays text.
    """
    dtype = column.dtype if column.dtype != "str" else _type_in(obs, column.key)
    try:
        return typed_categories(names, dtype)
    except ValueError:
        typed = np.empty(len(names), dtype=object)
        for at, name in enumerate(names):
            with suppress(ValueError):
                typed[at] = typed_categories([name], dtype)[0]
            if typed[at] is None:
                typed[at] = name
        return typed


def _type_in(obs: pd.DataFrame | None, key: str) -> str:
    """Return the type of the values of an obs column, for models that record only the names of categories."""
    if obs is None or key not in obs:
        return "str"
    stored: Any = obs[key]
    kind = getattr(stored.dtype, "categories", stored).dtype.kind
    return {"b": "bool", "i": "int64", "u": "int64", "f": "float64"}.get(kind, "str")


def _check_offered(spec: ModelSpec) -> None:
    """Raise for models that scvi-tools cannot build or load."""
    if spec.model.dispersion == "gene-label" and (spec.model.model_name == "SCANVI" or spec.unlabeled_category):
        raise ValueError(
            "dispersion='gene-label' with an unlabeled category: scvi-tools 1.4.2 cannot load such a model"
        )
    if spec.model.model_name == "SCANVI" and spec.label is None:
        raise ValueError("SCANVI without labels: scvi-tools 1.4.2 needs their obs column")
