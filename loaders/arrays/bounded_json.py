"""JSON from untrusted files: bytes, depth and number of values are checked before any object is built.

One budget for all JSON, YAML and pickled data, in this package and in those above it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_scvi.loaders.arrays.printable import printable

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""The closing quote is optional: otherwise a string without one is scanned again from each of its escaped quotes."""
_DEPTH_STEP = np.zeros(256, dtype=np.int8)
_DEPTH_STEP[[ord("["), ord("{")]] = 1
_DEPTH_STEP[[ord("]"), ord("}")]] = -1
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper bounds for one document."""

    max_bytes: int = 16 << 20
    """Length of the text. The metadata of 20,000 Zarr arrays are about as long."""
    max_depth: int = 64
    """Nested lists and mappings. Python's own parsers raise a RecursionError at about 1,000."""
    max_leaves: int = 1 << 19
    """Lists, mappings and their entries. Python objects for this number take less than 100 MB."""


DEFAULT = Budget()


def parse_json(content: bytes | bytearray | memoryview | str, where: str, budget: Budget = DEFAULT) -> Any:
    """Parse a JSON document.

    Parameters
    ----------
    where
        Name of the document in messages: a path or a text such as ``MANIFEST.json of /runs/a``.

    Raises
    ------
    ValueError
        If it exceeds `budget` or is not JSON; one line that names `where`.
    """
    raw = content.encode() if isinstance(content, str) else bytes(content)
    check_bytes(len(raw), where, budget)
    # Measured on the text: building the tree first would already take the memory, or exceed the recursion limit.
    structure = _STRING.sub(b"", raw).translate(None, _NOT_STRUCTURE)
    leaves = len(structure) - structure.count(b"]") - structure.count(b"}")
    if leaves > budget.max_leaves or len(structure) > 3 * budget.max_leaves:
        raise _exceeds(where, f"{max(leaves, len(structure) // 3):,} values", f"{budget.max_leaves:,}")
    steps = _DEPTH_STEP[np.frombuffer(structure, dtype=np.uint8)]
    depth = int(np.cumsum(steps, dtype=np.int32).max(initial=0))
    if depth > budget.max_depth:
        raise _exceeds(where, f"{depth:,} levels of lists or mappings", f"{budget.max_depth}")
    try:
        return json.loads(raw.decode())
    except ValueError as error:  # not JSON, not UTF-8, or a number of more digits than Python converts
        raise ValueError(
            f"{where} is not valid JSON ({printable(error)}): restore it from a copy or write it again"
        ) from error


def parse_json_object(
    content: bytes | bytearray | memoryview | str, where: str, budget: Budget = DEFAULT
) -> dict[str, Any]:
    """Parse a JSON document that has to be an object; see `parse_json`.

    Raises
    ------
    ValueError
        Also if it is a list, a string or a number.
    """
    found = parse_json(content, where, budget)
    if not isinstance(found, dict):
        raise ValueError(  # noqa: TRY004
            f"{where} holds a JSON {type(found).__name__} where an object is needed: restore it from a copy or write "
            "it again"
        )
    return found


def check_bytes(n_bytes: int, where: str, budget: Budget = DEFAULT) -> None:
    """Refuse a document of too many bytes; the size of a file is known before it is read.

    Raises
    ------
    ValueError
        If it has more than `budget` allows.
    """
    if n_bytes > budget.max_bytes:
        raise _exceeds(where, f"{n_bytes:,} bytes", f"{budget.max_bytes:,}")


def check_tree(tree: object, where: str, budget: Budget = DEFAULT) -> None:
    """Refuse lists and mappings, already built, that are deeper or wider than `budget` allows.

    A list that is referred to twice, as by a YAML anchor or a pickled memo, counts twice, because later code that
    traverses the tree visits it twice too. The traversal ends when the budget is exceeded, so that 30 shared lists with
    2**30 visits cost no more than others.

    Raises
    ------
    ValueError
        If it exceeds `budget`.
    """
    stack: list[tuple[object, int]] = [(tree, 1)]
    leaves = 0
    while stack:
        node, depth = stack.pop()
        if not isinstance(node, (Mapping, list, tuple, set, frozenset)):
            continue
        leaves += 1 + len(node) * (2 if isinstance(node, Mapping) else 1)
        if leaves > budget.max_leaves:
            raise _exceeds(where, f"more than {budget.max_leaves:,} values", f"{budget.max_leaves:,}")
        if depth > budget.max_depth:
            raise _exceeds(where, f"{depth:,} levels of lists or mappings", f"{budget.max_depth}")
        children = [*node.keys(), *node.values()] if isinstance(node, Mapping) else node
        stack.extend((child, depth + 1) for child in children)


def _exceeds(where: str, found: str, limit: str) -> ValueError:
    return ValueError(f"{where} has {found}, at most {limit} are accepted: it is damaged, or no file of this kind")
