"""Command-line arguments from the fields of a dataclass, and the dataclass from parsed arguments."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

T = TypeVar("T")


def argument(
    flag: str,
    help: str = "",  # the name in argparse
    *,
    default: object = MISSING,
    read: Callable[[str], object] | None = None,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    off: tuple[str, str] | None = None,
) -> Any:
    """Declare a field of a dataclass as the argument `flag`.

    Parameters
    ----------
    flag
        As ``--name``, or a name without dashes for a positional argument.
    default
        Without a default the argument is required; with ``()`` it may be repeated.
    read
        Function that converts the text to a value.
    off
        Flag and help of the argument that sets a boolean field to False.
    """
    settings: dict[str, Any] = {"help": help, "type": read, "metavar": metavar, "choices": choices}
    metadata = {"flag": flag, "off": off, "settings": {key: value for key, value in settings.items() if value}}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def add_arguments(parser: argparse.ArgumentParser, record: type) -> None:
    """Add one argument for each field of the dataclass `record`."""
    for each in fields(record):
        flag, settings = each.metadata["flag"], dict(each.metadata["settings"])
        if not flag.startswith("-"):
            if each.default == ():
                settings["nargs"] = "*"
            parser.add_argument(flag, **settings)
            continue
        settings["dest"] = each.name
        if each.default is MISSING:
            settings["required"] = True
        elif isinstance(each.default, bool):
            settings |= {"action": "store_true", "default": each.default}
        elif each.default == ():
            settings |= {"action": "append", "default": []}
        else:
            settings["default"] = each.default
        parser.add_argument(flag, **settings)
        if each.metadata["off"]:
            off, text = each.metadata["off"]
            parser.add_argument(off, action="store_false", dest=each.name, help=text)


def record_of(options: argparse.Namespace, record: type[T]) -> T:
    """Return the dataclass `record` from parsed arguments; repeatable ones become tuples."""
    values = {each.name: getattr(options, each.name) for each in fields(record)}  # type: ignore[arg-type]
    return record(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
