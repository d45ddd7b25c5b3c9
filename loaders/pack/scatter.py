"""The first pass of packing: reads the rows of a source sequentially and sorts them by destination."""

import os
import shutil
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.anndata_layout import code_type
from dist_scvi.loaders.arrays.obs_columns import Categorical, Numeric
from dist_scvi.loaders.cell_store import CellStore, open_column
from dist_scvi.loaders.pack.job import PackJob, gene_places, read_cells
from dist_scvi.loaders.pack.sorted_parts import MovingRows, destinations, settle_rows, write_part

_NAMED_CELLS = 64
"""Cells whose names are used to estimate the bytes of all names."""
_LONGER_NAME = 8


@dataclass(frozen=True, slots=True)
class Source:
    """An open store that is being packed, with the columns that are kept."""

    job: PackJob
    store: CellStore
    columns: tuple[Categorical | Numeric, ...]
    group: Categorical | None
    place_g: NDArray[np.int32]
    """Index of each gene in the result, -1 for a gene that is dropped."""


def open_columns(store: CellStore, job: PackJob) -> Source:
    """Open the columns of `store` that `job` keeps: as numbers if they are numeric, else as categories."""
    return Source(
        job,
        store,
        tuple(open_column(store, key) for key in job.obs_columns),
        store.categorical(job.group_by) if job.group_by is not None else None,
        gene_places(store, job.genes),
    )


def record_bytes(source: Source) -> int:
    """Return the approximate bytes that are kept of a row in addition to its counts."""
    rows = _moving_rows(source, 0, min(source.store.n_cells, _NAMED_CELLS), np.zeros(1, dtype=np.int64))
    return rows.records_n.itemsize + _LONGER_NAME


def count_groups(source: Source) -> NDArray[np.int64]:
    """Count the rows of each group before each piece, and after the last: shape (pieces + 1, groups).

    Groups are the categories of the column to group by, in order, and one for the rows without a category.
    """
    job = source.job
    n_groups = len(source.group.vocabulary) + 1 if source.group else 1
    counts = [
        np.bincount(_groups(source, *job.piece_span(number)), minlength=n_groups) for number in range(job.n_pieces)
    ]
    return np.array(list(accumulate(counts, initial=np.zeros(n_groups, dtype=np.int64))))


def write_piece(
    source: Source,
    folder: Path,
    number: int,
    *,
    before_g: NDArray[np.int64],
    size_g: NDArray[np.int64],
    part_bytes: int,
) -> int:
    """Write the rows of piece `number` to parts in a folder of that name, and return their number.

    Parameters
    ----------
    folder
        Folder of the pieces; the folder of this piece appears when all its parts are written.
    before_g, size_g
        Rows of each group before this piece, and in total.
    part_bytes
        Bytes of rows collected before they are sorted and written.
    """
    job = source.job
    aside = folder / f".{number:06d}.{os.getpid()}"
    # The rename at the end marks the piece as finished; a killed process leaves a hidden folder, which is removed.
    low, high = job.piece_span(number)
    code_n = _groups(source, low, high)
    place_n = destinations(code_n, before_g, size_g, job.seed)
    step = read_cells(source.store)
    pending: list[MovingRows] = []
    n_parts = 0
    for start in range(low, high, step):
        stop = min(start + step, high)
        pending.append(_moving_rows(source, start, stop, place_n[start - low : stop - low]))
        if stop == high or sum(rows.nbytes for rows in pending) >= part_bytes:
            part = aside / f"{n_parts:06d}"
            write_part(part, pending, n_cells=job.source.n_cells, block_cells=job.block_cells)
            n_parts += 1
    aside.rename(folder / f"{number:06d}")
    return high - low


def list_parts(folder: Path) -> list[Path]:
    """Return the parts of all finished pieces in `folder`."""
    return sorted(part for piece in folder.iterdir() if not piece.name.startswith(".") for part in piece.iterdir())


def unfinished_pieces(folder: Path, job: PackJob) -> list[int]:
    """Return the pieces that are not written yet, and remove incomplete ones."""
    for aside in folder.glob(".*"):
        shutil.rmtree(aside)
    return [number for number in range(job.n_pieces) if not (folder / f"{number:06d}").exists()]


def _moving_rows(source: Source, start: int, stop: int, place_n: NDArray[np.int64]) -> MovingRows:
    counts, total_n = settle_rows(source.store.read(start, stop), source.place_g, len(source.job.genes))
    fields: dict[str, NDArray[Any]] = {
        "destination": place_n,
        "length": np.diff(counts.indptr).astype(np.uint32),
        "total": total_n,
        "row": np.arange(start, stop),
        "name": np.char.encode(source.store.obs_names(start, stop).astype(str), "utf-8"),
    }
    fields |= {str(number): _values(column, start, stop) for number, column in enumerate(source.columns)}
    records_n = np.empty(stop - start, dtype=[(name, values.dtype) for name, values in fields.items()])
    for name, values in fields.items():
        records_n[name] = values
    return MovingRows(counts, records_n)


def _values(column: Categorical | Numeric, start: int, stop: int) -> NDArray[Any]:
    if isinstance(column, Categorical):
        return column.codes(start, stop).astype(code_type(len(column.vocabulary)))
    return np.asarray(column.stored[start:stop])


def _groups(source: Source, start: int, stop: int) -> NDArray[np.int64]:
    if source.group is None:
        return np.zeros(stop - start, dtype=np.int64)
    code_n = source.group.codes(start, stop).astype(np.int64)
    return np.where(code_n < 0, len(source.group.vocabulary), code_n)
