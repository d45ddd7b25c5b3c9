"""A store together with the obs columns that a model uses."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.csr_rows import CsrRows
from dist_scvi.loaders.arrays.obs_columns import Categorical, Numeric, Ranges
from dist_scvi.loaders.arrays.printable import html_table, printable
from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.name_lookup import check_list
from dist_scvi.loaders.order.keyed_hash import hash_rows
from dist_scvi.loaders.row_hash import hash_counts
from dist_scvi.loaders.stores.open import open_store

if TYPE_CHECKING:
    from anndata import AnnData

_PROBES = 8
_PROBE_CELLS = 64


@dataclass(frozen=True, slots=True, eq=False)
class StoredPosterior:
    """What is kept of minified cells in place of, or with, their counts."""

    mean_nk: NDArray[np.float32]
    variance_nk: NDArray[np.float32]
    """Mean and variance of q(z | x), shape (n, latent dimensions)."""
    library_n: NDArray[np.float32]
    """Total count."""
    has_counts: bool
    """Whether the counts are there as well."""


@dataclass(frozen=True, slots=True)
class ColumnKeys:
    """The obs columns that a model uses; names and meanings are those of `open_data`."""

    batch_key: str | None = None
    labels_key: str | None = None
    unlabeled_category: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()

    def without_labels(self) -> "ColumnKeys":
        """Return the same columns except that of the labels."""
        return replace(self, labels_key=None, unlabeled_category=None)


COLUMN_KEYS = tuple(field.name for field in fields(ColumnKeys))


@dataclass(frozen=True, slots=True)
class CellData:
    """Cells and their covariates, as `open_data` found them."""

    store: CellStore
    batch: Categorical | None
    """The batch covariate; if None, all cells are of one batch."""
    label: Categorical | None
    """The label; the `unlabeled_category` has no code."""
    categorical_covariates: tuple[Categorical, ...]
    continuous_covariates: tuple[Numeric, ...]
    size_factor: Numeric | None = None
    unlabeled_category: str | None = None
    labels_required: bool = False
    """Whether a cell without a label is refused."""
    posterior: StoredPosterior | None = None
    """Of minified cells."""
    process: int = field(default_factory=os.getpid)
    """The process that opened the store."""

    @property
    def n_cells(self) -> int:
        """Cells of the store."""
        return self.store.n_cells

    @property
    def n_genes(self) -> int:
        """Genes of the store."""
        return len(self.store.var_names)

    @property
    def keys(self) -> ColumnKeys:
        """The obs columns in use."""
        return ColumnKeys(
            self.batch.key if self.batch else None,
            self.label.key if self.label else None,
            self.unlabeled_category,
            self.size_factor.key if self.size_factor else None,
            tuple(column.key for column in self.categorical_covariates),
            tuple(column.key for column in self.continuous_covariates),
        )

    def __repr__(self) -> str:
        rows = self._summary()
        return "\n".join([rows.pop("title"), *(f"{name}: {value}" for name, value in rows.items())])

    def _repr_html_(self) -> str:
        rows = self._summary()
        return html_table(rows.pop("title"), rows)

    def _summary(self) -> dict[str, str]:
        """Summarise the data for people: size, place, and the obs columns in use and present."""
        used = {"batch_key": self.batch, "labels_key": self.label}
        rows = {
            "title": f"{self.n_cells:,} cells x {self.n_genes:,} genes of {printable(self.store.uri)}",
            "counts": printable(self.store.layer or "X"),
            **{name: f"{printable(one.key)} ({len(one.vocabulary)} categories)" for name, one in used.items() if one},
        }
        further = (*self.keys.categorical_covariate_keys, *self.keys.continuous_covariate_keys)
        if further:
            rows["covariates"] = printable(", ".join(further))
        if self.size_factor is not None:
            rows["size_factor_key"] = printable(self.size_factor.key)
        return {**rows, "obs columns": printable(", ".join(self.store.obs_columns()))}

    def describe(self) -> dict[str, Any]:
        """Return what a model needs to know about its data, as plain values: genes, columns and their categories."""
        return {
            "n_cells": self.n_cells,
            "n_entries": self.store.n_entries,
            "layer": self.store.layer,
            "var_names": [str(name) for name in self.store.var_names],
            "batch": _describe(self.batch),
            "label": _describe(self.label),
            "unlabeled_category": self.unlabeled_category,
            "size_factor_key": self.keys.size_factor_key,
            "categorical_covariates": [_describe(column) for column in self.categorical_covariates],
            "continuous_covariates": list(self.keys.continuous_covariate_keys),
        }

    def read(self, ranges: Ranges, order: NDArray[np.int64], *, hashed: bool = False) -> "tuple[CsrRows, ColumnValues]":
        """Read counts and covariates of several ranges of rows: of the joined rows, those at the places `order`.

        Parameters
        ----------
        hashed
            Fill in ``ColumnValues.hash_n``, which takes about 1 ns for each stored count.

        Raises
        ------
        ValueError
            If a row is damaged or does not contain raw counts, or this process was forked from the one that opened the
            store.
        """
        # Without this check a fork would hang: it waits for threads that exist in the parent only.
        if os.getpid() != self.process:
            raise ValueError(
                f"{self.store.uri} was opened in process {self.process} and is read in {os.getpid()}, a fork of it: "
                "threads that decompress do not survive a fork; start processes with 'spawn', or open it in each"
            )
        counts, columns = self.store.read_ranges(ranges, order), self.columns_of(ranges).take(order)
        return counts, replace(columns, hash_n=hash_cells(counts, columns)) if hashed else columns

    def columns_of(self, ranges: Ranges) -> "ColumnValues":
        """Read the covariates of several ranges of rows, joined."""
        n = sum(stop - start for start, stop in ranges)

        def table(columns: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
            return np.stack(columns, axis=1) if columns else np.zeros((n, 0), dtype=dtype)

        zeros = np.zeros(n, dtype=np.int32)
        categorical = [column.codes_of(ranges, required=True) for column in self.categorical_covariates]
        return ColumnValues(
            self.batch.codes_of(ranges, required=True) if self.batch else zeros,
            self.label.codes_of(ranges, required=self.labels_required) if self.label else zeros,
            table(categorical, np.int32),
            table([column.values_of(ranges) for column in self.continuous_covariates], np.float32),
            self._size_factors(ranges) if self.size_factor else None,
        )

    def _size_factors(self, ranges: Ranges) -> NDArray[np.float32]:
        assert self.size_factor is not None
        factor_n = self.size_factor.values_of(ranges)
        if (factor_n <= 0).any():
            raise ValueError(
                f"obs column '{self.size_factor.key}' holds {factor_n[factor_n <= 0][0]} between rows {ranges[0][0]} "
                f"and {ranges[-1][1] - 1}: size factors above 0 are needed"
            )
        return factor_n


@dataclass(frozen=True, slots=True)
class ColumnValues:
    """Covariates of some cells, in the shapes of `MiniBatch`."""

    batch_n: NDArray[np.int32]
    label_n: NDArray[np.int32]
    categorical_nc: NDArray[np.int32]
    continuous_nc: NDArray[np.float32]
    size_factor_n: NDArray[np.float32] | None
    hash_n: NDArray[np.uint64] | None = None
    """Hash of the counts and the columns of each cell, if it was requested; see `hash_cells`."""

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """All columns, each of shape (n,)."""
        columns = [self.batch_n, self.label_n, *self.categorical_nc.T, *self.continuous_nc.T]
        return columns if self.size_factor_n is None else [*columns, self.size_factor_n]

    def take(self, index_n: NDArray[np.int64] | slice) -> "ColumnValues":
        """Return the rows `index_n`."""
        return ColumnValues(
            self.batch_n[index_n],
            self.label_n[index_n],
            self.categorical_nc[index_n],
            self.continuous_nc[index_n],
            None if self.size_factor_n is None else self.size_factor_n[index_n],
            None if self.hash_n is None else self.hash_n[index_n],
        )


def hash_cells(counts: CsrRows, columns: ColumnValues) -> NDArray[np.uint64]:
    """Return a hash of the counts and columns of each cell: equal cells have equal hashes in any store."""
    hash_n = hash_counts(counts)
    for column_n in columns.arrays:
        bits_n = column_n.astype(np.float32).view(np.uint32) if column_n.dtype.kind == "f" else column_n
        hash_n = hash_rows((hash_n + bits_n.astype(np.uint64)).view(np.int64))
    return hash_n


def open_data(
    source: "str | Path | AnnData | Sequence[str | Path | AnnData] | CellStore",
    *,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    unlabeled_category: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] = (),
    continuous_covariate_keys: Sequence[str] = (),
    allow_fractional: bool = False,
) -> CellData:
    """Open a store and the obs columns of a model. Argument names are those of ``SCVI.setup_anndata`` of scvi-tools.

    Parameters
    ----------
    source, layer, genes
        Arguments of `open_store`, or a store that it opened, which has more options. Files are not loaded.
    batch_key
        obs column of the batch covariate.
    labels_key
        obs column of cell labels. SCANVI learns them; SCVI uses them for ``dispersion="gene-label"``.
    unlabeled_category
        Value of `labels_key` in cells without a label.
    size_factor_key
        obs column of size factors above 0, in place of the total counts.
    categorical_covariate_keys, continuous_covariate_keys
        Further obs columns to correct for.
    allow_fractional
        Accept counts that are not whole from files, as in `open_store`; for an AnnData in memory they always are.

    Returns
    -------
    CellData

    Raises
    ------
    FileNotFoundError
        If `source` does not exist.
    ValueError
        If it cannot be read as raw counts, or a column is missing. A few rows all over the store are read, so that
        errors are reported now rather than after hours; all others are checked when they are read.

    Notes
    -----
    Categories are sorted by name. scvi-tools keeps the order of a pandas categorical, so that codes differ if that
    order is not the sorted one.
    """
    for name, keys in {"categorical": categorical_covariate_keys, "continuous": continuous_covariate_keys}.items():
        check_list(f"{name}_covariate_keys", keys)
    if isinstance(source, CellStore):
        if layer is not None or genes is not None or allow_fractional:
            raise ValueError(
                "a store that is open already is given: name layer, genes and allow_fractional to open_store instead"
            )
        store = source
    else:
        store = open_store(source, layer=layer, genes=genes, allow_fractional=allow_fractional)
    named = ColumnKeys(
        batch_key,
        labels_key,
        None if unlabeled_category is None else str(unlabeled_category),  # categories are names here
        size_factor_key,
        tuple(categorical_covariate_keys),
        tuple(continuous_covariate_keys),
    )
    return open_columns(store, named)


def open_columns(store: CellStore, keys: ColumnKeys) -> CellData:
    """Open the obs columns `keys` of an open store, and read a few rows all over it; see `open_data`."""
    data = CellData(
        store,
        store.categorical(keys.batch_key) if keys.batch_key else None,
        _labels(store, keys.labels_key, keys.unlabeled_category),
        tuple(store.categorical(key) for key in keys.categorical_covariate_keys),
        tuple(store.numeric(key) for key in keys.continuous_covariate_keys),
        store.numeric(keys.size_factor_key) if keys.size_factor_key else None,
        keys.unlabeled_category,
    )
    for start in np.unique(np.linspace(0, max(0, store.n_cells - _PROBE_CELLS), _PROBES).astype(int)):
        probe = (int(start), min(int(start) + _PROBE_CELLS, store.n_cells))
        store.read(*probe)
        data.columns_of([probe])
    return data


def minibatch(
    data: CellData,
    counts: CsrRows,
    columns: ColumnValues,
    row_n: NDArray[np.int64],
    *,
    epoch: int,
    step: int,
    micro_n: tuple[int, ...],
    micro_keys: tuple[int, ...],
    global_cells: int,
) -> MiniBatch:
    """Return counts and covariates of the cells `row_n` as a minibatch."""
    stored = data.posterior
    return MiniBatch(
        counts,
        data.n_genes,
        columns.batch_n,
        columns.label_n,
        columns.categorical_nc,
        columns.continuous_nc,
        counts.library_n() if stored is None else stored.library_n[row_n],
        columns.size_factor_n,
        row_n,
        epoch,
        step,
        micro_n,
        micro_keys,
        global_cells,
        columns.hash_n,
        None if stored is None else (stored.mean_nk[row_n], stored.variance_nk[row_n]),
    )


def check_counts(data: CellData, what: str) -> None:
    """Refuse minified cells without counts.

    Parameters
    ----------
    what
        What needs the counts.

    Raises
    ------
    ValueError
        If there are none.
    """
    if data.posterior is not None and not data.posterior.has_counts:
        raise ValueError(
            f"{what} needs counts, and the cells are minified: set an AnnData with counts as model.adata, or minify "
            "with minified_data_type='latent_posterior_parameters_with_counts'"
        )


def _labels(store: CellStore, key: str | None, unlabeled: str | None) -> Categorical | None:
    """Open the column of labels; `unlabeled` does not count as a label.

    As in scvi-tools 1.4.2, data/fields/_dataframe_field.py, the last category replaces it in the order of codes.
    """
    if key is None:
        if unlabeled is not None:
            raise ValueError(f"unlabeled_category={unlabeled!r} is given without labels_key: name the column of labels")
        return None
    column = store.categorical(key)
    return column if unlabeled is None else without_category(column, unlabeled)


def without_category(column: Categorical, name: str) -> Categorical:
    """Remove the category `name` from `column`, and give its code to the last one; its cells have no code then."""
    if name not in column.vocabulary:
        return column
    at, last = column.vocabulary.index(name), len(column.vocabulary) - 1
    vocabulary = list(column.vocabulary)
    vocabulary[at] = vocabulary[last]
    to_code = np.arange(last + 1, dtype=np.int32)
    to_code[last], to_code[at] = at, -1
    return replace(column, vocabulary=tuple(vocabulary[:last]), place=to_code[column.place])


def _describe(column: Categorical | None) -> dict[str, Any] | None:
    return None if column is None else {"key": column.key, "categories": list(column.vocabulary)}
