"""Values of a registry from an untrusted file: each is checked when it is read, and shortened in messages.

A value of a wrong type raises a ValueError here. The code that interprets a registry thus needs no
``except TypeError``, which would report errors of that code as a damaged file.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dist_scvi.config.load import shorten as shorten_repr
from dist_scvi.loaders.arrays.printable import printable

Scalar = str | int | float | bool


def shorten(value: object) -> str:
    """Return a value of a file as one line of bounded length."""
    return printable(" ".join(shorten_repr(value).split()))


def table_at(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the table `key` of `tree`, an empty one if it is absent.

    Raises
    ------
    ValueError
        If it is something else.
    """
    found = tree.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise _damaged(key, found, "a table")
    return found


def text_at(tree: Mapping[str, Any], key: str) -> str | None:
    """Return the text `key` of `tree`, None if it is absent.

    Raises
    ------
    ValueError
        If it is something else.
    """
    found = tree.get(key)
    if found is None or isinstance(found, str):
        return found
    raise _damaged(key, found, "a text")


def scalar_at(tree: Mapping[str, Any], key: str) -> Scalar | None:
    """Return the text, number or boolean `key` of `tree`, None if it is absent.

    Raises
    ------
    ValueError
        If it is something else.
    """
    found = tree.get(key)
    if found is None or isinstance(found, str | int | float):
        return found
    raise _damaged(key, found, "a text or number")


def scalars_at(tree: Mapping[str, Any], key: str) -> list[Scalar]:
    """Return the list or array `key` of `tree`, whose items are texts, numbers or booleans; empty if it is absent.

    Raises
    ------
    ValueError
        If it is something else.
    """
    found = tree.get(key)
    listed = found.tolist() if isinstance(found, np.ndarray) and found.ndim == 1 else found
    if listed is None:
        return []
    if not isinstance(listed, list | tuple):
        raise _damaged(key, found, "a list")
    for value in listed:
        if not isinstance(value, str | int | float):
            raise _damaged(f"an item of {key}", value, "a text or number")
    return list(listed)


def _damaged(key: str, found: object, needed: str) -> ValueError:
    return ValueError(f"its registry is damaged: {key} is {shorten(found)}, {needed} is needed")
