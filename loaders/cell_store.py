"""`CellStore`, the protocol of all stores of cells, and the checks that all of them use."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.csr_rows import CsrRows, GeneChoice
from dist_scvi.loaders.arrays.obs_columns import Categorical, NotNumbersError, Numeric, Ranges
from dist_scvi.loaders.name_lookup import describe_missing, symbols_in


@runtime_checkable
class CellStore(Protocol):
    """Raw counts and obs of many cells, read by row range.

    A store is opened once per process and never loaded as a whole. It refuses data that it cannot read correctly: see
    `read`.
    """

    uri: str
    """Path or URL of the store, for messages and records."""
    n_cells: int
    n_entries: int
    """Stored entries of the whole count matrix."""
    var_names: NDArray[np.object_]
    """Gene names, shape (g,), unique."""
    chunk_cells: int
    """Rows that are decompressed together: reading fewer costs as much."""
    shuffled: bool
    """Whether the rows are in a random order, as in a packed store."""
    layer: str | None
    """Name of the layer that is read, None for ``X``."""
    fractional: bool
    """Whether counts that are not whole are accepted; all counts are float32 then. Otherwise such counts are refused.
    Set it before the first read."""

    def read(self, start: int, stop: int) -> CsrRows:
        """Read the counts of rows ``[start, stop)``.

        Raises
        ------
        ValueError
            If the rows are damaged or are not raw counts; the message names store, array, row, and what to do.
        """
        ...

    def read_ranges(
        self, ranges: Ranges, order: NDArray[np.int64] | None = None, choice: GeneChoice | None = None
    ) -> CsrRows:
        """Read the rows of each range ``[start, stop)``; ranges are in increasing order and do not overlap.

        Stores that can read the ranges in parallel, directly to their places. Use this method to read a window.

        Parameters
        ----------
        order
            Which of the rows of all ranges, joined, to return, in this order; a row may occur several times. None for
            all in the order of the store.
        choice
            Genes to keep; None for all. Damage of the other genes may not be detected.
        """
        ...

    def obs_columns(self) -> list[str]:
        """Names of the obs columns."""
        ...

    def categorical(self, key: str) -> Categorical:
        """Open an obs column as categories; numbers and booleans are taken by their names."""
        ...

    def numeric(self, key: str) -> Numeric:
        """Open an obs column as numbers."""
        ...

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names of the cells ``[start, stop)``."""
        ...

    def read_var(self) -> pd.DataFrame:
        """Read the columns of the genes, such as their symbols: a row for each of `var_names`, in this order."""
        ...

    def layers(self) -> list[str]:
        """Names of the layers, of which one can be read instead of ``X``."""
        ...

    def packed_digest(self) -> str | None:
        """Return the digest of the seed and the sums that `pack_store` wrote; None for a store that is not packed."""
        ...

    def limits(self) -> tuple[str, ...]:
        """Return the kinds of damage that cannot be detected in this store, such as absent chunks read as zeros."""
        ...

    def close(self) -> None:
        """Close open files."""
        ...


def open_column(store: CellStore, key: str) -> Categorical | Numeric:
    """Open an obs column as numbers if it holds numbers, else as categories.

    Raises
    ------
    ValueError
        If it is missing or cannot be read.
    """
    try:
        return store.numeric(key)
    except NotNumbersError:
        return store.categorical(key)


def check_var_names(names: Any, where: str) -> NDArray[np.object_]:
    """Return gene names as an array of strings.

    Raises
    ------
    ValueError
        If two genes share a name.
    """
    var_names = np.asarray([str(name) for name in names], dtype=object)
    unique, count = np.unique(var_names, return_counts=True)
    if len(unique) < len(var_names):
        twice = ", ".join(unique[count > 1][:3])
        raise ValueError(
            f"{where} has {len(var_names) - len(unique)} duplicated gene names ({twice}): genes are identified by "
            "name, call adata.var_names_make_unique() and save again"
        )
    return var_names


def join_var(stores: Sequence[CellStore]) -> pd.DataFrame:
    """Return the columns of the genes of several stores, each gene once, from the first store that has it."""
    joined = pd.concat([store.read_var() for store in stores])
    return joined[~joined.index.duplicated()]


def describe_missing_genes(genes: Iterable[str], stores: Sequence[CellStore]) -> str:
    """Return a text with the first of `genes`, none of which is in `stores`, and the most similar existing genes.

    Names that differ in case or version suffix and symbols in columns of var are found; see `nearest_names`.
    """
    var = join_var(stores)
    return describe_missing(genes, [str(name) for name in var.index], symbols_in(var))


def check_not_empty(n_cells: int, n_genes: int, where: str) -> None:
    """Refuse a matrix without cells or genes.

    Raises
    ------
    ValueError
        If there is nothing to train on.
    """
    if n_cells == 0 or n_genes == 0:
        raise ValueError(
            f"{where} is empty ({n_cells} cells x {n_genes} genes): at least one cell and one gene are needed"
        )
