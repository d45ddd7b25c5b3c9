"""Conversion of the registry and options that scvi-tools saves with the weights into a `ModelSpec`.

Layouts as in scvi-tools 0.8 to 1.5: data/_manager.py, data/fields/, data/_compat.py, model/base/_save_load.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from dist_scvi.config.schema import ClassifierConfig, ModelConfig
from dist_scvi.loaders.arrays.obs_columns import type_of_categories
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.network.model_spec import Covariate, ModelSpec
from dist_scvi.scvi_tools.registry_values import scalar_at, scalars_at, shorten, table_at, text_at

NAMED_OPTIONS = (
    *("n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood", "use_observed_lib_size"),
)
"""Options in the signatures of scvi-tools' models."""
OTHER_OPTIONS = (
    *("latent_distribution", "log_variational", "encode_covariates", "deeply_inject_covariates"),
    *("batch_representation", "use_batch_norm", "use_layer_norm", "linear_classifier", "bias"),
)
"""Options that scvi-tools passes to the network as keyword arguments."""
_MODELS = ("SCVI", "SCANVI", "LinearSCVI")
_OF_DATA = {"adata", "registry", "datamodule", "use_cuda", "unlabeled_category", "pretrained_model"}
_NO_EFFECT = {"extra_payload_autotune"}


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
        ``model_state_dict``; determines the number of learned labels, and for files before 0.15 the class of the model.

    Raises
    ------
    ValueError
        If the model is of another class, or has options or data that are not supported here.
    """
    registry = table_at(attributes, "registry_") or _registry_of_setup(attributes)
    name = text_at(registry, "model_name") or _guess_model(weights)
    if name not in _MODELS:
        raise ValueError(f"it holds a model {printable(name, 40)}: one of {', '.join(_MODELS)} is needed")
    if "field_registries" not in registry:
        raise ValueError("its registry is damaged: it has no field_registries")
    fields, setup = table_at(registry, "field_registries"), table_at(registry, "setup_args")
    version, from_datamodule = text_at(registry, "scvi_version"), _is_of_datamodule(registry)
    label, unlabeled = _read_labels(_state(fields, "labels"), name, weights)
    lineage = {"scvi_tools": version}
    if name == "SCANVI" and _before(version, (1, 1)):
        lineage["classifier"] = "gave probabilities, not logits; they are the softmax of the logits it gives here"
    return ModelSpec(
        model=_read_options(name, table_at(attributes, "init_params_")),
        seed=0,
        layer=text_at(setup, "layer"),
        var_names=tuple(var_names),
        batch=_read_batch(_state(fields, "batch"), from_datamodule=from_datamodule),
        label=label,
        unlabeled_category=unlabeled,
        size_factor_key=text_at(setup, "size_factor_key"),
        categorical_covariates=_read_covariates(_state(fields, "extra_categorical_covs")),
        continuous_covariates=tuple(map(str, scalars_at(_state(fields, "extra_continuous_covs"), "columns"))),
        lineage=lineage,
    )


def _read_options(name: str, stored: Mapping[str, Any]) -> ModelConfig:
    """Read ``init_params_``. An option that is not in the file has the behaviour from before the option existed."""
    flat, nested = table_at(stored, "non_kwargs") or stored, table_at(stored, "kwargs") or stored
    options = {key: value for key, value in flat.items() if not isinstance(value, dict)}
    for table in nested.values():
        if isinstance(table, dict):
            options |= table
    options = {key: value for key, value in options.items() if value is not None and key not in _OF_DATA | _NO_EFFECT}
    known = {key: options.pop(key) for key in (*NAMED_OPTIONS, *OTHER_OPTIONS) if key in options}
    if name == "LinearSCVI" and isinstance(known.get("use_batch_norm"), bool):
        known["use_batch_norm"] = "both" if known["use_batch_norm"] else "encoder"
    if "y_prior" in options:
        known["y_prior"] = _numbers(options.pop("y_prior"))
    embedding = dict(table_at(options, "batch_embedding_kwargs"))
    classifier = dict(table_at(options, "classifier_parameters"))
    for key in ("batch_embedding_kwargs", "classifier_parameters"):
        options.pop(key, None)
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
        named = ", ".join(f"{printable(key, 40)}={shorten(value)}" for key, value in [*left.items()][:10])
        raise ValueError(f"its options {named} are not offered here")
    try:
        return ModelConfig(model_name=name, **known)
    except ValidationError as error:
        found = (
            f"{'.'.join(map(str, item['loc']))}={shorten(item['input'])}: {item['msg']}" for item in error.errors()[:10]
        )
        raise ValueError(f"its options are not offered here: {'; '.join(found)}") from None


def _numbers(stored: Any) -> tuple[float, ...]:
    """Read a vector of numbers from a tensor, an array, or nested lists with one row."""
    values = stored.tolist() if isinstance(stored, Tensor | np.ndarray) else stored
    while isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return tuple(float(value) for value in scalars_at({"y_prior": values}, "y_prior"))


def _state(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return table_at(table_at(fields, name), "state_registry")


def _is_of_datamodule(registry: Mapping[str, Any]) -> bool:
    return registry.get("setup_method_name") == "setup_datamodule"


def _categories(state: Mapping[str, Any], key: str) -> list[Any]:
    """Read categories in the order of their codes, from a list or from a table of codes by name of a data module."""
    if not isinstance(state.get(key), Mapping):
        return scalars_at(state, key)
    code = {name: scalar_at(state[key], name) for name in state[key]}
    if not all(type(value) is int for value in code.values()):
        raise ValueError(f"its registry is damaged: {key} names codes that are no whole numbers ({shorten(code)})")
    return sorted(code, key=code.__getitem__)  # type: ignore[arg-type]


def _read_batch(state: Mapping[str, Any], *, from_datamodule: bool) -> Covariate | None:
    covariate = _read_covariate(state, "batch")
    if covariate is None or not from_datamodule or isinstance(state["categorical_mapping"], dict):
        return covariate
    # The codes of a data module are those of a LabelEncoder, in sorted order, not in the order of the saved names.
    return covariate.model_copy(update={"categories": tuple(sorted(covariate.categories))})


def _read_covariate(state: Mapping[str, Any], name: str) -> Covariate | None:
    """Read a field of one column; None if scvi-tools created the column because there was no key."""
    key, categories = text_at(state, "original_key"), _categories(state, "categorical_mapping")
    if key is None or key == f"_scvi_{name}":
        if len(categories) > 1:
            raise ValueError(f"its {name} has {len(categories)} categories of no obs column: its registry is damaged")
        return None
    return _covariate(key, categories) if categories else None


def _covariate(key: str, categories: Sequence[Any]) -> Covariate:
    names = tuple(str(category) for category in categories)
    if len(set(names)) != len(names):
        raise ValueError(f"two categories of its obs column '{printable(key)}' have one name: {shorten(names)}")
    return Covariate(key=key, categories=names, dtype=type_of_categories(categories))


def _read_covariates(state: Mapping[str, Any]) -> tuple[Covariate, ...]:
    mappings = table_at(state, "mappings") or table_at(state, "mapping")
    keys = [str(key) for key in scalars_at(state, "field_keys")]
    if {*mappings} != {*keys}:
        raise ValueError(
            f"its categorical covariates are {printable(', '.join(keys))}; categories are of "
            f"{printable(', '.join(map(str, mappings)))} only"
        )
    return tuple(_covariate(key, _categories(mappings, key)) for key in keys)


def _read_labels(
    state: Mapping[str, Any], name: str, weights: Mapping[str, Tensor]
) -> tuple[Covariate | None, str | None]:
    """Read the labels, and for SCANVI the unlabeled category, which scvi-tools puts last."""
    label, unlabeled = _read_covariate(state, "labels"), scalar_at(state, "unlabeled_category")
    if name != "SCANVI" or label is None or unlabeled is None:
        return label, None
    prior = weights.get("y_prior")
    n_learned, categories = prior.shape[-1] if prior is not None and prior.ndim else None, [*label.categories]
    if str(unlabeled) in categories:
        if n_learned == len(categories):  # from a data module without such cells, it was learned as a label
            return label, None
        # The last category takes its code, as in scvi-tools; the codes of the other labels stay.
        categories[categories.index(str(unlabeled))] = categories[-1]
        categories.pop()
    return label.model_copy(update={"categories": tuple(categories)}), str(unlabeled)


def _before(version: Any, than: tuple[int, int]) -> bool:
    found = re.match(r"(\d+)\.(\d+)", str(version))
    return found is not None and (int(found[1]), int(found[2])) < than


def _guess_model(weights: Mapping[str, Tensor]) -> str:
    """Infer the class of the model from its weights: files before 0.15 do not name it."""
    if any(name.startswith("classifier.") for name in weights):
        return "SCANVI"
    return "LinearSCVI" if any(name.startswith("decoder.factor_regressor.") for name in weights) else "SCVI"


def _registry_of_setup(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the setup that scvi-tools saved before 0.15 into a registry, so that only one layout is interpreted."""
    setup = table_at(attributes, "scvi_setup_dict_")
    if not setup:
        raise ValueError("it holds neither registry_ nor scvi_setup_dict_: it is no model of scvi-tools")
    mappings, places = table_at(setup, "categorical_mappings"), table_at(setup, "data_registry")
    fields: dict[str, Any] = {}
    for name, old_name in (("batch", "batch_indices"), ("labels", "labels")):
        stored = table_at(mappings, text_at(table_at(places, old_name), "attr_key") or "")
        state = {"categorical_mapping": stored.get("mapping"), "original_key": stored.get("original_key")}
        fields[name] = {"state_registry": state}
    fields["labels"]["state_registry"]["unlabeled_category"] = attributes.get("unlabeled_category_")
    categorical = table_at(setup, "extra_categoricals")
    state = {"mappings": categorical.get("mappings"), "field_keys": categorical.get("keys")}
    fields["extra_categorical_covs"] = {"state_registry": state}
    fields["extra_continuous_covs"] = {"state_registry": {"columns": setup.get("extra_continuous_keys")}}
    counts = table_at(places, "X")
    return {
        "scvi_version": setup.get("scvi_version"),
        "setup_args": {"layer": counts.get("attr_key") if counts.get("attr_name") == "layers" else None},
        "field_registries": fields,
    }
