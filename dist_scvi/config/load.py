"""Read a configuration: one YAML file, overridden by ``key=value``, stored resolved alongside every result."""

import difflib
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dist_scvi.config.schema import SECTIONS, RunConfig, section_of
from dist_scvi.loaders.arrays.bounded_json import Budget, check_bytes, check_tree

T = TypeVar("T", bound=BaseModel)

_BUDGET = Budget(max_bytes=1 << 19, max_depth=16, max_leaves=30_000)
"""Bound of a file: the longest sensible configuration lists twenty thousand genes."""
_ERRORS_NAMED = 8
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser of libyaml is sixteen times as fast, and is part of most installations."""
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 120
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 6
_REPR.maxlevel = 3


class _Loader(_SAFE):  # type: ignore[misc]
    """Builds the tree, with a bound for mappings that are merged into others by ``<<``."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        # Each merge copies the pairs of the merged mappings. A few lines that merge ten times what ten others merged
        # would build 10^10 pairs before anything else could count them.
        if len(node.value) > _BUDGET.max_leaves:
            raise yaml.constructor.ConstructorError(None, None, "merged mappings are too large", node.start_mark)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the YAML file `path` and apply each ``key=value`` of `overrides`.

    Relative paths in the file and in overrides are taken from the working directory and made absolute, because workers
    start elsewhere.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist.
    ValueError
        If a key is not known (the nearest known ones are named), a value does not fit, or the file is not a text file
        of at most 512 KiB.
    """
    return read_config("" if path is None else read_text(path), str(path), overrides)


def read_config(text: str, source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the YAML `text`, which is from `source`; see `load_config`."""
    tree = parse_yaml(text, source)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ValueError(f"{source} holds a {type(tree).__name__}: keys such as 'data' and 'train' are needed")  # noqa: TRY004
    for section in SECTIONS:  # a section whose keys are all commented out is null in YAML
        if tree.get(section, {}) is None:
            del tree[section]
    for override in overrides:
        key, found, value = override.partition("=")
        if not found or not override.isprintable():
            raise ValueError(f"{shorten(override)} is no override: write key=value, for example train.max_epochs=10")
        _set(tree, key.split("."), parse_yaml(value, f"the value of {shorten(key)}"))
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
        raise ValueError(_explain_all(error.errors())) from None


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
        raise ValueError(_explain_all([{**item, "loc": (name, *item["loc"])} for item in error.errors()])) from None


def absolute(path: str) -> str:
    """Return the absolute path of a file or folder, independent of the working directory; a URL is unchanged."""
    if "://" in path:
        return path
    try:
        return str(Path(path).expanduser().resolve())
    except RuntimeError as error:  # `~` without a home directory
        raise ValueError(f"{path}: {error} (set HOME, or give the path in full)") from error


def shorten(value: Any) -> str:
    """Return the repr of a value, truncated if it is long, so that an error message stays one line."""
    return _REPR.repr(value)


def read_text(path: Path) -> str:
    """Read a text file that a user names; it must be a regular file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no configuration file {path}") from None
    if not stat.S_ISREG(found.st_mode):  # reading a named pipe would wait for its writer, a device may have no end
        raise ValueError(f"{path} is not a regular file: a YAML file is needed")
    check_bytes(found.st_size, str(path), _BUDGET)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start})") from None


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML, within the bounds of a configuration.

    Raises
    ------
    ValueError
        If it is not valid, nested too deeply, or too large, its aliases resolved.
    """
    try:
        depth = 0
        # The parser of events is not recursive. The composer recurses in C and ends the process at 100,000
        # brackets, and the one in Python takes seconds to fail.
        for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _BUDGET.max_depth or count > 3 * _BUDGET.max_leaves:
                raise ValueError(
                    f"{source} holds more than {_BUDGET.max_leaves} values or is nested more than {_BUDGET.max_depth} "
                    "deep: name a file in data.genes if it lists genes"
                )
        tree = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    check_tree(tree, source, _BUDGET)
    return tree


def _explain_all(items: Sequence[Any]) -> str:
    more = f"; and {len(items) - _ERRORS_NAMED} more" if len(items) > _ERRORS_NAMED else ""
    return "; ".join(map(_explain, items[:_ERRORS_NAMED])) + more


def _explain(item: Any) -> str:
    key = ".".join(str(part) if len(str(part)) <= 60 else shorten(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        section: Any = RunConfig
        for part in item["loc"][:-1]:
            section = section_of(section.model_fields[part].annotation)
        near = difflib.get_close_matches(str(item["loc"][-1]), section.model_fields, n=3) or list(section.model_fields)
        return f"there is no key {key}: did you mean {', '.join(near)}?"
    if item["type"] == "missing":
        return f"{key} is needed: set it in the file or with {key}=VALUE"
    if item["type"] == "value_error":  # raised above, with its own message
        return f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
    return f"{key}={shorten(item['input'])} does not fit: {item['msg']}"


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
