"""The results of a pass over cells: counts, names and duplicates; and probes of a few rows of a layer."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dist_scvi.loaders.arrays.csr_rows import has_fractions
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.checks.scan_columns import groups
from dist_scvi.loaders.checks.scan_counts import Counts, Libraries
from dist_scvi.loaders.checks.scan_duplicates import Hashes, hash_names
from dist_scvi.loaders.row_hash import hash_counts

_REFUSALS = 8
"""Number of first reads after which no more counts are read, if all of them were refused."""
_PROBES = 8
_PROBE_CELLS = 64


@dataclass(frozen=True, slots=True)
class Probe:
    """Result of reading a few rows of a matrix."""

    layer: str | None
    """None for ``X``."""
    counts: bool
    """Whether they are raw counts."""
    found: str


class CellPass:
    """The counts of a store, by batch and label.

    Reads that are refused are left out.
    """

    def __init__(self, store: CellStore, batch: Categorical | None, label: Categorical | None) -> None:
        self.batch, self.label = batch, label
        self.count = Counts(len(store.var_names))
        self.libraries = Libraries(len(batch.vocabulary) if batch else 0)
        self.labels = np.zeros(len(label.vocabulary) + 1 if label else 1, dtype=np.int64)
        self.hashes = Hashes(store.n_cells)
        self.speeds: list[float] = []
        """Cells read per second, in each read."""
        self.n_unread = 0
        self.refused: str | None = None
        """Error of the first of these reads."""
        self._store = store
        self._refusals = 0

    def add(self, start: int, stop: int) -> None:
        """Read the rows ``[start, stop)``."""
        if self._refusals == _REFUSALS and not self.speeds:
            self.n_unread += stop - start
            return
        began = time.perf_counter()
        try:
            rows = self._store.read(start, stop)
            speed = (stop - start) / (time.perf_counter() - began)
            batch_n, label_n = groups(self.batch, start, stop), groups(self.label, start, stop)
        except ValueError as error:
            self.refused = self.refused or str(error)
            self.n_unread += stop - start
            self._refusals += 1
            return
        self.speeds.append(speed)
        self.libraries.add(self.count.add(rows, start), batch_n)
        self.labels += np.bincount(label_n, minlength=len(self.labels))
        self.hashes.add(hash_counts(rows), start)


class NamePass:
    """The names of the cells, up to the first read that fails."""

    def __init__(self, store: CellStore) -> None:
        self.hashes = Hashes(store.n_cells)
        self.refused: str | None = None
        self._store = store

    def add(self, start: int, stop: int) -> None:
        """Read the names of the rows ``[start, stop)``."""
        if self.refused is not None:
            return
        try:
            self.hashes.add(hash_names(self._store.obs_names(start, stop)), start)
        except ValueError as error:
            self.refused = str(error)


def probe_layers(store: CellStore, open_layer: Callable[[str | None], CellStore]) -> Iterator[Probe]:
    """Yield the results of reading a few rows of ``X`` and of each layer of `store`."""
    for layer in (None, *store.layers()):
        try:
            other = open_layer(layer)
        except ValueError as error:
            yield Probe(layer, counts=False, found=str(error))
            continue
        try:
            yield _probe(layer, other)
        finally:
            other.close()


def _probe(layer: str | None, store: CellStore) -> Probe:
    largest = 0
    for start in np.unique(np.linspace(0, max(0, store.n_cells - _PROBE_CELLS), _PROBES).astype(int)).tolist():
        try:
            rows = store.read(start, min(start + _PROBE_CELLS, store.n_cells))
        except ValueError as error:
            return Probe(layer, counts=False, found=str(error))
        if has_fractions(rows.counts_e):
            return Probe(layer, counts=False, found="values that are not whole")
        largest = max(largest, int(rows.counts_e.max(initial=0)))
    return Probe(layer, counts=True, found=f"whole numbers up to {largest:,} in a few rows")
