"""Describe the keys of a configuration, generated from its schema: a YAML template, a JSON schema, one key."""

import difflib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dist_scvi.config.schema import RunConfig, section_of

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """A key of a configuration."""

    name: str
    """Name including its sections, as in ``train.lr``."""
    type: str
    """Type in words, with its bounds."""
    default: str | None
    """Default as written in YAML; None if a value is required."""
    meaning: str
    is_section: bool
    """Whether it is a section, which contains keys."""

    def __str__(self) -> str:
        head = f"{self.name}: {self.type}; {'required' if self.default is None else f'default {self.default}'}"
        return "\n".join([head, *textwrap.wrap(self.meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")])


def config_keys() -> list[ConfigKey]:
    """Return all keys, in the order of the file."""
    return list(_keys_of(RunConfig, ""))


def explain_key(name: str) -> str:
    """Return type, default and meaning of a key, or of all keys of a section.

    Raises
    ------
    ValueError
        If there is no such key; the nearest ones are named.
    """
    keys = {key.name: key for key in config_keys()}
    if name in keys:
        return "\n".join(str(key) for key in keys.values() if f"{key.name}.".startswith(f"{name}."))
    same_end = [key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]]
    near = same_end or difflib.get_close_matches(name, keys, n=3) or [key for key in keys if "." not in key]
    raise ValueError(f"there is no key {name}: did you mean {', '.join(near)}?")


def config_template() -> str:
    """Return a YAML file with every key as a comment, after its meaning, type and default.

    It is a valid configuration once ``data.uri`` is set; a key is changed by removing its leading ``#``.
    """
    lines = ["# Remove the # before a key to set it. The values are the defaults."]
    for key in config_keys():
        depth = key.name.count(".")
        indent, short = "  " * depth, key.name.rpartition(".")[2]
        lines += [
            "",
            *textwrap.wrap(key.meaning, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "),
        ]
        if key.is_section:
            lines.append(f"{indent}{'#' if depth else ''}{short}:")
        elif key.default is None:
            lines.append(f"{indent}{short}: PATH  # {key.type}; required")
        else:
            lines.append(f"{indent}#{short}: {key.default}  # {key.type}")
    return "\n".join(lines) + "\n"


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()}


def _keys_of(section: type[BaseModel], prefix: str) -> Iterator[ConfigKey]:
    schema = section.model_json_schema()
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        type_text = "section" if inner else _type_text(schema["properties"][name])
        yield ConfigKey(f"{prefix}{name}", type_text, _default_text(field, inner), _one_line(field), inner is not None)
        if inner is not None:
            yield from _keys_of(inner, f"{prefix}{name}.")


def _one_line(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _default_text(field: FieldInfo, inner: type[BaseModel] | None) -> str | None:
    if inner is not None:
        return "null" if field.default is None else "{}"
    if field.is_required():
        return None
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return yaml.safe_dump(value, default_flow_style=True, width=1 << 20).removesuffix("...\n").strip()


def _type_text(node: dict[str, Any]) -> str:
    """Describe the type of a value by its JSON schema."""
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_type_text(part) for part in node["anyOf"]))
    if "enum" in node or "const" in node:
        return " | ".join(map(str, node.get("enum", [node.get("const")])))
    kind = str(node["type"])
    if kind == "array":
        return f"list of {_type_text(node['items'])}s"
    if kind == "object":
        return "mapping of strings"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {node[name]}" for name, sign in signs.items() if name in node]
    return " ".join([kind, *([" and ".join(bounds)] if bounds else [])])
