"""One pass over a store that summarises its content and what should be corrected before training."""

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.arrays.printable import printable_lines
from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.checks.scan_cells import CellPass, NamePass, Probe, probe_layers
from dist_scvi.loaders.checks.scan_columns import BLOCK_CELLS, MISSING, ColumnPass, ColumnSummary, suggested
from dist_scvi.loaders.checks.scan_counts import LibrarySummary
from dist_scvi.loaders.checks.scan_duplicates import Copies
from dist_scvi.loaders.order.plan import make_plan
from dist_scvi.loaders.read_limits import cells_of_read

_FEW_CELLS = 50
_DENSE_ENOUGH = 0.6
_FEW_NUMBERS = 50
"""Most different numbers of a column whose frequent values are shown."""
_WINDOW_ENTRIES = 1 << 27
"""Entries of the windows of training by default; in smaller stores each chunk is decompressed once in an epoch."""
_SORTED, _SHUFFLED = 4, BLOCK_CELLS // 2
"""Independent cells of a block up to which rows count as sorted, and from which on as shuffled."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Result of `inspect_store`."""

    uri: str
    layer: str | None
    """Layer that was read, None for ``X``."""
    n_cells: int
    n_genes: int
    n_unread_cells: int
    """Cells in reads that were refused; results for counts, batches and labels do not include them."""
    n_entries: int
    """Counts above zero."""
    density: float
    """Share of counts above zero."""
    count_max: int
    n_empty_cells: int
    """Cells without a count."""
    first_empty_cell: int | None
    """Row of the first of them."""
    n_unseen_genes: int
    """Genes without a count."""
    unseen_genes: tuple[str, ...]
    """Names of the first ten of them."""
    copied_cells: Copies
    """Cells with the same counts as another cell; those without counts are not compared."""
    copied_names: Copies
    obs_columns: tuple[str, ...]
    columns: tuple[ColumnSummary, ...]
    layers: tuple[str, ...]
    probes: tuple[Probe, ...]
    """Probes of ``X`` and every layer."""
    library: LibrarySummary
    batch_key: str | None
    batches: dict[str, LibrarySummary]
    """By category; cells without one under ``(missing)``."""
    labels_key: str | None
    labels: dict[str, int]
    """Cells by category; those without one under ``(missing)``."""
    batch_suggestions: tuple[str, ...]
    """obs columns that could be batches, if none was given."""
    label_suggestions: tuple[str, ...]
    chunk_cells: int
    """Rows that are decompressed together."""
    read_cells_per_s: float
    """Median speed of this pass in reading counts in the order of the store; 0 if none could be read."""
    n_processors: int
    """Processors available to this pass."""
    refused: tuple[str, ...]
    """Errors of the first counts and the first names that could not be read."""
    limits: tuple[str, ...]
    """Kinds of damage that cannot be detected in this store."""
    advice: tuple[str, ...]
    """What should be corrected."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON."""
        return asdict(self)


def inspect_store(
    store: CellStore,
    *,
    batch_key: str | None = None,
    labels_key: str | None = None,
    open_layer: Callable[[str | None], CellStore] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Read every row of `store` once, in bounded memory, and return a summary.

    Counts that are damaged or not raw are reported in the advice, and all rows of the same read are left out.

    Parameters
    ----------
    batch_key, labels_key
        Categorical obs columns to count by.
    open_layer
        Opens the same store with another layer, or ``X`` if given None, to find which of them contain raw counts.
    progress
        Called with (cells done, cells of the store) after every read.

    Raises
    ------
    ValueError
        If one of the two columns is missing or cannot be opened.
    """
    batch = store.categorical(batch_key) if batch_key else None
    label = store.categorical(labels_key) if labels_key else None
    given = {column.key: column for column in (batch, label) if column is not None}
    cells, names = CellPass(store, batch, label), NamePass(store)
    columns = [ColumnPass(store, key, given.get(key)) for key in store.obs_columns()]
    for start, stop in _ranges(store):
        cells.add(start, stop)
        names.add(start, stop)
        for column in columns:
            column.add(start, stop)
        if progress is not None:
            progress(stop, store.n_cells)
    found = _summed_up(store, cells, names, columns)
    probes = tuple(probe_layers(store, open_layer)) if open_layer else ()
    found = replace(found, batch_key=batch_key, labels_key=labels_key, probes=probes)
    return replace(found, advice=(*_store_advice(found), *_count_advice(found), *_column_advice(found)))


def format_inspection(inspection: Inspection) -> str:
    """Return `inspection` as text."""
    found = inspection
    lines = [
        found.uri,
        f"  {found.n_cells:,} cells x {found.n_genes:,} genes in {_name(found.layer)}",
        f"  {found.n_entries:,} counts above zero ({found.density:.1%}), the largest {found.count_max:,}",
        f"  library size {_library(found.library)}",
        f"  layers: {', '.join(found.layers) or 'none'}",
        *(f"    {_name(probe.layer)}: {probe.found}" for probe in found.probes),
        "  obs:" if found.columns else "  obs: none",
        *(f"    {column.key}: {_column(column)}" for column in found.columns),
    ]
    for what, names in (("batches", found.batch_suggestions), ("labels", found.label_suggestions)):
        if names:
            lines.append(f"  by their names, {what} could be: {', '.join(names)}")
    if found.batch_key is not None:
        lines.append(f"  batches ({found.batch_key}):")
        lines += [f"    {name}: {one.n_cells:,} cells, {_library(one)}" for name, one in found.batches.items()]
    if found.labels_key is not None:
        lines.append(f"  labels ({found.labels_key}):")
        lines += [f"    {name}: {n:,} cells" for name, n in found.labels.items()]
    lines += [f"  {line}" for line in (*_order(found), *_speed(found))]
    lines += ["  to mend:", *(f"    - {line}" for line in found.advice)] if found.advice else ["  nothing to mend"]
    return printable_lines("\n".join(lines))


def _summed_up(store: CellStore, cells: CellPass, names: NamePass, passes: Sequence[ColumnPass]) -> Inspection:
    count, libraries = cells.count, cells.libraries
    unseen = store.var_names[~count.seen_g & (cells.n_unread < store.n_cells)]
    columns = tuple(one.summary() for one in passes)
    batches, labels = suggested(columns, store.n_cells)
    return Inspection(
        uri=store.uri,
        layer=store.layer,
        n_cells=store.n_cells,
        n_genes=len(store.var_names),
        n_unread_cells=cells.n_unread,
        n_entries=count.n_entries,
        density=count.n_entries / (max(1, store.n_cells - cells.n_unread) * len(store.var_names)),
        count_max=count.largest,
        n_empty_cells=int(libraries.n_b.sum() - libraries.n_positive_b.sum()),
        first_empty_cell=count.first_empty,
        n_unseen_genes=len(unseen),
        unseen_genes=tuple(str(name) for name in unseen[:10]),
        copied_cells=cells.hashes.copies(),
        copied_names=names.hashes.copies(),
        obs_columns=tuple(store.obs_columns()),
        columns=columns,
        layers=tuple(store.layers()),
        probes=(),
        library=libraries.total(),
        batch_key=None,
        batches={name: libraries.summary(at) for name, at in _named(cells.batch, libraries.n_b)},
        labels_key=None,
        labels={name: int(cells.labels[at]) for name, at in _named(cells.label, cells.labels)},
        batch_suggestions=batches if cells.batch is None else (),
        label_suggestions=labels if cells.label is None else (),
        chunk_cells=store.chunk_cells,
        read_cells_per_s=statistics.median(cells.speeds or [0.0]),
        n_processors=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        refused=tuple(one for one in (cells.refused, names.refused) if one),
        limits=store.limits(),
        advice=(),
    )


def _ranges(store: CellStore) -> Iterator[tuple[int, int]]:
    step = cells_of_read(store.n_cells, store.n_entries)
    for start in range(0, store.n_cells, step):
        yield start, min(start + step, store.n_cells)


def _named(column: Categorical | None, count: NDArray[np.int64]) -> list[tuple[str, int]]:
    """Return names and indices of the categories, and of the cells without one if there are any."""
    if column is None:
        return []
    names = list(column.vocabulary) + ([MISSING] if count[-1] else [])
    return [(name, at) for at, name in enumerate(names)]


def _store_advice(found: Inspection) -> Iterator[str]:
    yield from found.limits
    yield from found.refused
    if found.n_unread_cells:
        yield (
            f"{found.n_unread_cells:,} cells were in reads that were refused and are left out above: "
            "dist-scvi verify tells every row that is lost"
        )
        for probe in found.probes:
            if probe.counts:
                where = f"name it with data.layer={probe.layer}" if probe.layer else "read it, without data.layer"
                yield f"{_name(probe.layer)} looks like raw counts: {where}"
    yield from (column.damage for column in found.columns if column.damage)
    if found.copied_names.n_copies:
        yield f"{_copies(found.copied_names, 'name')}: call adata.obs_names_make_unique() and save again"
    if found.copied_cells.n_copies:
        yield (
            f"{_copies(found.copied_cells, 'very counts')}: keep one of each, a copy in the validation split of a cell "
            "trained on hides overfitting"
        )
    if found.chunk_cells > BLOCK_CELLS and found.n_entries > _WINDOW_ENTRIES:
        yield (
            f"{found.chunk_cells:,} rows are decompressed together, training reads shorter blocks: write the store in "
            "smaller chunks with dist-scvi pack"
        )


def _copies(copies: Copies, what: str) -> str:
    rows = ", ".join(f"{first} and {row}" for first, row in copies.pairs)
    n = f"{copies.n_copies:,}" if copies.share == 1 else f"about {copies.n_copies / copies.share:,.0f}"
    by = "" if copies.share == 1 else f", by those of {copies.share:.1%} of the cells"
    return f"{n} cells have the {what} of another (rows {rows}{by})"


def _count_advice(found: Inspection) -> Iterator[str]:
    if found.n_empty_cells:
        yield (
            f"{found.n_empty_cells:,} cells have no counts, the first is row {found.first_empty_cell}: remove them, "
            "a model learns nothing from them"
        )
    if found.n_unseen_genes:
        some = ", ".join(found.unseen_genes[:3])
        yield f"{found.n_unseen_genes:,} genes are never seen ({some}): remove them, they cost time and memory"
    if found.count_max == 1:
        yield "no count is larger than 1: give the raw counts, not whether a gene was seen"
    if found.n_cells > 1 and found.library.mean > 0 and found.library.log_var < 1e-6:
        yield "all cells have nearly the same total count: give the raw counts, not normalised ones"
    if found.density > _DENSE_ENOUGH:
        yield f"{found.density:.0%} of the counts are above zero, raw counts are mostly zero: is this the right layer?"


def _column_advice(found: Inspection) -> Iterator[str]:
    for name, one in found.batches.items():
        column = f"obs column '{found.batch_key}'"
        if name == MISSING:
            yield f"{column} has no value in {one.n_cells:,} cells: fill it, training refuses them"
        elif found.n_unread_cells:
            continue  # the cells of a category are not known
        elif one.n_cells == 0:
            yield f"{column} has no cells of '{name}': remove the category"
        elif one.n_cells < _FEW_CELLS:
            yield (
                f"{column} has {one.n_cells} cells of '{name}': the effect of a batch cannot be learned from so few, "
                "join it to another or remove it"
            )
    for name, n in found.labels.items():
        column = f"obs column '{found.labels_key}'"
        if name == MISSING:
            yield f"{column} has no value in {n:,} cells: they count as unlabelled"
        elif n == 0 and not found.n_unread_cells:
            yield f"{column} has no cells of '{name}': remove the category"


def _order(found: Inspection) -> Iterator[str]:
    """Yield how well the rows are mixed, by the given columns or, if there are none, the suggested ones."""
    keys = [key for key in (found.batch_key, found.labels_key) if key]
    keys = keys or [*found.batch_suggestions, *found.label_suggestions]
    for column in found.columns:
        mixing = column.mixing
        if column.key not in keys or mixing is None:
            continue
        cells = mixing.independent_cells
        how = "mixed by" if cells >= _SHUFFLED else "of one" if cells <= _SORTED else "of few values of"
        yield f"neighbouring rows are {how} {column.key}: {_mixed_by_training(found, shuffled=cells >= _SHUFFLED)}"


def _mixed_by_training(found: Inspection, *, shuffled: bool) -> str:
    """Return how the loader mixes such rows by default, with advice if this is not enough."""
    defaults: dict[str, Any] = {"batch_size": 1024, "lanes": 8, "chunk_cells": found.chunk_cells, "shuffled": shuffled}
    plan = make_plan(n_cells=found.n_cells, n_entries=found.n_entries, n_genes=found.n_genes, **defaults)
    if plan.blocks_in_window is None:
        return "the loader shuffles all cells together; nothing to do"
    mixes = f"the loader mixes {plan.blocks_in_window} blocks of rows at a time"
    return f"{mixes}; nothing to do" if plan.diverse else f"{mixes}, too few: raise data.memory_mib, or pack the store"


def _speed(found: Inspection) -> Iterator[str]:
    if found.read_cells_per_s:
        seconds = found.n_cells / found.read_cells_per_s
        time = f"{seconds / 60:,.0f} min" if seconds >= 90 else f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"
        yield (
            f"reading alone takes {time} per epoch on the {found.n_processors} processors of this machine "
            f"({found.read_cells_per_s:,.0f} cells/s in the order of the store)"
        )


def _name(layer: str | None) -> str:
    return "X" if layer is None else layer if "/" in layer else f"layers/{layer}"


def _column(column: ColumnSummary) -> str:
    if column.damage:
        return "cannot be read"
    n = "many" if column.n_categories is None else f"{column.n_categories:,}"
    span = f"numbers {column.range[0]:g} to {column.range[1]:g}, {n} different" if column.range else f"{n} categories"
    few = column.range is None or (column.n_categories or _FEW_NUMBERS + 1) <= _FEW_NUMBERS
    frequent = "".join(f", {name} ({cells:,})" for name, cells in column.most_frequent.items() if few)
    missing = f", missing in {column.n_missing:,}" if column.n_missing else ""
    return f"{span}{missing}{frequent}"


def _library(one: LibrarySummary) -> str:
    low, middle, high = one.quantiles["0.01"], one.quantiles["0.5"], one.quantiles["0.99"]
    return f"mean {one.mean:,.1f}, median {middle:,.0f}, 98 % within {low:,.0f} to {high:,.0f}"
