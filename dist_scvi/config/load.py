"""A configuration is read: one YAML file, overridden by ``key=value``, stored resolved beside every result."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dist_scvi.config.schema import RunConfig

T = TypeVar("T", bound=BaseModel)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the YAML file `path` and set each ``key=value`` of `overrides` on top.

    Relative paths in the file and in overrides are taken from the working directory and made absolute, because workers
    start elsewhere.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist.
    ValueError
        If a key is not known (the nearest known ones are named) or a value does not fit.
    """
    try:
        text = "" if path is None else path.read_text()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no configuration file {path}") from None
    return read_config(text, str(path), overrides)


def read_config(text: str, source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the YAML `text`, which is from `source`; see `load_config`."""
    try:
        tree = yaml.safe_load(text) or {}
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{source} holds a {type(tree).__name__}: keys such as 'data' and 'train' are needed")  # noqa: TRY004
    for override in overrides:
        key, found, value = override.partition("=")
        if not found or not override.isprintable():
            raise ValueError(f"{override!r} is no override: write key=value, for example train.max_epochs=10")
        try:
            _set(tree, key.split("."), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ValueError(f"'{override}' is no override: {value!r} is not valid YAML ({error})") from error
    tree.setdefault("data", {})
    config = parse_config(tree)
    uri, genes = config.data.uri, config.data.genes
    of_data = {
        "uri": absolute(uri) if isinstance(uri, str) else tuple(map(absolute, uri)),
        "genes": absolute(genes) if isinstance(genes, str) else genes,
    }
    paths = {"run": absolute(config.run), "start_from": config.start_from and absolute(config.start_from)}
    return config.model_copy(update={**paths, "data": config.data.model_copy(update=of_data)})


def parse_config(tree: dict[str, Any]) -> RunConfig:
    """Check a tree of plain values.

    Raises
    ------
    ValueError
        As `load_config`.
    """
    try:
        return RunConfig.model_validate({"data": {}, **tree})
    except ValidationError as error:
        raise ValueError("; ".join(_explain(item) for item in error.errors())) from None


def parse_section(section: type[T], name: str, tree: Mapping[str, Any]) -> T:
    """Check the plain values of one section, such as the arguments of a model.

    Raises
    ------
    ValueError
        As `load_config`.
    """
    try:
        return section.model_validate(dict(tree))
    except ValidationError as error:
        named = [{**item, "loc": (name, *item["loc"])} for item in error.errors()]
        raise ValueError("; ".join(map(_explain, named))) from None


def absolute(path: str) -> str:
    """Give the absolute path of a file or folder, whatever the working directory will be; a URL stays as it is."""
    return path if "://" in path else str(Path(path).expanduser().resolve())


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        section: Any = RunConfig
        for part in item["loc"][:-1]:
            section = section.model_fields[part].annotation
        near = difflib.get_close_matches(str(item["loc"][-1]), section.model_fields, n=3) or list(section.model_fields)
        return f"there is no key {key}: did you mean {', '.join(near)}?"
    if item["type"] == "missing":
        return f"{key} is needed: set it in the file or with {key}=VALUE"
    if item["type"] == "value_error":  # a message of ours, which says all
        return f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
    return f"{key}={item['input']!r} does not fit: {item['msg']}"


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ValueError(f"{'.'.join(keys)} cannot be set: {key} holds a value, not a section")  # noqa: TRY004
    before = tree.get(keys[-1])
    if isinstance(before, dict) and isinstance(value, dict):
        for key, part in value.items():
            _set(before, [str(key)], part)
    else:
        tree[keys[-1]] = value
