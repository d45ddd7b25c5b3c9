"""Comments and YAML documents that hold texts of a user and stay what they are."""

from collections.abc import Iterable

import yaml


def comment(lines: Iterable[str]) -> str:
    """Return lines of comment. What is no printable character is escaped: a line break in a text stays in its line."""
    return "".join(f"# {''.join(map(_printable, line))}\n" for line in lines)


def dump(*documents: object) -> str:
    """Return YAML documents, with texts of several lines readable as they are."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
