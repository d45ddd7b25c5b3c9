"""Names of genes, columns or categories given by a user: checks of lists, and the most similar existing names."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 3
SYMBOL_COLUMNS = (
    *("feature_name", "gene_symbols", "gene_symbol", "gene_names", "gene_name", "symbol", "Symbol"),
    *("feature_id", "gene_ids", "gene_id", "ensembl_id", "ensembl"),
)
"""Columns of var in which scanpy, CELLxGENE and others store further names of the genes."""


def check_list(argument: str, value: object) -> None:
    """Refuse a string where a list of names is needed: Python would iterate over its characters.

    Raises
    ------
    ValueError
        With the list that was probably meant.
    """
    if isinstance(value, str):
        raise ValueError(f"{argument}={value!r} is one text, a list is needed: {argument}=[{value!r}]")  # noqa: TRY004


def split_names(given: Sequence[str], known: Collection[str]) -> list[str]:
    """Split each text at its commas, unless it is itself one of the `known` names.

    So a name that contains a comma can be given on its own, by repeating the option.
    """
    names = ([text] if text in known else text.split(",") for text in given)
    return [name for part in names for name in part if name]


def nearest_names(
    name: str, present: Sequence[str], other_names: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Return the names in `present` that `name` probably means, at most three, quoted and if necessary explained.

    Names that differ only in case or in a version suffix (``ENSG00000102145.13``) come first, then those with such a
    match among the `other_names`. If there are none, names with similar spelling are returned.

    Parameters
    ----------
    other_names
        Further names of the same things in the same order, by the column that holds them; see `SYMBOL_COLUMNS`.
    """
    plain = _plain(name)
    same = [repr(other) for other in present if _plain(other) == plain]
    for column, others in (other_names or {}).items():
        pairs = zip(present, others, strict=True)
        same += [f"{there!r} (its {column} is {other!r})" for there, other in pairs if _plain(str(other)) == plain]
    return same[:_SHOWN] or [repr(near) for near in difflib.get_close_matches(name, present, n=_SHOWN, cutoff=0.5)]


def symbols_in(var: "pd.DataFrame") -> dict[str, list[str]]:
    """Return further names of genes: those of the `SYMBOL_COLUMNS` that `var` has, by column."""
    return {str(key): [str(name) for name in var[key]] for key in var.columns if key in SYMBOL_COLUMNS}


def describe_missing(
    names: Iterable[str], present: Sequence[str], other_names: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return a text with the first of the missing names, each with the most similar existing ones."""
    lacking = list(names)
    shown = []
    for name in lacking[:_SHOWN]:
        near = nearest_names(name, present, other_names)
        shown.append(f"{name!r} (did you mean {', '.join(near)}?)" if near else repr(name))
    rest = len(lacking) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _plain(name: str) -> str:
    """Return a name without case and version suffix."""
    return re.sub(r"\.\d+$", "", name).casefold()
