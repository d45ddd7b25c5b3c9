"""Options and registry of scvi-tools mean the same here, in every layout they had, and go back as they came."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.network.model_spec import Covariate, ModelSpec
from dist_scvi.scvi_tools.registry import spec_of_attributes
from dist_scvi.scvi_tools.registry_writer import attributes_of

GENES = ("g0", "g1", "ß2")
BATCH = Covariate(key="donor", categories=("d2", "d10", "d1"))
LABEL = Covariate(key="type", categories=("T", "B"))
COVARIATES = (Covariate(key="site", categories=("y", "x")), Covariate(key="lane", categories=("1", "0")))


def spec(config: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    known = {
        "batch": BATCH,
        "label": LABEL,
        "layer": "counts",
        "categorical_covariates": (),
        "continuous_covariates": (),
    }
    return ModelSpec(model=ModelConfig(**config or {}), seed=0, var_names=GENES, **known | changes)


def read(attributes: dict[str, Any], n_labels: int = 2, **weights: torch.Tensor) -> ModelSpec:
    return spec_of_attributes(attributes, GENES, {"y_prior": torch.ones(1, n_labels), **weights})


def with_options(options: dict[str, Any], name: str = "SCVI") -> ModelSpec:
    attributes = attributes_of(spec({"model_name": name}))
    attributes["init_params_"] = {"kwargs": {"model_kwargs": options}, "non_kwargs": {}}
    return read(attributes)


ALL = [
    spec(),
    spec(batch=None, label=None, layer=None),
    spec(
        {"gene_likelihood": "nb", "n_hidden": 7, "n_latent": 3, "n_layers": 2, "dropout_rate": 0.0},
        size_factor_key="sf",
    ),
    spec(categorical_covariates=COVARIATES, continuous_covariates=("age", "mito")),
    spec({"batch_representation": "embedding", "embedding_dim": 8, "dispersion": "gene-batch"}),
    spec(
        {
            "use_batch_norm": "decoder",
            "use_layer_norm": "encoder",
            "latent_distribution": "ln",
            "log_variational": False,
        }
    ),
    spec({"encode_covariates": True, "deeply_inject_covariates": False, "use_observed_lib_size": False}),
    spec({"model_name": "LinearSCVI"}),
    spec({"model_name": "LinearSCVI", "bias": True, "use_batch_norm": "encoder", "use_observed_lib_size": True}),
    spec({"model_name": "SCANVI"}, unlabeled_category="Unknown"),
    spec({"model_name": "SCANVI", "linear_classifier": True, "latent_distribution": "ln"}, unlabeled_category="?"),
    spec(
        {
            "model_name": "SCANVI",
            "y_prior": (0.25, 0.75),
            "classifier_parameters": {"n_layers": 3, "dropout_rate": 0.5},
        },
        unlabeled_category="Unknown",
    ),
]


@pytest.mark.parametrize("expected", ALL)
def test_a_model_goes_to_scvi_tools_and_comes_back_as_it_was(expected: ModelSpec) -> None:
    found = read(attributes_of(expected))
    assert found.lineage == {"scvi_tools": "1.4.2"}
    assert found.model_copy(update={"lineage": {}}) == expected


def test_categories_keep_the_order_of_the_file_and_the_unlabeled_one_is_no_label() -> None:
    attributes = attributes_of(spec({"model_name": "SCANVI"}, unlabeled_category="Unknown"))
    state = attributes["registry_"]["field_registries"]["labels"]["state_registry"]
    assert state["categorical_mapping"].tolist() == ["T", "B", "Unknown"]
    state["categorical_mapping"] = ["Z", "Unknown", "A", "M"]
    found = read(attributes, n_labels=3)
    assert found.label == Covariate(key="type", categories=("Z", "M", "A"))  # scvi-tools swaps it with the last
    assert found.unlabeled_category == "Unknown"
    assert found.batch == BATCH


def test_an_unlabeled_category_that_was_learned_stays_a_label() -> None:
    attributes = attributes_of(spec({"model_name": "SCANVI"}, unlabeled_category="Unknown"))
    found = read(attributes, n_labels=3)
    assert found.label == Covariate(key="type", categories=("T", "B", "Unknown"))
    assert found.unlabeled_category is None
    again = attributes_of(found)["registry_"]["field_registries"]["labels"]["state_registry"]
    assert again["categorical_mapping"].tolist() == ["T", "B", "Unknown", "_Unknown"]
    assert again["unlabeled_category"] == "_Unknown"


def test_what_a_file_does_not_name_has_the_default_of_its_model() -> None:
    assert with_options({}).model == ModelConfig()
    assert with_options({}, "LinearSCVI").model == ModelConfig(model_name="LinearSCVI", use_observed_lib_size=False)
    old = attributes_of(spec())
    del old["init_params_"]["non_kwargs"]["use_observed_lib_size"]
    assert read(old).model.use_observed_lib_size


def test_the_flat_options_of_before_0_15_are_read() -> None:
    attributes = attributes_of(spec())
    flat = {"n_hidden": 64, "n_latent": 10, "use_cuda": True, "model_kwargs": {"encode_covariates": True}}
    attributes["init_params_"] = flat
    assert read(attributes).model == ModelConfig(n_hidden=64, encode_covariates=True)


@pytest.mark.parametrize(
    "options",
    [
        {"var_activation": "torch.nn.functional.softplus"},
        {"extra_encoder_kwargs": {"activation_fn": "x"}},
        {"extra_decoder_kwargs": {"a": 1}},
        {"use_labels_groups": True},
        {"labels_groups": [0, 1]},
        {"batch_embedding_kwargs": {"max_norm": 1.0}},
        {"classifier_parameters": {"activation_fn": "x"}},
        {"an_option_of_tomorrow": 3},
        {"dispersion": "gene-moon"},
        {"n_hidden": 10**9},
    ],
)
def test_options_that_are_not_offered_are_refused_by_name(options: dict[str, Any]) -> None:
    name = next(iter(next((value for value in options.values() if isinstance(value, dict)), options)))
    with pytest.raises(ValueError, match=rf"{name}.*not offered here|not offered here.*{name}"):
        with_options(options, "SCANVI")


def test_the_same_options_at_their_defaults_are_none() -> None:
    idle = {"var_activation": None, "extra_encoder_kwargs": {}, "use_labels_groups": False, "labels_groups": None}
    idle |= {
        "extra_payload_autotune": True,
        "datamodule": "TileDBDataModule",
        "classifier_parameters": {"logits": False},
    }
    assert with_options(idle, "SCANVI").model == ModelConfig(model_name="SCANVI")


def test_another_model_is_refused_with_its_name() -> None:
    attributes = attributes_of(spec())
    attributes["registry_"]["model_name"] = "TOTALVI"
    with pytest.raises(ValueError, match="a model TOTALVI: one of SCVI, SCANVI, LinearSCVI"):
        read(attributes)
    with pytest.raises(ValueError, match="no model of scvi-tools"):
        read({})


@pytest.mark.parametrize(("version", "noted"), [("0.20.3", True), ("1.0.4", True), ("1.1.0", False), ("1.10.0", False)])
def test_a_classifier_that_gave_probabilities_is_noted(version: str, noted: bool) -> None:
    attributes = attributes_of(spec({"model_name": "SCANVI"}, unlabeled_category="Unknown"))
    attributes["registry_"]["scvi_version"] = version
    found = read(attributes)
    assert found.lineage["scvi_tools"] == version
    assert ("classifier" in found.lineage) == noted


def test_the_setup_of_before_0_15_is_read() -> None:
    setup = {
        "scvi_version": "0.9.1",
        "data_registry": {
            "X": {"attr_name": "layers", "attr_key": "counts"},
            "batch_indices": {"attr_name": "obs", "attr_key": "_scvi_batch"},
            "labels": {"attr_name": "obs", "attr_key": "_scvi_labels"},
            "cat_covs": {"attr_name": "obsm", "attr_key": "_scvi_extra_categoricals"},
        },
        "categorical_mappings": {
            "_scvi_batch": {"original_key": "donor", "mapping": ["d2", "d10", "d1"]},
            "_scvi_labels": {"original_key": "type", "mapping": ["T", "B", "Unknown"]},
        },
        "extra_categoricals": {"mappings": {"site": ["y", "x"]}, "keys": ["site"], "n_cats_per_key": [2]},
        "extra_continuous_keys": ["age"],
    }
    attributes = {"scvi_setup_dict_": setup, "unlabeled_category_": "Unknown", "init_params_": {"n_latent": 5}}
    classifier = {"classifier.classifier.1.weight": torch.ones(2, 3)}
    expected = spec(
        {"model_name": "SCANVI", "n_latent": 5},
        unlabeled_category="Unknown",
        categorical_covariates=COVARIATES[:1],
        continuous_covariates=("age",),
    )
    found = read(attributes, **classifier)
    assert found.lineage["scvi_tools"] == "0.9.1"
    assert found.model_copy(update={"lineage": {}}) == expected
    plain = spec_of_attributes(attributes, GENES, {})
    assert plain.model.model_name == "SCVI"
    assert plain.label == Covariate(key="type", categories=("T", "B", "Unknown"))


def test_registries_of_data_modules_are_read_with_the_codes_they_trained_with() -> None:
    attributes = attributes_of(spec(categorical_covariates=COVARIATES))
    registry = attributes["registry_"]
    registry["setup_method_name"] = "setup_datamodule"
    fields = registry["field_registries"]
    covariates = fields["extra_categorical_covs"]["state_registry"]
    covariates["mapping"] = covariates.pop("mappings")
    found = read(attributes)
    assert found.batch == Covariate(key="donor", categories=("d1", "d10", "d2"))  # of a LabelEncoder, which sorts
    assert found.categorical_covariates == COVARIATES
    fields["batch"]["state_registry"]["categorical_mapping"] = {"d1": 2, "d2": 0, "d10": 1}
    assert read(attributes).batch == BATCH
    fields["batch"]["state_registry"] = {"categorical_mapping": None, "original_key": None}
    assert read(attributes).batch is None
    del covariates["mapping"]["lane"]
    with pytest.raises(ValueError, match="covariates are site, lane; categories are of site only"):
        read(attributes)


def test_ambiguous_categories_are_refused() -> None:
    attributes = attributes_of(spec())
    state = attributes["registry_"]["field_registries"]["batch"]["state_registry"]
    state["categorical_mapping"] = [1, "1"]
    with pytest.raises(ValueError, match="two categories of its obs column 'donor'"):
        read(attributes)
    state |= {"categorical_mapping": [0, 1], "original_key": "_scvi_batch"}
    with pytest.raises(ValueError, match="2 categories of no obs column"):
        read(attributes)


def test_categories_are_written_as_the_values_the_column_holds() -> None:
    obs = pd.DataFrame({"lane": [0, 1], "flag": [True, False], "dose": [0.5, 1.0], "type": pd.Categorical([3, 7])})
    columns = {"lane": ("1", "0"), "flag": ("False", "True"), "dose": ("1.0", "0.5"), "text": ("1", "2")}
    covariates = tuple(Covariate(key=key, categories=names) for key, names in columns.items())
    made = spec(
        {"model_name": "SCANVI"},
        label=Covariate(key="type", categories=("7", "3")),
        unlabeled_category="-1",
        categorical_covariates=covariates,
    )
    attributes = attributes_of(made, obs=obs)
    fields = attributes["registry_"]["field_registries"]
    mappings = {
        key: list(value) for key, value in fields["extra_categorical_covs"]["state_registry"]["mappings"].items()
    }
    assert mappings == {"lane": [1, 0], "flag": [False, True], "dose": [1.0, 0.5], "text": ["1", "2"]}
    assert fields["labels"]["state_registry"]["categorical_mapping"].tolist() == [7, 3, -1]
    assert attributes["unlabeled_category_"] == attributes["registry_"]["setup_args"]["unlabeled_category"] == -1
    assert np.issubdtype(fields["labels"]["state_registry"]["categorical_mapping"].dtype, np.integer)
    found = read(attributes)
    assert (found.label.values().tolist(), found.unlabeled_category) == ([7, 3], "-1")
    assert [covariate.categories for covariate in found.categorical_covariates] == [*columns.values()]
    assert [covariate.dtype for covariate in found.categorical_covariates] == ["int64", "bool", "float64", "str"]
    again = attributes_of(found)["registry_"]["field_registries"]  # the types are known now without the cells
    assert again["labels"]["state_registry"]["categorical_mapping"].tolist() == [7, 3, -1]


def test_an_unlabeled_category_that_is_a_text_stands_beside_labels_that_are_numbers() -> None:
    made = spec(
        {"model_name": "SCANVI"},
        label=Covariate(key="type", categories=("7", "3"), dtype="int64"),
        unlabeled_category="Unknown",
    )
    state = attributes_of(made)["registry_"]["field_registries"]["labels"]["state_registry"]
    assert state["categorical_mapping"].tolist() == [7, 3, "Unknown"]
    assert state["unlabeled_category"] == "Unknown"


@pytest.mark.parametrize(
    "place",
    [
        ("registry_",),
        ("init_params_",),
        ("registry_", "model_name"),
        ("registry_", "scvi_version"),
        ("registry_", "setup_args"),
        ("registry_", "setup_args", "layer"),
        ("registry_", "field_registries"),
        ("registry_", "field_registries", "batch"),
        ("registry_", "field_registries", "batch", "state_registry"),
        ("registry_", "field_registries", "batch", "state_registry", "categorical_mapping"),
        ("registry_", "field_registries", "batch", "state_registry", "original_key"),
        ("registry_", "field_registries", "labels", "state_registry", "unlabeled_category"),
        ("registry_", "field_registries", "extra_categorical_covs", "state_registry", "mappings"),
        ("registry_", "field_registries", "extra_categorical_covs", "state_registry", "field_keys"),
        ("registry_", "field_registries", "extra_continuous_covs", "state_registry", "columns"),
        ("init_params_", "non_kwargs"),
        ("init_params_", "non_kwargs", "n_latent"),
        ("init_params_", "kwargs", "model_kwargs", "classifier_parameters"),
        ("init_params_", "kwargs", "model_kwargs", "y_prior"),
        ("init_params_", "kwargs", "model_kwargs", "an_option_of_tomorrow"),
    ],
    ids=".".join,
)
def test_whatever_lies_at_a_place_is_read_or_refused_in_one_short_line(place: tuple[str, ...]) -> None:
    for value in (["x"] * 10**5, {"a": 1}, 3, "\x1b[31m", b"x" * 10**5, np.ones((2, 2)), object()):
        attributes = attributes_of(spec({"model_name": "SCANVI"}, unlabeled_category="Unknown"))
        tree: Any = attributes
        for key in place[:-1]:
            tree = tree[key]
        tree[place[-1]] = value
        try:
            said = read(attributes).model.model_name
        except ValueError as error:
            said = str(error)
        assert len(said) < 500, said[:500]
        assert said.isprintable()


def test_a_model_that_scvi_tools_cannot_load_is_not_written() -> None:
    with pytest.raises(ValueError, match=r"gene-label.*cannot load"):
        attributes_of(spec({"dispersion": "gene-label"}, unlabeled_category="Unknown"))
    with pytest.raises(ValueError, match="SCANVI without labels"):
        attributes_of(spec({"model_name": "SCANVI"}, label=None))


def test_labels_of_scvi_include_the_unlabeled_category() -> None:
    fields = attributes_of(spec(unlabeled_category="Unknown"))["registry_"]["field_registries"]
    assert fields["labels"]["state_registry"]["categorical_mapping"].tolist() == ["T", "B", "Unknown"]
    assert fields["labels"]["summary_stats"] == {"n_labels": 3}
