"""The keys of a configuration describe themselves: what is printed is what the schema accepts."""

import json
import re

import jsonschema
import pytest
import yaml

from dist_scvi.config.explain import config_keys, config_schema, config_template, explain_key
from dist_scvi.config.load import load_config, read_config
from dist_scvi.config.schema import RunConfig


def test_every_key_has_a_meaning_that_is_a_sentence() -> None:
    keys = config_keys()
    assert len(keys) > 90
    assert [key.name for key in keys if not re.match(r"[A-Za-z].{8,}[.]$", key.meaning)] == []


def test_the_template_is_a_configuration_of_nothing_but_defaults() -> None:
    template = config_template()
    assert read_config(template, "template", ["data.uri=x.zarr"]) == load_config(None, ["data.uri=x.zarr"])
    tree = yaml.safe_load(re.sub(r"(?m)^( *)#(?=\w)", r"\1", template))
    soma = tree["data"].pop("soma")
    tree["data"]["soma"] = {key: value for key, value in soma.items() if value is not None}
    uncommented = read_config(yaml.safe_dump(tree), "template", ["data.uri=x.zarr"])
    assert uncommented.train == RunConfig.model_validate({"data": {"uri": "x"}}).train
    assert uncommented.model == RunConfig.model_validate({"data": {"uri": "x"}}).model
    named = set(re.findall(r"(?m)^ *#?(\w+):", template))
    assert named == {key.name.rpartition(".")[2] for key in config_keys()}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("train.lr", r"^train\.lr: number > 0; default 0\.001\n    Learning rate\.$"),
        ("model.n_latent", r"^model\.n_latent: integer >= 1 and <= 4096; default 10\n    Dim"),
        ("data.uri", r"^data\.uri: string or list of strings; required\n    AnnData in Zarr"),
        ("logger", r"^logger: tensorboard \| mlflow \| wandb or null; default null\n    Service"),
        ("data.soma", r"(?s)^data\.soma: section; default null\n .*\ndata\.soma\.measurement: string; default RNA\n"),
    ],
)
def test_a_key_is_explained_by_type_default_and_meaning(key: str, text: str) -> None:
    assert re.search(text, explain_key(key))


@pytest.mark.parametrize(
    ("key", "near"),
    [("lr", "train.lr"), ("train.batchsize", "train.batch_size"), ("model.batch_key", "data.batch_key")],
)
def test_an_unknown_key_is_refused_with_the_near_ones(key: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"^there is no key {key}: did you mean .*{re.escape(near)}"):
        explain_key(key)


def test_the_schema_accepts_what_is_recorded_and_refuses_an_unknown_key() -> None:
    validator = jsonschema.Draft202012Validator(config_schema())
    recorded = json.loads(load_config(None, ["data.uri=x.zarr"]).model_dump_json())
    assert list(validator.iter_errors(recorded)) == []
    assert list(validator.iter_errors({**recorded, "train": {"batch_sise": 3}}))
    assert list(validator.iter_errors({**recorded, "train": {"lr": "fast"}}))
