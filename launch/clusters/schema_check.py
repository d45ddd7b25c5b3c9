"""Check launch files against the schema of the program that reads them, before they are written.

``schemas/`` has reduced schemas: only the fields that are written here, as their projects define them. The schema of
Ray is part of Ray.
"""

import json
import shutil
import subprocess
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RAY_CLUSTER = "ray-cluster"


def check(document: object, name: str) -> None:
    """Check plain values against the schema `name`.

    Raises
    ------
    ValueError
        With the place and the error.
    """
    import jsonschema  # type: ignore[import-untyped]

    schema = load_schema(name)
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "the top"
        raise ValueError(f"{name}: at {place}: {error.message} ({schema['title']})")


def load_schema(name: str) -> dict[str, Any]:
    """Read a schema; that of Ray cluster files is read from the installed Ray."""
    if name == RAY_CLUSTER:
        ray = find_spec("ray")
        assert ray is not None
        assert ray.origin is not None
        text = Path(ray.origin).with_name("autoscaler").joinpath("ray-schema.json").read_text()
    else:
        text = files("dist_scvi.launch.clusters").joinpath("schemas", f"{name}.json").read_text()
    schema: dict[str, Any] = json.loads(text)
    return schema


def check_shell(script: str) -> None:
    """Check that bash can parse a script, and that shellcheck, if it is installed, finds no error.

    Raises
    ------
    ValueError
        With their messages.
    """
    for words in (["bash", "-n"], ["shellcheck", "--shell=bash", "--severity=error", "-"]):
        if shutil.which(words[0]):
            told = subprocess.run(words, input=script, capture_output=True, text=True, check=False, timeout=60)
            if told.returncode:
                raise ValueError(f"the script is not valid: {(told.stderr or told.stdout).strip()}")
