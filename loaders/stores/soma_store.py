"""TileDB-SOMA experiments, read without conversion: counts by slices of cells, obs by pages, all at one timestamp.

Shape letters in this file
    n   cells (rows) of one read
    e   their stored entries
    g   genes, by soma_joinid
    r   runs: of cells with consecutive soma_joinids, or of entries of one cell
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.csr import keep_rows
from dist_scvi.loaders.arrays.csr_rows import CsrRows, GeneChoice, concatenate, from_arrays, gene_type
from dist_scvi.loaders.arrays.kernels import repeated_gene, settle
from dist_scvi.loaders.arrays.obs_columns import Categorical, DamagedError, Numeric, Ranges
from dist_scvi.loaders.cell_store import check_not_empty
from dist_scvi.loaders.stores.soma_kernels import copy_runs, find_runs
from dist_scvi.loaders.stores.soma_tables import SomaObs, Tables, read_gene_columns, read_genes

_BUFFER_BYTES = 4 << 20
"""Bytes of a column in one result of TileDB; its default of 1 GiB takes more time for the same entries."""
_READERS = 4
_SLICE_CELLS = 4096
_SLICE_ENTRIES = 1 << 23
"""Most entries of a slice, if the tiles of the store allow it."""
_NOT_WANTED, _NO_CELL = -1, -2
_SILENT_CELLS = 64
"""Consecutive cells without any entry above which a part of the store counts as lost."""


@dataclass(frozen=True, slots=True)
class SomaOptions:
    """Which part of an experiment is read, and the settings of TileDB."""

    measurement: str = "RNA"
    var_names_column: str | None = None
    """Column of var that names the genes; by default ``var_id``, ``feature_id`` or another usual one."""
    obs_names_column: str | None = None
    """Column of obs that names the cells; by default ``obs_id`` or another usual one, else the soma_joinid."""
    obs_value_filter: str | None = None
    """Cells to read, as in ``"tissue == 'lung' and is_primary_data == True"``."""
    timestamp_ms: int | None = None
    """Timestamp at which all arrays are read, in ms since 1970; by default the time of opening."""
    tiledb_config: Mapping[str, str] = field(default_factory=dict)
    """Settings of TileDB, such as ``vfs.s3.region`` and ``vfs.s3.endpoint_override``."""


_DEFAULT = SomaOptions()
_Narrow = tuple[NDArray[np.int64], list[tuple[NDArray[np.int32], NDArray[Any], NDArray[Any]]]]
"""Entries of each row, and the entries in the order of TileDB: runs of one row, counts, genes."""


def is_soma(path: Path) -> bool:
    """Return whether a local folder is a TileDB group, as a SOMA experiment is."""
    return (path / "__group").is_dir() or (path / "__tiledb_group.tdb").is_file()


def open_soma(uri: str, *, layer: str | None = None, options: SomaOptions = _DEFAULT) -> "SomaStore":
    """Open a SOMA experiment.

    Parameters
    ----------
    uri
        A local folder, or a URI that TileDB reads.
    layer
        Name in ``X`` of the measurement; by default the only one, or ``raw``.

    Raises
    ------
    ValueError
        If tiledbsoma is not installed, `uri` is not an experiment, a name in `layer` or `options` is not found, or a
        part of the store is lost.
    """
    try:
        import tiledbsoma
    except ImportError as error:
        raise ValueError(f"{uri} is TileDB-SOMA, which needs another package: pip install dist-scvi[soma]") from error
    config: dict[str, str | float] = {"soma.init_buffer_bytes": str(_BUFFER_BYTES), **options.tiledb_config}
    moment = f" as of timestamp_ms={options.timestamp_ms}" if options.timestamp_ms else ""
    with _naming_errors(f"the TileDB-SOMA experiment {uri}{moment}"):
        context = tiledbsoma.SOMATileDBContext(tiledb_config=config)
        experiment: Any = tiledbsoma.open(uri, context=context, tiledb_timestamp=options.timestamp_ms)
        if experiment.soma_type != "SOMAExperiment" or not {"obs", "ms"} <= set(experiment.keys()):
            raise ValueError(f"{uri} is a {experiment.soma_type}: an experiment with obs and ms is needed")
        return SomaStore(experiment, uri=uri, layer=layer, options=options)


class SomaStore:
    """The counts and obs of a SOMA experiment.

    Rows are the cells that `SomaOptions.obs_value_filter` selects, by increasing soma_joinid. Only the runs of their
    soma_joinids are kept in memory: a single run if there are no gaps.

    Parameters
    ----------
    experiment
        A ``tiledbsoma.Experiment``, opened at the timestamp to read.
    """

    fractional = False
    timestamp_ms: int
    """Timestamp of all reads. With the same value in `SomaOptions`, other processes and later runs read the same."""
    n_entries: int
    """Entries written, including explicit zeros and entries that were overwritten or deleted. With a filter it is the
    number for the whole matrix times the share of the selected cells. For an exact number TileDB reads all counts."""

    def __init__(self, experiment: Any, *, uri: str, layer: str | None, options: SomaOptions) -> None:
        self.uri, self.layer, self.timestamp_ms = uri, layer, int(experiment.tiledb_timestamp_ms)
        self.shuffled, self._experiment = False, experiment
        if options.measurement not in experiment["ms"]:
            present = ", ".join(sorted(experiment["ms"].keys())) or "none"
            raise ValueError(
                f"{uri} has no measurement '{options.measurement}': set data.soma.measurement to {present}"
            )
        measurement = experiment["ms"][options.measurement]
        name, self._layers = _choose_layer(sorted(measurement["X"].keys()), layer, uri)
        self._where = f"X/{layer} of {uri}" if layer else f"X of {uri}"
        self._x = measurement["X"][name]
        if self._x.soma_type != "SOMASparseNDArray":
            raise ValueError(f"{self._where} is a {self._x.soma_type}: write it with X_kind=tiledbsoma.SparseNDArray")
        obs, var = experiment["obs"], measurement["var"]
        # TileDB ignores a fragment that is not committed, and its cells would read as zeros.
        for array in (obs, var, self._x):
            _check_committed(array.uri, self.timestamp_ms)
        value_filter = options.obs_value_filter
        tables = _reader(obs, value_filter)
        self._obs = SomaObs(experiment, tables, options.obs_names_column, value_filter=value_filter, uri=uri)
        self.n_cells = self._obs.n_cells
        self.var_names, self._place_g = read_genes(var, _reader(var, None), options.var_names_column, f"var of {uri}")
        self.read_var = partial(read_gene_columns, var, self.var_names)
        self._count_type: Any = np.uint16
        self._gene_type = gene_type(len(self.var_names))
        check_not_empty(self.n_cells, len(self.var_names), self._where)
        self._silent_cells = min(_SILENT_CELLS, self.n_cells)
        self._check_ends()
        mean_entries = _entries_written(self._x) / self._obs.n_whole
        self.n_entries = round(mean_entries * self.n_cells)
        tile_cells, self._slice_cells = _read_sizes(self._x, mean_entries, len(self.var_names))
        self.chunk_cells = min(tile_cells, self.n_cells)
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="soma")

    def read(self, start: int, stop: int) -> CsrRows:
        """Read the counts of rows ``[start, stop)``; see `CellStore`."""
        return self.read_ranges([(start, stop)])

    def read_ranges(
        self, ranges: Ranges, order: NDArray[np.int64] | None = None, choice: GeneChoice | None = None
    ) -> CsrRows:
        """Read several ranges of rows in parallel; see `CellStore`.

        TileDB decompresses a whole tile for any of its rows. So all rows of one stretch of tiles are read by one query.
        """
        row_n = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(*span) for span in ranges)])
        if not len(row_n):
            return CsrRows(np.zeros(0, np.uint8), np.zeros(0, self._gene_type), np.zeros(1, np.int64))
        stretch_n = self._obs.joinids(row_n) // self._slice_cells
        slices = np.split(row_n, np.flatnonzero(np.diff(stretch_n)) + 1)
        rows = self._placed(list(self._pool.map(self._read_narrow, slices)))
        # The slow reader repeats the whole read. Once it has found a count above uint16, later reads use uint32 from
        # the start, so that a store with large counts is not read twice each time.
        if rows is None:
            rows = concatenate(list(self._pool.map(self._read_closely, slices)))
            self._count_type = rows.counts_e.dtype if rows.counts_e.dtype == np.uint32 else self._count_type
        edge = np.concatenate([[-1], np.flatnonzero(np.diff(rows.indptr)), [len(row_n)]])
        # TileDB returns no entries for a lost fragment, as for cells without counts. Many such cells in a row are
        # reported instead of being returned as zeros.
        widest = int(np.argmax(np.diff(edge)))
        if edge[widest + 1] - edge[widest] > self._silent_cells:
            raise self._silence(*row_n[[edge[widest] + 1, edge[widest + 1] - 1]])
        return keep_rows(rows.take(order), choice)

    def obs_columns(self) -> list[str]:
        """Return the names of the obs columns, in the order of the store."""
        return self._obs.columns

    def categorical(self, key: str) -> Categorical:
        """Open an obs column as categories, with a filter only those of the selected cells; see `CellStore`."""
        return self._obs.categorical(key)

    def numeric(self, key: str) -> Numeric:
        """Open an obs column as numbers; see `CellStore`."""
        return self._obs.numeric(key)

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Return the names of the cells ``[start, stop)``."""
        return self._obs.names(start, stop)

    def layers(self) -> list[str]:
        """Names of the layers, except the one that is read by default."""
        return self._layers

    def packed_digest(self) -> str | None:
        """Return None: a TileDB-SOMA store is never a packed store."""
        return None

    def limits(self) -> tuple[str, ...]:
        """Return an empty tuple; see `CellStore`."""
        return ()

    def close(self) -> None:
        """Close the experiment."""
        self._pool.shutdown()
        self._experiment.close()

    def _entries(self, row_n: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Any]]:
        """Yield all entries from the first to the last of some rows: soma_joinid of the cell, gene, and value."""
        # A contiguous slice of soma_joinids rather than a list of points, which TileDB reads about four times as slowly
        # (8,200 against 30,500 cells per second, measured). Entries of rows in between are dropped later.
        first, last = self._obs.joinids(row_n[[0, -1]]).tolist()
        with _naming_errors(f"{self._where} at rows {row_n[0]} to {row_n[-1]}"):
            for table in self._x.read((slice(first, last),)).tables():
                cell_e, gene_e, value_e = (column.to_numpy() for column in table.columns)
                yield cell_e, gene_e if self._place_g is None else self._place_g.take(gene_e, mode="clip"), value_e

    def _places(self, row_n: NDArray[np.int64]) -> tuple[int, NDArray[np.int32]]:
        """Return the first soma_joinid, and for each one up to the last its index in `row_n`.

        Others are `_NOT_WANTED` if they are cells of obs that are not requested, or `_NO_CELL` if obs has no such cell.
        With a filter, which hides cells of obs, all of them are `_NOT_WANTED`.
        """
        all_n = self._obs.joinids(np.arange(row_n[0], row_n[-1] + 1))
        unknown = _NO_CELL if self._obs.value_filter is None else _NOT_WANTED
        place_n = np.full(all_n[-1] + 1 - all_n[0], unknown, dtype=np.int32)
        place_n[all_n - all_n[0]] = _NOT_WANTED
        place_n[all_n[row_n - row_n[0]] - all_n[0]] = np.arange(len(row_n))
        return int(all_n[0]), place_n

    def _read_narrow(self, row_n: NDArray[np.int64]) -> "_Narrow | None":
        """Read some rows by one query, or return None if they need `_read_closely`."""
        if self.fractional:
            return None
        first, place_n = self._places(row_n)
        length_n, parts = np.zeros(len(row_n), dtype=np.int64), []
        for cell_e, gene_e, value_e in self._entries(row_n):
            counts_e, genes_e = np.empty(len(cell_e), self._count_type), np.empty(len(cell_e), self._gene_type)
            run_r = find_runs(cell_e, first, place_n, length_n)
            sound = value_e.dtype.kind in "iuf" and settle(value_e, counts_e, np.iinfo(self._count_type).max)
            if not sound or not settle(gene_e, genes_e, len(self.var_names) - 1) or (run_r[:, 0] == _NO_CELL).any():
                return None
            parts.append((run_r, counts_e, genes_e))
        return length_n, parts

    def _placed(self, slices: "list[_Narrow | None]") -> CsrRows | None:
        """Copy the entries of all slices to their rows, or return None if a gene occurs twice in a row."""
        found = [part for part in slices if part is not None]
        if len(found) < len(slices):
            return None
        indptr = np.append(0, np.cumsum(np.concatenate([length_n for length_n, _ in found])))
        counts_e, genes_e = np.empty(indptr[-1], self._count_type), np.empty(indptr[-1], self._gene_type)
        begins = np.append(0, np.cumsum([len(length_n) for length_n, _ in found]))

        # Slices own disjoint ranges of rows, so that threads write to counts_e and genes_e without a lock.
        def place(begin: int, end: int, part: _Narrow) -> bool:
            cursor_n = indptr[begin:end].copy()
            for run_r, from_counts_e, from_genes_e in part[1]:
                copy_runs(run_r, from_counts_e, from_genes_e, cursor_n, counts_e, genes_e)
            return int(repeated_gene(genes_e, indptr[begin : end + 1], len(self.var_names))) < 0

        sound = all(list(self._pool.map(place, begins[:-1], begins[1:], found)))
        return CsrRows(counts_e, genes_e, indptr) if sound else None

    def _read_closely(self, row_n: NDArray[np.int64]) -> CsrRows:
        """Read the same rows with large counts accepted; errors name the row."""
        all_n = np.arange(row_n[0], row_n[-1] + 1)
        first, place_n = self._places(all_n)
        cell_e, gene_e, value_e = (np.concatenate(column) for column in zip(*self._entries(row_n), strict=True))
        place_e = place_n[cell_e - first]
        if (place_e == _NO_CELL).any():
            raise _stray_cell(cell_e[np.argmax(place_e == _NO_CELL)], self._where)
        order = np.lexsort((gene_e, place_e))[np.count_nonzero(place_e < 0) :]
        indptr = np.searchsorted(place_e[order], np.arange(len(all_n) + 1))
        place: dict[str, Any] = {"n_genes": len(self.var_names), "first_row": int(row_n[0]), "where": self._where}
        rows = from_arrays(value_e[order], gene_e[order], indptr, **place, fractional=self.fractional)
        return rows.take(row_n - row_n[0])

    def _check_ends(self) -> None:
        """Refuse counts that end before the last cell of obs, or contain cells after it."""
        first, last = self._x.non_empty_domain()[0]
        low, high = self._obs.span
        for begin, end in ((0, low - 1), (high + 1, last)):
            for table in self._x.read((slice(begin, end),)).tables() if begin <= end else ():
                if len(table):
                    raise _stray_cell(table.column(0)[0], self._where)
        before, behind = self._obs.rows(np.array([first, last + 1])) if _entries_written(self._x) else (0, 0)
        for begin, end in ((0, before), (behind, self.n_cells)):
            if end - begin >= self._silent_cells:
                raise self._silence(begin, end - 1)

    def _silence(self, first: int, last: int) -> DamagedError:
        joinids = self._obs.joinids(np.array([first, last]))
        return DamagedError(
            f"{self._where} holds nothing at rows {first} to {last} (soma_joinid {joinids[0]} to {joinids[1]}): a "
            "fragment is lost, or these cells were not measured; restore it from a copy, or leave the cells out with "
            "data.soma.obs_value_filter"
        )


def _reader(frame: Any, value_filter: str | None) -> Tables:
    def tables(what: str, columns: list[str], span: slice) -> Iterator[Any]:
        with _naming_errors(what):
            yield from frame.read((span,), column_names=columns, value_filter=value_filter)

    return tables


def _choose_layer(present: Sequence[str], wanted: str | None, uri: str) -> tuple[str, list[str]]:
    """Return the layer to read, and the names of those that are not read by default."""
    default = present[0] if len(present) == 1 else "raw"
    others = [name for name in present if name != default]
    name = wanted or default
    if name not in present:
        listed = ", ".join([*others, *(set(present) - set(others))]) or "none"
        raise ValueError(f"{uri} has no layer '{name}' in X: present are {listed}; name one with data.layer")
    return name, others


def _entries_written(x: Any) -> int:
    # The public nnz of tiledbsoma 2.3 reads all of the array: 4 s for 60,000 cells.
    return int(x._handle.fragment_cell_count())  # noqa: SLF001


def _read_sizes(x: Any, mean_entries: float, n_genes: int) -> tuple[int, int]:
    """Return the number of rows that are decompressed together, and the number that one query reads.

    Entries are stored in squares of ``tile`` cells by ``tile`` genes; each is cut after every `capacity` entries.
    """
    schema = x.schema_config_options()
    square_cells, square_genes = (int(dim["tile"]) for dim in json.loads(schema.dims).values())
    entries_in_square = mean_entries / -(-n_genes // square_genes)
    chunk_cells = int(min(square_cells, max(1, schema.capacity / entries_in_square)))
    unit = square_cells if square_cells * mean_entries <= _SLICE_ENTRIES else chunk_cells
    return chunk_cells, unit * max(1, int(min(_SLICE_CELLS, _SLICE_ENTRIES / mean_entries)) // unit)


def _check_committed(uri: str, timestamp_ms: int) -> None:
    """Refuse a local array with a fragment that is not committed: TileDB would ignore it without an error."""
    path = Path(uri.removeprefix("file://"))
    commits = path / "__commits"
    consolidated = b"".join(file.read_bytes() for file in sorted(commits.glob("*.con")))
    for fragment in sorted((path / "__fragments").glob("__*")):
        written_ms = int(fragment.name.split("_")[3])
        committed = (commits / f"{fragment.name}.wrt").exists() or fragment.name.encode() in consolidated
        if written_ms <= timestamp_ms and not committed:
            lost = f"its write has not ended, or __commits/{fragment.name}.wrt is lost"
            raise DamagedError(f"{fragment} is not committed: {lost}; restore it from a copy or write the store again")


def _stray_cell(joinid: object, where: str) -> DamagedError:
    return DamagedError(
        f"{where} holds an entry of soma_joinid {joinid}, which obs lacks: a fragment of obs is lost, or an append has "
        "not ended; restore it from a copy or write the store again"
    )


@contextmanager
def _naming_errors(what: str) -> Iterator[None]:
    """Raise errors of TileDB as `DamagedError`, with the name of the array that was read."""
    from tiledbsoma import SOMAError

    try:
        yield
    except (SOMAError, RuntimeError) as error:
        cause = " ".join(str(error).split("\n\nAt:")[0].split())
        raise DamagedError(
            f"{what} cannot be read ({cause}): if a file is missing or damaged, restore it from a copy or write the "
            "store again"
        ) from error
