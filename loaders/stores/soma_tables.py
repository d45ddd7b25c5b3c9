"""The tables of cells and genes of a SOMA experiment.

Shape letters in this file
    n   cells (rows) of one read
    g   genes, by soma_joinid
    r   runs of cells with consecutive soma_joinids
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.anndata_layout import code_type
from dist_scvi.loaders.arrays.obs_columns import (
    Categorical,
    DamagedError,
    NotNumbersError,
    Numeric,
    PagedArray,
    categorical_from_codes,
    missing_column,
)
from dist_scvi.loaders.cell_store import check_var_names

_JOINID = "soma_joinid"
CELL_NAMES = ("obs_id", "observation_joinid", "cell_id", "barcode", "_index", "index")
"""Columns in which tiledbsoma.io, the CELLxGENE Census and others store the names of cells."""
_GENE_NAMES = ("var_id", "feature_id", "gene_id", "feature_name", "gene_name", "_index", "index")
Tables = Callable[[str, list[str], slice], Iterator[Any]]
"""Reads columns of a table in a range of soma_joinids, as Arrow tables; the first argument names them in errors."""


class SomaObs:
    """The obs of a SOMA experiment, or the rows of it that a filter selects, by increasing soma_joinid.

    Only the runs of the soma_joinids of the rows are kept in memory: a single run if there are no gaps.

    Parameters
    ----------
    experiment
        A ``tiledbsoma.Experiment``. A reference to it is kept because it closes its arrays when it is collected.
    tables
        Reads the rows of its obs that `value_filter` selects.
    names_column
        Column of names; by default a usual one, else the soma_joinid.

    Attributes
    ----------
    n_whole, span
        Number of all cells, selected or not, and their first and last soma_joinid.
    """

    def __init__(
        self,
        experiment: Any,
        tables: Tables,
        names_column: str | None,
        *,
        value_filter: str | None,
        uri: str,
    ) -> None:
        self._experiment, frame = experiment, experiment["obs"]
        if tuple(frame.index_column_names) != (_JOINID,):
            raise ValueError(f"obs of {uri} is indexed by {', '.join(frame.index_column_names)}: {_JOINID} is needed")
        self._frame, self._tables, self._uri, self.value_filter = frame, tables, uri, value_filter
        self._names = _name_column(frame, names_column, CELL_NAMES, f"obs of {uri}")
        self.columns = [name for name in frame.schema.names if name not in (_JOINID, self._names)]
        self.span: tuple[int, int] = frame.non_empty_domain()[0]
        self.n_whole = int(frame.count)
        # As many cells as soma_joinids in the span means that there are no gaps: obs need not be read to find runs.
        gapless = self.n_whole in (0, self.span[1] + 1 - self.span[0])
        whole = np.array([self.span[0]], dtype=np.int64), np.array([self.n_whole], dtype=np.int64)
        self._first_r, length_r = whole if gapless and value_filter is None else self._runs()
        self._row_r = np.append(0, np.cumsum(length_r))
        self.n_cells = int(self._row_r[-1])
        if self.n_whole and not self.n_cells:
            raise ValueError(
                f"obs_value_filter={self.value_filter!r} chooses none of the {self.n_whole} cells of {uri}"
            )

    def joinids(self, row_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the soma_joinid of each row."""
        run_n = np.searchsorted(self._row_r, row_n, side="right") - 1
        joinid_n: NDArray[np.int64] = row_n - self._row_r[run_n] + self._first_r[run_n]
        return joinid_n

    def rows(self, joinid_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each soma_joinid, or of the next one that is selected."""
        run_n = np.maximum(np.searchsorted(self._first_r, joinid_n, side="right") - 1, 0)
        row_n: NDArray[np.int64] = joinid_n - self._first_r[run_n] + self._row_r[run_n]
        return row_n.clip(self._row_r[run_n], self._row_r[run_n + 1])

    def categorical(self, key: str) -> Categorical:
        """Open a column as categories.

        A column that is not stored as categories is encoded now; with a filter, any column is.
        """
        if not _is_encoded(self._type(key)) or self.value_filter is not None:
            return self._encode(key)
        categories = self._frame.get_enumeration_values([key])[key].to_pylist()
        return categorical_from_codes(key, categories, PagedArray(_ObsArray(self, key, np.int32), self._uri))

    def numeric(self, key: str) -> Numeric:
        """Open a column as numbers."""
        kind = self._type(key)
        if _is_encoded(kind) or not np.issubdtype(kind.to_pandas_dtype(), np.number):
            raise NotNumbersError(
                f"obs column '{key}' of {self._uri} does not hold numbers: take it as a categorical covariate"
            )
        return Numeric(key, PagedArray(_ObsArray(self, key, np.float32), self._uri))

    def names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Return the names of the cells ``[start, stop)``."""
        name_n = self.joinids(np.arange(start, stop)).astype(object)
        for row_n, column in self.read(self._names, start, stop) if self._names else ():
            name_n[row_n - start] = column.to_pylist()
        return np.asarray([str(name) for name in name_n], dtype=object)

    def read(self, key: str, start: int, stop: int) -> Iterator[tuple[NDArray[np.int64], Any]]:
        """Yield the values of a column in rows ``[start, stop)`` in parts: the rows, and an Arrow array."""
        if start >= stop:
            return
        where, lacking = f"obs column '{key}' of {self._uri} at rows {start} to {stop - 1}", stop - start
        span = slice(*self.joinids(np.array([start, stop - 1])).tolist())
        for table in self._tables(where, [_JOINID, key], span):
            lacking -= len(table)
            yield self.rows(table.column(_JOINID).to_numpy()), table.column(key).combine_chunks()
        # TileDB returns fewer rows without an error if a fragment is lost.
        if lacking:
            raise DamagedError(f"{where} lacks {lacking} values: write the store again from its source")

    def _type(self, key: str) -> Any:
        if key not in self.columns:
            raise missing_column(key, self.columns, self._uri)
        return self._frame.schema.field(key).type

    def _runs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the runs of the selected soma_joinids: the first of each, and their lengths."""
        first_r, last_r = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        where = f"obs of {self._uri}"
        if self.value_filter is not None:
            where += f" with obs_value_filter={self.value_filter!r} and columns {', '.join(self._frame.schema.names)}"
        # Only the ends of the runs of each table are kept, so that memory does not grow with the number of cells.
        # Runs that continue in another table are joined below.
        for table in self._tables(where, [_JOINID], slice(None)):
            joinid_n = np.sort(table.column(_JOINID).to_numpy())
            gap_n = np.flatnonzero(np.diff(joinid_n) != 1)
            first_r += [joinid_n[:1], joinid_n[gap_n + 1]]
            last_r += [joinid_n[gap_n], joinid_n[-1:]]
        first, last = np.sort(np.concatenate(first_r)), np.sort(np.concatenate(last_r))
        gap = np.flatnonzero(first[1:] != last[:-1] + 1)
        first, last = np.append(first[:1], first[gap + 1]), np.append(last[gap], last[-1:])
        return first, last + 1 - first

    def _encode(self, key: str) -> Categorical:
        """Return a column with codes by the names of its values, in the smallest type."""
        # A dictionary that Arrow makes is valid for one table only, so that its codes are mapped by name.
        code_of: dict[str, int] = {}
        code_n = np.empty(self.n_cells, dtype=np.int8)
        for row_n, column in self.read(key, 0, self.n_cells):
            encoded = column if _is_encoded(column.type) else column.dictionary_encode()
            stored_n, names = _numbers(encoded), encoded.dictionary.to_pylist()
            place = np.full(len(names) + 1, -1)
            for code in np.unique(stored_n[stored_n >= 0]):
                name = names[code]
                if not (isinstance(name, float) and np.isnan(name)):
                    place[code] = code_of.setdefault(str(name), len(code_of))
            code_n = code_n.astype(code_type(len(code_of)), copy=False)
            code_n[row_n] = place[stored_n]
        return categorical_from_codes(key, list(code_of), code_n)


@dataclass(frozen=True, slots=True)
class _ObsArray:
    """A column of obs as an array of numbers or codes, for `PagedArray`."""

    obs: SomaObs
    name: str
    dtype: type[np.generic]

    @property
    def shape(self) -> tuple[int]:
        return (self.obs.n_cells,)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        values = np.empty(rows.stop - rows.start, dtype=self.dtype)
        for row_n, column in self.obs.read(self.name, rows.start, rows.stop):
            values[row_n - rows.start] = _numbers(column)
        return values


def _is_encoded(kind: Any) -> bool:
    return str(kind).startswith("dictionary")


def _numbers(column: Any) -> NDArray[Any]:
    """Return an Arrow array as numbers with NaN for missing values; a dictionary array as codes with -1 for these."""
    dense = column.indices.fill_null(-1) if _is_encoded(column.type) else column
    return np.asarray(dense.to_numpy(zero_copy_only=False))


def read_genes(
    frame: Any, tables: Tables, wanted: str | None, where: str
) -> tuple[NDArray[np.object_], NDArray[np.int64] | None]:
    """Return the names of the genes by increasing soma_joinid, and the index of the gene of each soma_joinid.

    The second is None if the soma_joinids have no gaps. It is -1 where there is no gene; its last element, also -1,
    stands for all larger soma_joinids.
    """
    column = _name_column(frame, wanted, _GENE_NAMES, where)
    if column is None:
        present = ", ".join(frame.schema.names)
        raise ValueError(
            f"{where} has no column of names that is known: set data.soma.var_names_column, present are {present}"
        )
    parts = [
        (table.column(_JOINID).to_numpy(), np.asarray(table.column(column).to_pylist(), dtype=object))
        for table in tables(where, [_JOINID, column], slice(None))
    ]
    joinid_g, names = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.argsort(joinid_g)
    place_g = np.full(joinid_g.max(initial=-1) + 2, -1)
    place_g[joinid_g[order]] = np.arange(len(order))
    return check_var_names(names[order], where), None if len(place_g) == len(order) + 1 else place_g


def read_gene_columns(frame: Any, var_names: NDArray[np.object_]) -> pd.DataFrame:
    """Return the columns of the genes, by increasing soma_joinid as in `read_genes`."""
    table: pd.DataFrame = frame.read().concat().to_pandas()
    return table.sort_values(_JOINID).drop(columns=_JOINID).set_axis(var_names)


def _name_column(table: Any, wanted: str | None, usual: Sequence[str], where: str) -> str | None:
    """Return the column that names cells or genes, None if there is none."""
    present = table.schema.names
    if wanted is not None and wanted not in present:
        raise ValueError(f"{where} has no column '{wanted}' to name its rows: present are {', '.join(present)}")
    return wanted or next((name for name in usual if name in present), None)
