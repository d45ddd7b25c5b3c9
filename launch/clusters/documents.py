"""Comments and YAML documents with texts of a user, which cannot change their structure."""

from collections.abc import Iterable

import yaml


def comment(lines: Iterable[str]) -> str:
    """Return lines of comment. Unprintable characters are escaped, so that a line break cannot end the comment."""
    return "".join(f"# {''.join(map(_printable, line))}\n" for line in lines)


def dump(*documents: object) -> str:
    """Return YAML documents, with texts of several lines as readable blocks."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
