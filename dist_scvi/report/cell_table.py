"""The cells that a report samples: those of a minified atlas, or of a store whose cells are encoded when they are read.

Shape letters in this file
    n   cells
    k   latent dimensions
    j   neighbours of a cell
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.inference.cell_selection import select
from dist_scvi.inference.posterior import posterior_of
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.cell_store import open_column
from dist_scvi.loaders.data import CellData
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.read_limits import PAGE_ROWS
from dist_scvi.network.vae import VAE

Moments = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Mean and variance of the posterior, each of shape (n, k)."""


class CellTable(Protocol):
    """Obs columns by rows, and the posterior of some rows."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""

    @property
    def of_atlas(self) -> bool:
        """Whether the posterior of every cell is stored."""

    def pages(self) -> Iterator[slice]:
        """Return ranges that together are all rows."""

    def is_categorical(self, key: str) -> bool:
        """Return whether an obs column holds categories."""

    def vocabulary(self, key: str) -> tuple[str, ...]:
        """Return the categories of an obs column."""

    def codes(self, key: str, rows: slice) -> NDArray[np.int32]:
        """Read the codes of a range of rows, -1 where the value is missing."""

    def codes_of(self, key: str, row_n: NDArray[np.int64]) -> NDArray[np.int32]:
        """Read the codes of single rows."""

    def numbers_of(self, key: str, row_n: NDArray[np.int64]) -> NDArray[np.float64]:
        """Read a column of numbers at single rows."""

    def source_rows(self, rows: slice) -> NDArray[np.int64]:
        """Return the rows of the store that these are, which identify the cells."""

    def moments_of(self, row_n: NDArray[np.int64]) -> Moments:
        """Return the posterior of single rows, in ascending order."""


class StoreTable:
    """The cells of a store."""

    of_atlas = False

    def __init__(self, data: CellData, module: VAE) -> None:
        self._data, self._module = data, module
        self._columns: dict[str, Categorical] = {}

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._data.n_cells

    def pages(self) -> Iterator[slice]:
        """Return ranges that together are all rows."""
        return (slice(at, min(at + PAGE_ROWS, self.n_cells)) for at in range(0, self.n_cells, PAGE_ROWS))

    def is_categorical(self, key: str) -> bool:
        """Return whether an obs column holds categories; those that the model uses do."""
        used = (self._data.batch, self._data.label, *self._data.categorical_covariates)
        if any(column is not None and column.key == key for column in used):
            return True
        return isinstance(open_column(self._data.store, key), Categorical)

    def vocabulary(self, key: str) -> tuple[str, ...]:
        """Return the categories of an obs column."""
        return self._column(key).vocabulary

    def codes(self, key: str, rows: slice) -> NDArray[np.int32]:
        """Read the codes of a range of rows, -1 where the value is missing."""
        return self._column(key).codes(rows.start, rows.stop)

    def codes_of(self, key: str, row_n: NDArray[np.int64]) -> NDArray[np.int32]:
        """Read the codes of single rows."""
        return self._column(key).codes_of([(int(row), int(row) + 1) for row in row_n])

    def numbers_of(self, key: str, row_n: NDArray[np.int64]) -> NDArray[np.float64]:
        """Read a column of numbers at single rows."""
        stored = self._data.store.numeric(key).stored
        return np.concatenate([np.asarray(stored[int(row) : int(row) + 1], dtype=np.float64) for row in row_n])

    def source_rows(self, rows: slice) -> NDArray[np.int64]:
        """Return the same rows."""
        return np.arange(rows.start, rows.stop, dtype=np.int64)

    def moments_of(self, row_n: NDArray[np.int64]) -> Moments:
        """Encode single rows, in ascending order."""

        def encode(minibatch: MiniBatch) -> Moments:
            mean_nk, variance_nk = posterior_of(self._module, minibatch)
            return mean_nk.cpu().numpy(), variance_nk.cpu().numpy()

        mean_nk, variance_nk = select(self._data, row_n).answer(encode)
        return mean_nk, variance_nk

    def _column(self, key: str) -> Categorical:
        if key not in self._columns:
            used = [self._data.batch, self._data.label, *self._data.categorical_covariates]
            known = [column for column in used if column is not None and column.key == key]
            self._columns[key] = known[0] if known else self._data.store.categorical(key)
        return self._columns[key]


class AtlasTable:
    """The cells of a minified atlas, in its order."""

    of_atlas = True

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._atlas.n_cells

    def pages(self) -> Iterator[slice]:
        """Return ranges that together are all rows."""
        return self._atlas.chunks()

    def is_categorical(self, key: str) -> bool:
        """Return whether an obs column holds categories."""
        return self._atlas.obs.kind(key) == "categorical"

    def vocabulary(self, key: str) -> tuple[str, ...]:
        """Return the categories of an obs column."""
        return tuple(self._atlas.obs.categorical(key).vocabulary)

    def codes(self, key: str, rows: slice) -> NDArray[np.int32]:
        """Read the codes of a range of rows, -1 where the value is missing."""
        return self._atlas.obs.codes(key, rows)

    def codes_of(self, key: str, row_n: NDArray[np.int64]) -> NDArray[np.int32]:
        """Read the codes of single rows."""
        return self._atlas.obs.codes(key, row_n)

    def numbers_of(self, key: str, row_n: NDArray[np.int64]) -> NDArray[np.float64]:
        """Read a column of numbers at single rows."""
        return np.asarray(self._atlas.obs.values(key, row_n), dtype=np.float64)

    def source_rows(self, rows: slice) -> NDArray[np.int64]:
        """Return the rows of the store that these are."""
        return self._atlas.read_source_row(rows)

    def moments_of(self, row_n: NDArray[np.int64]) -> Moments:
        """Read the posterior of single rows."""
        return self._atlas.read_latent(row_n)
