"""A file that its reader would refuse is refused here."""

import shutil
from typing import Any

import pytest

from dist_scvi.launch.clusters.schema_check import RAY_CLUSTER, check, check_shell, load_schema


@pytest.mark.parametrize("name", ["slurm", "rayjob", "rayservice", "configmap", "skypilot", RAY_CLUSTER])
def test_every_schema_is_installed_with_the_package_and_is_one(name: str) -> None:
    import jsonschema

    schema = load_schema(name)
    jsonschema.validators.validator_for(schema).check_schema(schema)
    assert schema["title"]


def test_the_reduced_schemas_allow_nothing_that_they_do_not_name() -> None:
    def closed(schema: Any, place: str) -> None:
        if isinstance(schema, dict):
            if schema.get("type") == "object":
                assert schema.get("additionalProperties", True) is not True, place
            for key, part in schema.items():
                closed(part, f"{place}/{key}")

    for name in ("slurm", "rayjob", "rayservice", "configmap", "skypilot"):
        closed(load_schema(name), name)


def test_the_place_and_the_mistake_are_named() -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a b": "text"}}
    with pytest.raises(ValueError, match="configmap: at data: 'a b'"):
        check(config, "configmap")
    with pytest.raises(ValueError, match="at the top: 'data' is a required property"):
        check({key: value for key, value in config.items() if key != "data"}, "configmap")
    check({**config, "data": {"a": "text"}}, "configmap")


def test_a_script_that_bash_cannot_read_is_refused() -> None:
    check_shell("if true; then echo fine; fi\n")
    with pytest.raises(ValueError, match="the script is not valid"):
        check_shell("if true; then echo 'open\n")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_a_script_with_an_error_that_bash_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="SC"):
        check_shell(
            '#!/bin/bash\nif [ "$a" = 1 -a ]; then echo; fi\nfor f in "$(ls)"; do echo "$f"; done\necho $array[1]\n'
        )
