"""An AnnData in memory, read the way a store is, so that both give the same minibatches."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.loaders.arrays.csr import keep_rows
from dist_scvi.loaders.arrays.csr_rows import CsrRows, GeneChoice, concatenate, from_arrays, has_fractions
from dist_scvi.loaders.arrays.obs_columns import (
    Categorical,
    NotNumbersError,
    Numeric,
    Ranges,
    categorical_from_codes,
    categorical_from_values,
    missing_column,
)
from dist_scvi.loaders.cell_store import check_not_empty, check_var_names

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


class MemoryStore:
    """The counts and obs of an AnnData object.

    Parameters
    ----------
    adata
        Counts in CSR, CSC or dense form; CSC and dense are converted once.
    layer
        Name in ``adata.layers``, or None for ``adata.X``.
    """

    def __init__(self, adata: "AnnData", *, layer: str | None = None) -> None:
        if adata.isbacked:
            raise ValueError(
                f"the AnnData is backed by {adata.filename}: give this path, which is read as it is needed"
            )
        self.uri, self.layer, self.chunk_cells, self.shuffled = "memory", layer, 1, False
        self._obs = adata.obs
        raw = {"raw/X": adata.raw.X} if adata.raw is not None else {}
        layers = {str(name): values for name, values in adata.layers.items()} | raw
        self._layers = list(layers)
        self._where = f"layers/{layer} of the AnnData" if layer else "X of the AnnData"
        if layer is not None and layer not in layers:
            raise ValueError(f"the AnnData has no layer '{layer}': present are {', '.join(layers) or 'none'}")
        matrix = layers[layer] if layer else adata.X
        if matrix is None:
            raise ValueError("the AnnData has no X: name the layer that holds the counts")
        self.n_cells = int(adata.n_obs)
        self.var_names = check_var_names((adata.raw if layer in raw else adata).var_names, "the AnnData")
        self._var = (adata.raw if layer in raw else adata).var
        check_not_empty(self.n_cells, len(self.var_names), self._where)
        self._matrix = sparse.csr_matrix(matrix)
        self.n_entries = int(self._matrix.nnz)
        self.fractional = has_fractions(self._matrix.data)
        if self.fractional:
            warnings.warn(
                f"{self._where} holds values that are not whole: they are used as they are, though SCVI expects raw "
                "counts; gene_likelihood='normal' is meant for values that were log-transformed",
                stacklevel=4,
            )

    def read(self, start: int, stop: int) -> CsrRows:
        """Read the counts of rows ``[start, stop)``; see `CellStore`."""
        indptr = self._matrix.indptr[start : stop + 1].astype(np.int64)
        span = slice(int(indptr[0]), int(indptr[-1]))
        return from_arrays(
            self._matrix.data[span],
            self._matrix.indices[span],
            indptr - indptr[0],
            n_genes=len(self.var_names),
            first_row=start,
            where=self._where,
            fractional=self.fractional,
        )

    def read_ranges(
        self, ranges: Ranges, order: NDArray[np.int64] | None = None, choice: GeneChoice | None = None
    ) -> CsrRows:
        """Read several ranges of rows; see `CellStore`."""
        rows = concatenate([self.read(start, stop) for start, stop in ranges])
        return keep_rows(rows.take(order), choice)

    def obs_columns(self) -> list[str]:
        """Names of the obs columns."""
        return [str(name) for name in self._obs.columns]

    def categorical(self, key: str) -> Categorical:
        """Open an obs column as categories; see `CellStore`."""
        self._check_column(key)
        column = self._obs[key]
        if column.dtype == "category":
            return categorical_from_codes(key, list(column.cat.categories), column.cat.codes.to_numpy())
        return categorical_from_values(key, column.array)

    def numeric(self, key: str) -> Numeric:
        """Open an obs column as numbers; see `CellStore`."""
        self._check_column(key)
        values = self._obs[key].to_numpy()
        if self._obs[key].dtype == "category" or not np.issubdtype(values.dtype, np.number):
            raise NotNumbersError(f"obs column '{key}' does not hold numbers: name it as a categorical covariate")
        return Numeric(key, values)

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names of the cells ``[start, stop)``."""
        return np.asarray([str(name) for name in self._obs.index[start:stop]], dtype=object)

    def read_var(self) -> "pd.DataFrame":
        """Columns of the genes; see `CellStore`."""
        var: pd.DataFrame = self._var.set_axis(self.var_names)
        return var

    def layers(self) -> list[str]:
        """Names of the layers."""
        return self._layers

    def packed_digest(self) -> str | None:
        """None: an AnnData in memory is not packed."""
        return None

    def close(self) -> None:
        """Nothing is held open."""

    def _check_column(self, key: str) -> None:
        if key not in self._obs.columns:
            raise missing_column(key, self.obs_columns(), "the AnnData")
