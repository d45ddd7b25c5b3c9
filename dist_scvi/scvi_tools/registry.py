"""What scvi-tools keeps beside the weights - registry and options - turned into a `ModelSpec`, and back.

Layouts as in scvi-tools 0.8 to 1.5: data/_manager.py, data/fields/, data/_compat.py, model/base/_save_load.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from torch import Tensor

from dist_scvi.config.schema import ClassifierConfig, ModelConfig
from dist_scvi.network.model_spec import Covariate, ModelSpec

VERSION = "1.4.2"
"""The scvi-tools whose layout is written."""

_MODELS = ("SCVI", "SCANVI", "LinearSCVI")
_OF_DATA = {"adata", "registry", "datamodule", "use_cuda", "unlabeled_category", "pretrained_model"}
_NO_EFFECT = {"extra_payload_autotune"}
_NAMED = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood", "use_observed_lib_size")
_OTHERS = (
    *("latent_distribution", "log_variational", "encode_covariates", "deeply_inject_covariates"),
    *("batch_representation", "use_batch_norm", "use_layer_norm", "linear_classifier", "bias"),
)


def spec_of_attributes(
    attributes: Mapping[str, Any], var_names: Sequence[str], weights: Mapping[str, Tensor]
) -> ModelSpec:
    """Read the specification of a model from the attributes that scvi-tools saved with it.

    Parameters
    ----------
    attributes
        ``attr_dict`` of a model file, as plain values.
    var_names
        Genes in the order of the model.
    weights
        ``model_state_dict``; says how many labels are learned, and of a file before 0.15 which model it is.

    Raises
    ------
    ValueError
        If the model is another one, or has options or data that are not offered here.
    """
    registry = attributes.get("registry_") or _registry_of_setup(attributes)
    name = registry.get("model_name") or _guess_model(weights)
    if name not in _MODELS:
        raise ValueError(f"it holds a model {name}: one of {', '.join(_MODELS)} is needed")
    fields, setup = registry["field_registries"], registry.get("setup_args") or {}
    version = registry.get("scvi_version")
    label, unlabeled = _read_labels(fields.get("labels"), name, weights)
    lineage = {"scvi_tools": version}
    if name == "SCANVI" and _before(version, (1, 1)):
        lineage["classifier"] = "gave probabilities, not logits; they are the softmax of the logits it gives here"
    return ModelSpec(
        model=_read_options(name, attributes.get("init_params_") or {}),
        seed=0,
        layer=setup.get("layer"),
        var_names=tuple(var_names),
        batch=_read_batch(fields.get("batch"), from_datamodule=registry.get("setup_method_name") == "setup_datamodule"),
        label=label,
        unlabeled_category=unlabeled,
        size_factor_key=setup.get("size_factor_key"),
        categorical_covariates=_read_covariates(fields.get("extra_categorical_covs")),
        continuous_covariates=tuple(map(str, _listed(_state(fields.get("extra_continuous_covs")).get("columns")))),
        lineage=lineage,
    )


def attributes_of(spec: ModelSpec, *, is_trained: bool = True, obs: pd.DataFrame | None = None) -> dict[str, Any]:
    """Give the attributes that scvi-tools 1.4.2 needs to make the model of `spec`.

    Parameters
    ----------
    obs
        The cells it will be loaded with, whose columns say which categories are numbers; all are texts without it.

    Raises
    ------
    ValueError
        If scvi-tools has no such model.
    """
    _check_offered(spec)
    labels, unlabeled = _written_labels(spec)
    setup: dict[str, Any] = {
        "layer": None if spec.layer == "raw/X" else spec.layer,
        "batch_key": spec.batch.key if spec.batch else None,
        "labels_key": labels.key if labels else None,
    }
    if spec.model.model_name != "LinearSCVI":
        setup |= {
            "size_factor_key": spec.size_factor_key,
            "categorical_covariate_keys": [covariate.key for covariate in spec.categorical_covariates] or None,
            "continuous_covariate_keys": list(spec.continuous_covariates) or None,
        }
    attributes: dict[str, Any] = {"init_params_": _write_options(spec.model), "is_trained_": is_trained}
    if spec.model.model_name == "SCANVI":
        setup["unlabeled_category"] = attributes["unlabeled_category_"] = _typed(obs, labels, unlabeled)
    fields = _write_fields(spec, labels, obs)
    if unlabeled is not None:
        fields["labels"]["state_registry"]["unlabeled_category"] = _typed(obs, labels, unlabeled)
    attributes["registry_"] = {
        "scvi_version": VERSION,
        "model_name": spec.model.model_name,
        "setup_method_name": "setup_anndata",
        "setup_args": setup,
        "field_registries": fields,
    }
    return attributes


def _read_options(name: str, stored: Mapping[str, Any]) -> ModelConfig:
    """Read ``init_params_``; what a file does not name has the default it had before it could be named."""
    options = {key: value for key, value in (stored.get("non_kwargs") or stored).items() if not isinstance(value, dict)}
    for nested in (stored.get("kwargs") or stored).values():
        if isinstance(nested, dict):
            options |= nested
    options = {key: value for key, value in options.items() if value is not None and key not in _OF_DATA | _NO_EFFECT}
    known = {key: options.pop(key) for key in (*_NAMED, *_OTHERS) if key in options}
    if name == "LinearSCVI" and isinstance(known.get("use_batch_norm"), bool):
        known["use_batch_norm"] = "both" if known["use_batch_norm"] else "encoder"
    if "y_prior" in options:
        known["y_prior"] = tuple(torch.as_tensor(options.pop("y_prior")).flatten().tolist())
    embedding, classifier = (dict(options.pop(key, {})) for key in ("batch_embedding_kwargs", "classifier_parameters"))
    if "embedding_dim" in embedding:
        known["embedding_dim"] = embedding.pop("embedding_dim")
    classifier.pop("logits", None)
    known |= {
        "classifier_parameters": {
            key: classifier.pop(key) for key in ClassifierConfig.model_fields if key in classifier
        }
    }
    left = {key: value for key, value in {**options, **embedding, **classifier}.items() if value}
    if left:
        raise ValueError(
            f"its options {', '.join(f'{k}={str(v)[:40]!r}' for k, v in left.items())} are not offered here"
        )
    try:
        return ModelConfig(model_name=name, **known)
    except ValidationError as error:
        found = (
            f"{'.'.join(map(str, item['loc']))}={str(item['input'])[:40]!r}: {item['msg']}" for item in error.errors()
        )
        raise ValueError(f"its options are not offered here: {'; '.join(found)}") from None


def _write_options(model: ModelConfig) -> dict[str, Any]:
    default = ModelConfig(model_name=model.model_name)
    named = {key: getattr(model, key) for key in _NAMED}
    others = {key: getattr(model, key) for key in _OTHERS if getattr(model, key) != getattr(default, key)}
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


def _state(field: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (field or {}).get("state_registry") or {}


def _listed(values: Any) -> Any:
    return () if values is None else values


def _read_batch(field: Mapping[str, Any] | None, *, from_datamodule: bool) -> Covariate | None:
    covariate = _read_covariate(field, "batch")
    if covariate is None or not from_datamodule or isinstance(_state(field)["categorical_mapping"], dict):
        return covariate
    # Its codes are those of a LabelEncoder, in sorted order, whatever order the names were saved in.
    return Covariate(key=covariate.key, categories=tuple(sorted(covariate.categories)))


def _read_covariate(field: Mapping[str, Any] | None, name: str) -> Covariate | None:
    """Read a field of one column; none if scvi-tools made that column up for want of one."""
    state = _state(field)
    key, mapping = state.get("original_key"), _listed(state.get("categorical_mapping"))
    if key is None or key == f"_scvi_{name}":
        if len(mapping) > 1:
            raise ValueError(f"its {name} has {len(mapping)} categories of no obs column: its registry is damaged")
        return None
    return _covariate(key, mapping) if len(mapping) else None


def _covariate(key: str, mapping: Any) -> Covariate:
    if isinstance(mapping, dict):  # of name to code, as a data module saves it
        mapping = sorted(mapping, key=mapping.__getitem__)
    categories = tuple(str(category) for category in mapping)
    if len(set(categories)) != len(categories):
        raise ValueError(f"two categories of its obs column '{key}' have one name: {', '.join(categories[:5])}")
    return Covariate(key=str(key), categories=categories)


def _read_covariates(field: Mapping[str, Any] | None) -> tuple[Covariate, ...]:
    state = _state(field)
    mappings, keys = state.get("mappings") or state.get("mapping") or {}, _listed(state.get("field_keys"))
    if {*mappings} != {*keys}:
        raise ValueError(
            f"its categorical covariates are {', '.join(keys)}; categories are of {', '.join(mappings)} only"
        )
    return tuple(_covariate(key, mappings[key]) for key in keys)


def _read_labels(
    field: Mapping[str, Any] | None, name: str, weights: Mapping[str, Tensor]
) -> tuple[Covariate | None, str | None]:
    """Read the labels, and of SCANVI the category of cells without one, which lies last among them."""
    label, unlabeled = _read_covariate(field, "labels"), _state(field).get("unlabeled_category")
    if name != "SCANVI" or label is None or unlabeled is None:
        return label, None
    n_learned, categories = weights["y_prior"].shape[-1] if "y_prior" in weights else None, [*label.categories]
    if str(unlabeled) in categories:
        if n_learned == len(categories):  # a data module without such cells has it learned as a label
            return label, None
        categories[categories.index(str(unlabeled))] = categories[-1]
        categories.pop()
    return Covariate(key=label.key, categories=tuple(categories)), str(unlabeled)


def _written_labels(spec: ModelSpec) -> tuple[Covariate | None, str | None]:
    """Give the labels with the unlabeled category last, and that category if it is SCANVI, which must have one."""
    if spec.label is None:
        return None, None
    unlabeled, categories = spec.unlabeled_category, spec.label.categories
    if spec.model.model_name == "SCANVI":
        unlabeled = unlabeled or "Unknown"
        while unlabeled in categories and spec.unlabeled_category is None:
            unlabeled = f"_{unlabeled}"
    whole = categories if unlabeled is None else (*categories, unlabeled)
    return Covariate(key=spec.label.key, categories=whole), unlabeled if spec.model.model_name == "SCANVI" else None


def _write_fields(spec: ModelSpec, labels: Covariate | None, obs: pd.DataFrame | None) -> dict[str, dict[str, Any]]:
    """Give ``field_registries``."""
    g, n_cells = len(spec.var_names), 0 if obs is None else len(obs)
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


def _typed(obs: pd.DataFrame | None, column: Covariate | None, names: Any) -> Any:
    """Give categories, or one of them, as the values that the column in `obs` holds, which scvi-tools compares."""
    if isinstance(names, str):
        return _typed(obs, column, (names,))[0]
    values = np.array(names, dtype=object)
    if obs is None or column is None or column.key not in obs:
        return values
    stored: Any = obs[column.key]
    kind = getattr(stored.dtype, "categories", stored).dtype.kind
    if kind == "b":
        return values == "True"
    return values.astype({"i": np.int64, "u": np.int64, "f": np.float64}.get(kind, object))


def _check_offered(spec: ModelSpec) -> None:
    """Refuse what scvi-tools could not make or load."""
    if spec.model.dispersion == "gene-label" and (spec.model.model_name == "SCANVI" or spec.unlabeled_category):
        raise ValueError(
            "dispersion='gene-label' with an unlabeled category: scvi-tools 1.4.2 cannot load such a model"
        )
    if spec.model.model_name == "SCANVI" and spec.label is None:
        raise ValueError("SCANVI without labels: scvi-tools 1.4.2 needs their obs column")


def _before(version: Any, than: tuple[int, int]) -> bool:
    found = re.match(r"(\d+)\.(\d+)", str(version))
    return found is not None and (int(found[1]), int(found[2])) < than


def _guess_model(weights: Mapping[str, Tensor]) -> str:
    """Tell the model of a file before 0.15, which does not name it."""
    if any(name.startswith("classifier.") for name in weights):
        return "SCANVI"
    return "LinearSCVI" if any(name.startswith("decoder.factor_regressor.") for name in weights) else "SCVI"


def _registry_of_setup(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Make a registry of the setup that scvi-tools kept before 0.15."""
    setup = attributes.get("scvi_setup_dict_")
    if not setup:
        raise ValueError("it holds neither registry_ nor scvi_setup_dict_: it is no model of scvi-tools")
    unlabeled = attributes.get("unlabeled_category_")
    mappings, places = setup.get("categorical_mappings", {}), setup.get("data_registry", {})
    fields: dict[str, Any] = {}
    for name, old_name in (("batch", "batch_indices"), ("labels", "labels")):
        stored = mappings.get(places.get(old_name, {}).get("attr_key"), {})
        state = {"categorical_mapping": stored.get("mapping"), "original_key": stored.get("original_key")}
        fields[name] = {"state_registry": state}
    fields["labels"]["state_registry"]["unlabeled_category"] = unlabeled
    categorical = setup.get("extra_categoricals") or {}
    state = {"mappings": categorical.get("mappings", {}), "field_keys": categorical.get("keys", ())}
    fields["extra_categorical_covs"] = {"state_registry": state}
    fields["extra_continuous_covs"] = {"state_registry": {"columns": setup.get("extra_continuous_keys", ())}}
    counts = places.get("X", {})
    return {
        "scvi_version": setup.get("scvi_version"),
        "setup_args": {"layer": counts.get("attr_key") if counts.get("attr_name") == "layers" else None},
        "field_registries": fields,
    }
