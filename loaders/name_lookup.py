"""Names that a user gives, of genes, columns or categories: lists of them, and the nearest ones that are there."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

_SHOWN = 3
SYMBOL_COLUMNS = (
    *("feature_name", "gene_symbols", "gene_symbol", "gene_names", "gene_name", "symbol", "Symbol"),
    *("feature_id", "gene_ids", "gene_id", "ensembl_id", "ensembl"),
)
"""Columns of var in which scanpy, CELLxGENE and others keep further names of the genes."""


def check_list(argument: str, value: object) -> None:
    """Refuse one text where a list of names is needed: Python would read it letter by letter.

    Raises
    ------
    ValueError
        With the list that was probably meant.
    """
    if isinstance(value, str):
        raise ValueError(f"{argument}={value!r} is one text, a list is needed: {argument}=[{value!r}]")  # noqa: TRY004


def split_names(given: Sequence[str], known: Collection[str]) -> list[str]:
    """Split each text at its commas, unless it is itself one of the `known` names.

    So a name that holds a comma can be given by itself, and the option that takes it can be repeated.
    """
    names = ([text] if text in known else text.split(",") for text in given)
    return [name for part in names for name in part if name]


def nearest_names(
    name: str, present: Sequence[str], other_names: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Find the names in `present` that `name` probably means, at most three, each quoted and, where needed, explained.

    Names that differ only in case or in a version suffix (``ENSG00000102145.13``) come first, then those that one of
    the `other_names` belongs to, then those that are spelled alike.

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


def describe_missing(
    names: Iterable[str], present: Sequence[str], other_names: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Name the first of some names that are not there, each with the nearest that are."""
    lacking = list(names)
    shown = []
    for name in lacking[:_SHOWN]:
        near = nearest_names(name, present, other_names)
        shown.append(f"{name!r} (did you mean {', '.join(near)}?)" if near else repr(name))
    rest = len(lacking) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _plain(name: str) -> str:
    """Strip case and version suffix."""
    return re.sub(r"\.\d+$", "", name).casefold()
