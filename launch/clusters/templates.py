"""Scripts for other machines: assignments of variables, followed by the templates in ``templates/`` that use them.

A template is plain bash, which shellcheck can check. Texts of a user are only in the assignments, each word quoted, so
that no text of a configuration is executed by the shell.
"""

import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

from dist_scvi.launch.exit_codes import AGAIN, MISTAKE

Value: TypeAlias = str | int | Sequence[str]
_PACKAGE = files("dist_scvi.launch.clusters")
_PINS = "constraints.txt"


def render_script(values: Mapping[str, Value], *names: str) -> str:
    """Return assignments of `values`, sequences as arrays, followed by the templates `names`."""
    values = {"again": AGAIN, "mistake": MISTAKE, **values} if "run_state" in names else values
    return "\n".join([*(_assign(name, value) for name, value in values.items()), *map(_read, names)])


def constraints() -> str:
    """Return the tested versions, as pip and uv read them."""
    here = Path(__file__).resolve()
    # A wheel holds the file beside this one, a checkout at its root, and an sdist at its root, one folder further up.
    found = next(folder for folder in (here.parents[0], here.parents[2], here.parents[3]) if (folder / _PINS).is_file())
    return (found / _PINS).read_text()


def pinned_version(package: str) -> str:
    """Return the version of `package` in `constraints`."""
    found = dict(line.split("==") for line in constraints().splitlines())
    return found[package]


def _assign(name: str, value: Value) -> str:
    if isinstance(value, str | int):
        return f"{name}={shlex.quote(str(value))}"
    return f"{name}=({shlex.join(value)})"


def _read(name: str) -> str:
    """Read a template without its first line, which is for shellcheck."""
    first, _, text = _PACKAGE.joinpath("templates", f"{name}.sh").read_text().partition("\n")
    assert first.startswith("# shellcheck shell=bash"), name
    return text
