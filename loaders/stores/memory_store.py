"""An AnnData in memory, read like a store on disk, so that both produce the same minibatches."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.loaders.arrays.csr import keep_rows
from dist_scvi.loaders.arrays.csr_rows import (
    CsrRows,
    GeneChoice,
    check_numbers,
    concatenate,
    from_arrays,
    has_fractions,
)
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


class FrameTable:
    """The obs of an AnnData object, with the methods of `ObsTable`."""

    def __init__(self, obs: pd.DataFrame) -> None:
        self._obs, self.n_cells = obs, len(obs)

    def columns(self) -> list[str]:
        """Return the names of the columns."""
        return [str(name) for name in self._obs.columns]

    def categorical(self, key: str) -> Categorical:
        """Open a column as categories; see `CellStore`."""
        column = self._column(key)
        if isinstance(column.dtype, pd.CategoricalDtype):
            return categorical_from_codes(key, list(column.cat.categories), column.cat.codes.to_numpy())
        return categorical_from_values(key, column.array)

    def numeric(self, key: str) -> Numeric:
        """Open a column as numbers; see `CellStore`."""
        column = self._column(key)
        if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
            raise NotNumbersError(f"obs column '{key}' does not hold numbers: name it as a categorical covariate")
        nullable = isinstance(column.dtype, pd.api.extensions.ExtensionDtype)
        return Numeric(key, column.to_numpy(np.float64, na_value=np.nan) if nullable else column.to_numpy())

    def names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Return the names of the cells ``[start, stop)``."""
        return np.asarray([str(name) for name in self._obs.index[start:stop]], dtype=object)

    def _column(self, key: str) -> pd.Series:
        if key not in self._obs.columns:
            raise missing_column(key, self.columns(), "the AnnData")
        column = self._obs[key]
        if not isinstance(column, pd.Series):
            raise ValueError(f"the AnnData has {column.shape[1]} obs columns '{key}': rename all but one")  # noqa: TRY004
        return column


class MemoryStore:
    """The counts and obs of an AnnData object.

    Parameters
    ----------
    adata
        Counts in CSR, CSC or dense form; CSC and dense are converted once.
    layer
        Name in ``adata.layers``, ``raw/X``, or None for ``adata.X``.

    Raises
    ------
    ValueError
        If the counts or obs are not in memory, or are missing.
    """

    uri = "memory"
    chunk_cells = 1
    shuffled = False

    def __init__(self, adata: "AnnData", *, layer: str | None = None) -> None:
        self.layer = layer
        raw = {"raw/X": adata.raw.X} if adata.raw is not None else {}
        layers: dict[str, Any] = {str(name): values for name, values in adata.layers.items()} | raw
        self._layers = list(layers)
        self._where = f"layers/{layer} of the AnnData" if layer else "X of the AnnData"
        if layer is not None and layer not in layers:
            raise ValueError(f"the AnnData has no layer '{layer}': present are {', '.join(layers) or 'none'}")
        matrix = layers[layer] if layer else adata.X
        if matrix is None:
            raise ValueError("the AnnData has no X: name the layer that holds the counts")
        check_in_memory(matrix, self._where)
        if not isinstance(adata.obs, pd.DataFrame):
            raise ValueError(f"obs of the AnnData is a {type(adata.obs).__name__}, not in memory: {_GIVE_PATH}")  # noqa: TRY004
        self._obs = FrameTable(adata.obs)
        self.n_cells = int(adata.n_obs)
        self.var_names = check_var_names((adata.raw if layer in raw else adata).var_names, "the AnnData")
        self._var = (adata.raw if layer in raw else adata).var
        check_not_empty(self.n_cells, len(self.var_names), self._where)
        check_numbers(matrix.dtype, self._where)
        self._matrix = _compressed(matrix)
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
        """Return the names of the obs columns."""
        return self._obs.columns()

    def categorical(self, key: str) -> Categorical:
        """Open an obs column as categories; see `CellStore`."""
        return self._obs.categorical(key)

    def numeric(self, key: str) -> Numeric:
        """Open an obs column as numbers; see `CellStore`."""
        return self._obs.numeric(key)

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Return the names of the cells ``[start, stop)``."""
        return self._obs.names(start, stop)

    def read_var(self) -> pd.DataFrame:
        """Columns of the genes; see `CellStore`."""
        var: pd.DataFrame = self._var.set_axis(self.var_names)
        return var

    def layers(self) -> list[str]:
        """Return the names of the layers."""
        return self._layers

    def packed_digest(self) -> str | None:
        """Return None: an AnnData in memory is never a packed store."""
        return None

    def limits(self) -> tuple[str, ...]:
        """Return an empty tuple; see `CellStore`."""
        return ()

    def close(self) -> None:
        """Do nothing: no file is open."""


_GIVE_PATH = (
    "give the path of the file or folder it was read from, which is read as it is needed, or load it with "
    "adata.to_memory()"
)


def check_in_memory(matrix: object, where: str) -> None:
    """Refuse counts that are an array of another library, such as dask or h5py.

    Raises
    ------
    ValueError
        If `matrix` is neither a numpy array nor a scipy sparse matrix.
    """
    if not isinstance(matrix, np.ndarray) and not sparse.issparse(matrix):
        kind = f"{type(matrix).__module__.partition('.')[0]} {type(matrix).__name__}"
        raise ValueError(f"{where} is a {kind}, not in memory: {_GIVE_PATH}")


def _compressed(matrix: Any) -> Any:
    """Return a matrix in CSR form; dense ones get a type and byte order that scipy supports (not float16) first."""
    if sparse.issparse(matrix):
        by_rows: Any = matrix
        return by_rows.tocsr()
    kind: Any = matrix.dtype.newbyteorder("=")
    return sparse.csr_matrix(matrix.astype(np.float32 if kind == np.float16 else kind, copy=False))
