"""One pass over a store that says what is in it and what should be mended before training.

Shape letters in this file
    n   cells of one read
    e   their stored entries
    g   genes
    b   batches, and after them one more group for cells without a batch
    q   bins of library size
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Categorical
from .rows import CsrRows
from .store import CellStore

_READ_ENTRIES = 1 << 22
"""Entries held at once, by the mean number in a cell."""
_READ_CELLS = 1 << 16
_BINS_PER_DOUBLING = 64
"""Bins of library size; quantiles are exact to 1.1 %."""
_DOUBLINGS = 48
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
_FEW_CELLS = 50
_DENSE_ENOUGH = 0.6
_MISSING = "(missing)"


@dataclass(frozen=True, slots=True)
class LibrarySummary:
    """Total counts of the cells of one batch. Cells without counts are left out of all but `n_cells`."""

    n_cells: int
    mean: float
    log_mean: float
    """Mean of the natural logarithm, the prior that scVI takes for this batch."""
    log_var: float
    """Variance of the natural logarithm, over n."""
    quantiles: dict[str, float]
    """Library size at 1, 25, 50, 75 and 99 %, exact to 1.1 %."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect_store` found."""

    uri: str
    n_cells: int
    n_genes: int
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
    obs_columns: tuple[str, ...]
    layers: tuple[str, ...]
    library: LibrarySummary
    batch_key: str | None
    batches: dict[str, LibrarySummary]
    """By category; cells without one under ``(missing)``."""
    labels_key: str | None
    labels: dict[str, int]
    """Cells by category; those without one under ``(missing)``."""
    advice: tuple[str, ...]
    """What should be mended."""

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as plain values, fit for JSON."""
        return asdict(self)


def inspect_store(
    store: CellStore,
    *,
    batch_key: str | None = None,
    labels_key: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Read every row of `store` once, in bounded memory, and sum up what was found.

    Parameters
    ----------
    batch_key, labels_key
        Categorical obs columns to count by.
    progress
        Called with (cells done, cells of the store) after every read.

    Raises
    ------
    ValueError
        If a row is damaged or holds no raw counts, or a column is not there; see `CellStore`.
    """
    batch = store.categorical(batch_key) if batch_key else None
    label = store.categorical(labels_key) if labels_key else None
    libraries = _Libraries(len(batch.vocabulary) if batch else 0)
    labels = np.zeros(len(label.vocabulary) + 1 if label else 1, dtype=np.int64)
    count = _Counts(len(store.var_names))
    for start, stop in _ranges(store):
        libraries.add(count.add(store.read(start, stop), start), _groups(batch, start, stop))
        labels += np.bincount(_groups(label, start, stop), minlength=len(labels))
        if progress is not None:
            progress(stop, store.n_cells)
    unseen = store.var_names[~count.seen_g]
    found = Inspection(
        uri=store.uri,
        n_cells=store.n_cells,
        n_genes=len(store.var_names),
        n_entries=count.n_entries,
        density=count.n_entries / (store.n_cells * len(store.var_names)),
        count_max=count.largest,
        n_empty_cells=int(libraries.n_b.sum() - libraries.n_positive_b.sum()),
        first_empty_cell=count.first_empty,
        n_unseen_genes=len(unseen),
        unseen_genes=tuple(str(name) for name in unseen[:10]),
        obs_columns=tuple(store.obs_columns()),
        layers=tuple(store.layers()),
        library=libraries.total(),
        batch_key=batch_key,
        batches={name: libraries.summary(at) for name, at in _named(batch, libraries.n_b)},
        labels_key=labels_key,
        labels={name: int(labels[at]) for name, at in _named(label, labels)},
        advice=(),
    )
    return replace(found, advice=(*_count_advice(found), *_column_advice(found)))


def format_inspection(inspection: Inspection) -> str:
    """Lay out `inspection` for a reader."""
    found = inspection
    lines = [
        found.uri,
        f"  {found.n_cells:,} cells x {found.n_genes:,} genes",
        f"  {found.n_entries:,} counts above zero ({found.density:.1%}), the largest {found.count_max:,}",
        f"  library size {_library(found.library)}",
        f"  obs: {', '.join(found.obs_columns) or 'none'}",
        f"  layers: {', '.join(found.layers) or 'none'}",
    ]
    if found.batch_key is not None:
        lines.append(f"  batches ({found.batch_key}):")
        lines += [f"    {name}: {one.n_cells:,} cells, {_library(one)}" for name, one in found.batches.items()]
    if found.labels_key is not None:
        lines.append(f"  labels ({found.labels_key}):")
        lines += [f"    {name}: {n:,} cells" for name, n in found.labels.items()]
    lines += ["  to mend:", *(f"    - {line}" for line in found.advice)] if found.advice else ["  nothing to mend"]
    return "\n".join(lines)


class _Counts:
    """What has been seen of the counts."""

    def __init__(self, n_genes: int) -> None:
        self.n_entries = 0
        self.largest = 0
        self.first_empty: int | None = None
        self.seen_g = np.zeros(n_genes, dtype=bool)

    def add(self, rows: CsrRows, start: int) -> NDArray[np.int64]:
        """Add the rows from `start` on and return the total count of each."""
        positive_e = rows.counts_e > 0
        self.n_entries += int(np.count_nonzero(positive_e))
        self.largest = max(self.largest, int(rows.counts_e.max(initial=0)))
        self.seen_g[rows.genes_e[positive_e]] = True
        library_n = rows.library_n()
        if self.first_empty is None and not library_n.all():
            self.first_empty = start + int(np.argmin(library_n > 0))
        return library_n


class _Libraries:
    """Running mean and variance of the log library size of each batch, and its histogram.

    Moments are joined as in Chan, Golub and LeVeque, Stanford STAN-CS-79-773 (1979).
    """

    def __init__(self, n_batches: int) -> None:
        groups = n_batches + 1
        self.n_b = np.zeros(groups, dtype=np.int64)
        self.n_positive_b = np.zeros(groups, dtype=np.int64)
        self._sum_b = np.zeros(groups, dtype=np.int64)
        self._mean_b = np.zeros(groups)
        self._square_b = np.zeros(groups)
        self._bins_bq = np.zeros((groups, _DOUBLINGS * _BINS_PER_DOUBLING), dtype=np.int64)

    def add(self, library_n: NDArray[np.int64], group_n: NDArray[np.int64]) -> None:
        """Add cells with the total counts `library_n`, of the batches `group_n`."""
        groups = len(self.n_b)
        self.n_b += np.bincount(group_n, minlength=groups)
        library_n, group_n = library_n[library_n > 0], group_n[library_n > 0]
        np.add.at(self._sum_b, group_n, library_n)
        log_n = np.log(library_n)
        count_b = np.bincount(group_n, minlength=groups)
        mean_b = np.bincount(group_n, log_n, groups) / np.maximum(count_b, 1)
        square_b = np.bincount(group_n, (log_n - mean_b[group_n]) ** 2, groups)
        total_b = self.n_positive_b + count_b
        apart_b = mean_b - self._mean_b
        weight_b = count_b / np.maximum(total_b, 1)
        self._mean_b += apart_b * weight_b
        self._square_b += square_b + apart_b**2 * weight_b * self.n_positive_b
        self.n_positive_b = total_b
        bin_n = np.minimum(np.log2(library_n) * _BINS_PER_DOUBLING, self._bins_bq.shape[1] - 1).astype(np.int64)
        np.add.at(self._bins_bq, (group_n, bin_n), 1)

    def summary(self, group: int) -> LibrarySummary:
        """Sum up one batch."""
        n = max(1, int(self.n_positive_b[group]))
        return LibrarySummary(
            int(self.n_b[group]),
            float(self._sum_b[group] / n),
            float(self._mean_b[group]),
            float(self._square_b[group] / n),
            _quantiles(self._bins_bq[group]),
        )

    def total(self) -> LibrarySummary:
        """Sum up all cells."""
        n = max(1, int(self.n_positive_b.sum()))
        mean = float(self._mean_b @ self.n_positive_b) / n
        square = self._square_b.sum() + (self._mean_b - mean) ** 2 @ self.n_positive_b
        return LibrarySummary(
            int(self.n_b.sum()),
            float(self._sum_b.sum() / n),
            mean,
            float(square / n),
            _quantiles(self._bins_bq.sum(axis=0)),
        )


def _quantiles(bins_q: NDArray[np.int64]) -> dict[str, float]:
    """Read quantiles from a histogram, each at the middle of its bin."""
    if not bins_q.any():
        return {f"{share:g}": 0.0 for share in _QUANTILES}
    below_q = np.cumsum(bins_q)
    at = np.searchsorted(below_q, np.array(_QUANTILES) * below_q[-1])
    middle = np.exp2((at + 0.5) / _BINS_PER_DOUBLING)
    return {f"{share:g}": float(size) for share, size in zip(_QUANTILES, middle, strict=True)}


def _ranges(store: CellStore) -> Iterator[tuple[int, int]]:
    step = min(max(1, _READ_ENTRIES * store.n_cells // max(1, store.n_entries)), _READ_CELLS)
    for start in range(0, store.n_cells, step):
        yield start, min(start + step, store.n_cells)


def _groups(column: Categorical | None, start: int, stop: int) -> NDArray[np.int64]:
    """Codes of rows ``[start, stop)``, the number of categories where the value is missing."""
    if column is None:
        return np.zeros(stop - start, dtype=np.int64)
    codes_n = column.codes(start, stop).astype(np.int64)
    codes_n[codes_n < 0] = len(column.vocabulary)
    return codes_n


def _named(column: Categorical | None, count: NDArray[np.int64]) -> list[tuple[str, int]]:
    """Names and places of the categories, and of the cells without one if there are any."""
    if column is None:
        return []
    names = list(column.vocabulary) + ([_MISSING] if count[-1] else [])
    return [(name, at) for at, name in enumerate(names)]


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
        if name == _MISSING:
            yield f"{column} has no value in {one.n_cells:,} cells: fill it, training refuses them"
        elif one.n_cells == 0:
            yield f"{column} has no cells of '{name}': remove the category"
        elif one.n_cells < _FEW_CELLS:
            yield (
                f"{column} has {one.n_cells} cells of '{name}': the effect of a batch cannot be learned from so few, "
                "join it to another or remove it"
            )
    for name, n in found.labels.items():
        column = f"obs column '{found.labels_key}'"
        if name == _MISSING:
            yield f"{column} has no value in {n:,} cells: they count as unlabelled"
        elif n == 0:
            yield f"{column} has no cells of '{name}': remove the category"


def _library(one: LibrarySummary) -> str:
    low, middle, high = one.quantiles["0.01"], one.quantiles["0.5"], one.quantiles["0.99"]
    return f"mean {one.mean:,.1f}, median {middle:,.0f}, 98 % within {low:,.0f} to {high:,.0f}"
