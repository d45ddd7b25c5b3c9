"""The cells of a query: a filter over obs, rows, or a mask, evaluated by range.

Shape letters in this file
    n   cells
    l   leaves
    m   rows
"""

import difflib
import logging
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.queries.filter_language import Combined, Comparison, Condition, Not, Value, comparisons, parse
from dist_scvi.atlas.queries.reader import AtlasReader, ObsReader
from dist_scvi.inference.encode_decode import Indices, rows_asked
from dist_scvi.inference.output_identity import digest
from dist_scvi.loaders.arrays.obs_columns import missing_column

log = logging.getLogger(__name__)

_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NEAR_OF = 10_000
"""Largest number of values searched for near matches: a column may have a million."""

Columns = Callable[[str], NDArray[Any]]
"""Codes of a categorical column, or values of a numeric one, for some rows."""
Test = Callable[[Columns], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class CellSet:
    """Some cells of an atlas.

    It needs one bit for each cell of the atlas, or less: a union of leaves is stored as the numbers of the leaves.
    """

    text: str
    """Description of how the cells were chosen."""
    n_cells: int
    leaf_l: NDArray[np.int64] | None
    """The leaves whose union is this set of cells; None if it is not such a union or the atlas has no leaves."""
    clauses: pd.DataFrame
    """For each clause of a filter, the cells that fulfil it, and those that fulfil it and all previous ones."""
    mask: Callable[[slice], NDArray[np.bool_]]
    """Mark the cells among a range of rows."""

    def __repr__(self) -> str:
        return f"{self.n_cells:,} cells: {self.text}\n{self.clauses.to_string(index=False)}"

    def rows(self, atlas: AtlasReader) -> NDArray[np.int64]:
        """Return the rows, ascending."""
        parts = [rows.start + np.flatnonzero(self.mask(rows)) for rows in atlas.chunks()]
        return np.concatenate([np.zeros(0, np.int64), *parts])


Cells = str | CellSet | Indices | Mapping[str, Any] | None
"""Cells as a filter, rows in any order, a mask, values of obs columns as in ``{"cell_type": ["B", "NK"]}``, or all."""


def choose_cells(atlas: AtlasReader, cells: Cells = None, *, within: CellSet | None = None) -> CellSet:
    """Choose cells of an atlas.

    Parameters
    ----------
    cells
        A filter in the language of `parse`, rows, a mask, values of obs columns, or None for all cells.
    within
        Only cells of this set.

    Raises
    ------
    ValueError
        If a column or value does not exist (near matches are named), a row is out of range, or no cell is chosen.
    """
    if isinstance(cells, CellSet):
        chosen = cells
    elif cells is None:
        chosen = every_cell(atlas)
    elif isinstance(cells, str):
        chosen = _filtered(atlas, parse(cells))
    elif isinstance(cells, Mapping):
        chosen = _filtered(atlas, _mapped(cells))
    else:
        chosen = _listed(atlas, cells)
    if within is not None and within.n_cells < atlas.n_cells:
        chosen = _intersection(atlas, chosen, within)
    if not chosen.n_cells:
        counts = "; ".join(f"{clause} keeps {kept:,}" for clause, _, kept in chosen.clauses.itertuples(index=False))
        raise ValueError(f"no cell is left by {chosen.text}{f' ({counts})' if counts else ''}: choose other values")
    return chosen


def where(atlas: AtlasReader, text: str) -> CellSet:
    """Choose cells by a filter and log how many each clause keeps; see `choose_cells`."""
    chosen = choose_cells(atlas, text)
    for clause, n_cells, kept in chosen.clauses.itertuples(index=False):
        log.info("%s: %d cells, %d left", clause, n_cells, kept)
    return chosen


def every_cell(atlas: AtlasReader) -> CellSet:
    """Choose all cells."""
    leaves = atlas.leaves
    return CellSet(
        "all cells",
        atlas.n_cells,
        None if leaves is None else np.arange(leaves.n_leaves),
        _clauses([]),
        lambda rows: np.ones(rows.stop - rows.start, dtype=bool),
    )


def leaf_set(atlas: AtlasReader, leaf_l: NDArray[np.int64], text: str, clauses: pd.DataFrame | None = None) -> CellSet:
    """Choose the cells of some leaves."""
    leaves = atlas.leaves
    assert leaves is not None
    wanted = np.zeros(leaves.n_leaves, dtype=bool)
    wanted[leaf_l] = True

    def mask(rows: slice) -> NDArray[np.bool_]:
        leaf_n = atlas.read_leaf(rows)
        assert leaf_n is not None
        return wanted[leaf_n]

    n_cells = int(leaves.n_cells[leaf_l].sum())
    return CellSet(text, n_cells, np.flatnonzero(wanted), _clauses([]) if clauses is None else clauses, mask)


def complement(atlas: AtlasReader, cells: CellSet, within: CellSet) -> CellSet:
    """Choose the cells of `within` that are not in its subset `cells`; there may be none."""
    text = f"rest of {within.text}" if within.n_cells < atlas.n_cells else "rest"
    if cells.leaf_l is not None and within.leaf_l is not None:
        return leaf_set(atlas, np.setdiff1d(within.leaf_l, cells.leaf_l), text)
    n_cells = within.n_cells - cells.n_cells
    return CellSet(text, n_cells, None, _clauses([]), lambda rows: within.mask(rows) & ~cells.mask(rows))


def check_column(obs: ObsReader, key: str, uri: str) -> None:
    """Refuse an obs column that does not exist.

    Raises
    ------
    ValueError
        With the nearest names.
    """
    if key not in obs.columns():
        raise missing_column(key, obs.columns(), uri)


def near_values(value: str, present: Iterable[str]) -> str:
    """Return the values nearest to `value`, ignoring case, for a message."""
    first = list(present)[:_NEAR_OF]
    folded = {name.casefold(): name for name in reversed(first)}
    near = [folded[name] for name in difflib.get_close_matches(value.casefold(), folded, n=3, cutoff=0.6)]
    if near:
        return f"did you mean {', '.join(map(repr, near))}?"
    return f"it has {', '.join(map(repr, first[:10]))}{', ...' if len(first) > 10 else ''}"


def _filtered(atlas: AtlasReader, condition: Condition) -> CellSet:
    obs, leaves = atlas.obs, atlas.leaves
    used = list(dict.fromkeys(comparison.column for comparison in comparisons(condition)))
    for key in used:
        check_column(obs, key, atlas.uri)
    parts = condition.parts if isinstance(condition, Combined) and condition.operator == "and" else (condition,)
    tests = [_test(obs, part) for part in parts]
    texts = [str(part) for part in parts]
    if leaves is not None and set(used) <= set(leaves.columns):
        # A filter over the columns of the leaves is evaluated on their table, independent of the number of cells.
        table = {key: leaves.codes[:, place] for place, key in enumerate(leaves.columns)}
        kept_l, counts = np.ones(leaves.n_leaves, dtype=bool), []
        for test in tests:
            passed_l = test(table.__getitem__)
            kept_l &= passed_l
            counts.append((int(leaves.n_cells[passed_l].sum()), int(leaves.n_cells[kept_l].sum())))
        return leaf_set(atlas, np.flatnonzero(kept_l), str(condition), _clauses(zip(texts, counts, strict=True)))
    return _streamed(atlas, tests, texts, str(condition))


def _streamed(atlas: AtlasReader, tests: list[Test], texts: list[str], text: str) -> CellSet:
    """Evaluate tests chunk by chunk and keep one bit for each cell."""
    kept_n, alone, kept = np.zeros(atlas.n_cells // 8 + 1, dtype=np.uint8), [0] * len(tests), [0] * len(tests)
    carried, at = np.zeros(0, dtype=bool), 0
    for rows in atlas.chunks():
        columns = _reader(atlas.obs, rows)
        mask_n = np.ones(rows.stop - rows.start, dtype=bool)
        # Every test sees all cells of a chunk, also those that earlier tests exclude: `alone` counts them.
        for place, test in enumerate(tests):
            passed_n = test(columns)
            mask_n &= passed_n
            alone[place] += int(np.count_nonzero(passed_n))
            kept[place] += int(np.count_nonzero(mask_n))
        joined = np.concatenate([carried, mask_n])  # chunks need not end on a byte
        whole = len(joined) // 8 * 8
        kept_n[at : at + whole // 8] = np.packbits(joined[:whole])
        at, carried = at + whole // 8, joined[whole:]
    if len(carried):
        kept_n[at] = np.packbits(carried)[0]
    counts = zip(texts, zip(alone, kept, strict=True), strict=True)
    return CellSet(text, kept[-1], None, _clauses(counts), _bits(kept_n))


def _bits(packed: NDArray[np.uint8]) -> Callable[[slice], NDArray[np.bool_]]:
    def mask(rows: slice) -> NDArray[np.bool_]:
        first = rows.start // 8
        bits = np.unpackbits(packed[first : rows.stop // 8 + 1])
        return np.asarray(bits[rows.start - 8 * first : rows.stop - 8 * first].view(bool))

    return mask


def _reader(obs: ObsReader, rows: slice) -> Columns:
    """Read each column of a chunk once for all clauses that name it."""
    read: dict[str, NDArray[Any]] = {}

    def columns(key: str) -> NDArray[Any]:
        if key not in read:
            categorical = obs.kind(key) == "categorical"
            read[key] = obs.categorical(key).codes(rows.start, rows.stop) if categorical else obs.values(key, rows)
        return read[key]

    return columns


def _test(obs: ObsReader, condition: Condition) -> Test:
    """Check a condition against the columns and convert it to a function of them."""
    if isinstance(condition, Not):
        inner = _test(obs, condition.part)
        return lambda columns: ~inner(columns)
    if isinstance(condition, Combined):
        tests, every = [_test(obs, part) for part in condition.parts], condition.operator == "and"

        def joined(columns: Columns) -> NDArray[np.bool_]:
            passed = np.stack([test(columns) for test in tests])
            return np.asarray(passed.all(axis=0) if every else passed.any(axis=0))

        return joined
    if obs.kind(condition.column) == "categorical":
        return _categorical_test(obs, condition)
    return _numeric_test(condition)


def _categorical_test(obs: ObsReader, condition: Comparison) -> Test:
    """Evaluate a condition once per category; the last entry is that of a missing value, code -1."""
    names = obs.categorical(condition.column).vocabulary
    if condition.operator in ("is None", "is not None"):
        passes = np.full(len(names), condition.operator == "is not None")
    elif condition.operator in ("<", "<=", ">", ">="):
        passes = _ORDER[condition.operator](_numbers(condition, names), _number(condition, condition.values[0]))
    else:
        passes = np.zeros(len(names), dtype=bool)
        for value in condition.values:
            passes |= _matches(condition, value, names)
        if condition.operator in ("!=", "not in"):
            passes = ~passes
    # As in pandas a missing value differs from every value.
    lookup = np.append(passes, condition.operator in ("is None", "!=", "not in"))
    return lambda columns: lookup[columns(condition.column)]


def _matches(condition: Comparison, value: Value, names: tuple[str, ...]) -> NDArray[np.bool_]:
    """Return a mask of the categories equal to `value`: numbers match in any notation."""
    found = np.array([name == str(value) for name in names], dtype=bool)
    if not found.any() and isinstance(value, int | float) and not isinstance(value, bool):
        found = np.array([_as_number(name) == value for name in names], dtype=bool)
    if not found.any():
        raise ValueError(f"obs column '{condition.column}' has no value {value!r}: {near_values(str(value), names)}")
    return found


def _numbers(condition: Comparison, names: tuple[str, ...]) -> NDArray[np.float64]:
    numbers = [_as_number(name) for name in names]
    words = [name for name, number in zip(names, numbers, strict=True) if number is None]
    if words:
        raise ValueError(
            f"'{condition}': obs column '{condition.column}' holds categories such as {words[0]!r}, which have no "
            "order: use ==, != or in"
        )
    return np.array(numbers, dtype=np.float64)


def _as_number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None


def _number(condition: Comparison, value: Value) -> float:
    number = _as_number(value) if isinstance(value, str) else value
    if number is None:
        raise ValueError(f"'{condition}': obs column '{condition.column}' holds numbers, not {value!r}")
    return number


def _numeric_test(condition: Comparison) -> Test:
    key = condition.column
    if condition.operator in ("is None", "is not None"):
        missing = condition.operator == "is None"
        return lambda columns: np.isnan(columns(key)) == missing
    numbers = [_number(condition, value) for value in condition.values]
    if condition.operator in _ORDER:
        compare = _ORDER[condition.operator]
        return lambda columns: np.asarray(compare(columns(key), numbers[0]), dtype=bool)
    inside = condition.operator == "in"

    def test(columns: Columns) -> NDArray[np.bool_]:
        values = columns(key)
        return np.asarray(np.stack([values == number for number in numbers]).any(axis=0) == inside)

    return test


def _mapped(cells: Mapping[str, Any]) -> Condition:
    """Write values of obs columns as a filter."""
    if not cells:
        raise ValueError("cells is an empty mapping: name an obs column and its values, or leave it out for all cells")
    parts: list[Condition] = []
    for key, values in cells.items():
        several = isinstance(values, Iterable) and not isinstance(values, str)
        listed = tuple(value.item() if hasattr(value, "item") else value for value in (values if several else [values]))
        parts.append(Comparison(str(key), "in", listed))
    return parts[0] if len(parts) == 1 else Combined("and", tuple(parts))


def _listed(atlas: AtlasReader, cells: Indices) -> CellSet:
    row_m, _ = rows_asked(cells, atlas.n_cells)

    def mask(rows: slice) -> NDArray[np.bool_]:
        mask_n = np.zeros(rows.stop - rows.start, dtype=bool)
        first, last = np.searchsorted(row_m, (rows.start, rows.stop))
        mask_n[row_m[first:last] - rows.start] = True
        return mask_n

    return CellSet(f"{len(row_m)} rows (SHA-256 {digest(row_m)[:12]})", len(row_m), None, _clauses([]), mask)


def _intersection(atlas: AtlasReader, first: CellSet, second: CellSet) -> CellSet:
    text = second.text if first.n_cells == atlas.n_cells else f"({first.text}) and ({second.text})"
    clauses = pd.concat([first.clauses, second.clauses], ignore_index=True)
    if first.leaf_l is not None and second.leaf_l is not None:
        return leaf_set(atlas, np.intersect1d(first.leaf_l, second.leaf_l), text, clauses)

    def mask(rows: slice) -> NDArray[np.bool_]:
        return first.mask(rows) & second.mask(rows)

    n_cells = sum(int(np.count_nonzero(mask(rows))) for rows in atlas.chunks())
    return CellSet(text, n_cells, None, clauses, mask)


def _clauses(counts: Iterable[tuple[str, tuple[int, int]]]) -> pd.DataFrame:
    rows = [(text, alone, kept) for text, (alone, kept) in counts]
    return pd.DataFrame(rows, columns=["clause", "cells", "kept"])
