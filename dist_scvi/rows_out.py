"""Answers with a row for each cell, written to a Zarr folder that anndata opens, in memory that does not grow.

Shape letters in this file
    n   cells
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import zarr
from numpy.typing import NDArray

from dist_scvi.loaders.layout import finish_table, new_array, new_root, new_strings
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.stream import ahead, rows_minibatch

from .atlas import SOURCE_ROW
from .folder import put_in_place
from .selection import Selection
from .world import World

_CHUNK_CELLS = 1024
_CHUNK_BYTES, _CHUNK_ROWS = 1 << 22, 4096
_SHARD_CHUNKS = 16
_SHARDS = 16
"""A file has as many shards, if it has the rows, so that as many workers have something to do."""

Rows = Mapping[str, NDArray[Any]]
"""Arrays with a row for each cell, by their place in an AnnData: ``X``, ``obsm/KEY``, ``layers/KEY``, ``obs/KEY``."""
Answers = Callable[[MiniBatch], Rows]
"""What is computed of the cells of a minibatch."""


def answer_rows(
    selection: Selection,
    answers: Answers,
    out: str | Path | None = None,
    *,
    var_names: Sequence[str] = (),
    world: World | None = None,
    batch_size: int | None = None,
) -> list[NDArray[Any]] | zarr.Group:
    """Compute `answers` and give the arrays in the order asked for, or write them to `out`, as `write_rows`.

    Parameters
    ----------
    batch_size
        Cells computed at a time.
    """
    chunk_cells = chunk_cells_of(batch_size)
    if out is None:
        return selection.answer(lambda minibatch: tuple(answers(minibatch).values()), world, chunk_cells=chunk_cells)
    return write_rows(
        selection,
        answers,
        out,
        var_names=var_names,
        world=world,
        chunk_cells=chunk_cells,
        on_progress=RowsProgress(),
    )


def write_rows(
    selection: Selection,
    answers: Answers,
    out: str | Path,
    *,
    var_names: Sequence[str] = (),
    world: World | None = None,
    chunk_cells: int = _CHUNK_CELLS,
    attributes: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> zarr.Group:
    """Compute `answers` for the cells of `selection` and write them to the new folder `out`.

    Every worker calls it with the same arguments, but for its place in `world`; each computes and writes a part. Memory
    does not grow with the number of cells. The folder appears when it is complete, or not at all.

    Parameters
    ----------
    answers
        Is asked about the first cell alone at first, to learn what there is to write.
    out
        Folder on a disk that all workers share.
    var_names
        Names of the columns of X.
    chunk_cells
        Cells computed at a time.
    attributes
        Plain values to keep in the attributes of the group.
    on_progress
        Called on rank 0 with the cells this worker has done and its share of them.

    Returns
    -------
    zarr.Group
        What was written, open for reading: an AnnData in Zarr v3, whose rows are the cells by rising row of their
        store; ``obs/source_row`` numbers them.

    Raises
    ------
    ValueError
        If `out` is taken or no folder, or the cells were asked for in another order than that of their store.
    """
    world = world or World()
    path = _free_path(out)
    _check_rising(selection)
    one = answers(rows_minibatch(selection.data, selection.rows(0, 1)))
    chunk, shard = _rows_together(one, selection.n_cells)
    unfinished = path.with_name(f".partial-{path.name}")
    if world.rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        _create(unfinished, selection.n_cells, one, var_names, chunk, shard)
    world.wait()
    root = zarr.open_group(unfinished, mode="r+")
    if world.rank == 0:
        root.attrs.update(dict(attributes or {}))
    minibatches = ahead(_read(selection, world, shard, chunk_cells), 1, timeout_s=240.0)
    _fill(root, selection, minibatches, answers, one, shard, world, on_progress)
    world.wait()
    if world.rank == 0:
        put_in_place(unfinished, path)
    world.wait()
    return zarr.open_group(path, mode="r")


def _free_path(out: str | Path) -> Path:
    if "://" in str(out):
        raise ValueError(f"out={str(out)!r}: a folder on a disk is needed, not a URL; write it there and copy it")
    path = Path(out).expanduser().resolve()
    if path.exists():
        raise ValueError(f"out={str(out)!r} exists: give another path, or remove it")
    return path


def _check_rising(selection: Selection) -> None:
    if isinstance(selection.order, slice):
        return
    wrong = np.flatnonzero(selection.order != np.arange(len(selection.order)))
    if len(wrong):
        row = selection.rows(0, selection.n_cells)[selection.order[wrong[0]]]
        raise ValueError(
            f"indices[{wrong[0]}] is row {row}, which is not above all before it: with out= the cells are written by "
            "rising row, each once; sort indices, or leave out away"
        )


def _rows_together(one: Rows, n_cells: int) -> tuple[int, int]:
    """Give the rows of a chunk and of a shard: the same in all arrays, so that a worker writes whole shards."""
    row_bytes = max(values.nbytes for values in one.values())
    chunk = min(max(1, _CHUNK_BYTES // row_bytes), _CHUNK_ROWS)
    return chunk, chunk * min(max(1, -(-n_cells // (_SHARDS * chunk))), _SHARD_CHUNKS)


def _create(path: Path, n: int, one: Rows, var_names: Sequence[str], chunk: int, shard: int) -> None:
    """Create the arrays, empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = new_root(path, var_names)
    new_rows = partial(new_array, chunk_rows=chunk, shard_rows=shard)
    obs = root.create_group("obs")
    new_strings(obs, "_index", n, chunk_rows=shard)
    new_rows(obs, SOURCE_ROW, (n,), np.int64)
    for name, values in one.items():
        new_rows(root, name, (n, *values.shape[1:]), values.dtype)
    finish_table(obs, [*(name.removeprefix("obs/") for name in one if name.startswith("obs/")), SOURCE_ROW])


def _read(selection: Selection, world: World, shard: int, chunk_cells: int) -> Iterator[MiniBatch]:
    """Read this worker's shards, dealt out in turn; ``step`` is the place of the first cell of a minibatch."""
    for start in range(world.rank * shard, selection.n_cells, world.size * shard):
        stop = min(start + shard, selection.n_cells)
        for at in range(start, stop, chunk_cells):
            yield rows_minibatch(selection.data, selection.rows(at, min(at + chunk_cells, stop)), step=at)


def _fill(
    root: zarr.Group,
    selection: Selection,
    minibatches: Iterator[MiniBatch],
    answers: Answers,
    one: Rows,
    shard: int,
    world: World,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Write this worker's shards, each in one go: a shard written in parts would be read back and packed again."""
    n, done = selection.n_cells, 0
    share = sum(min(shard, n - start) for start in range(world.rank * shard, n, world.size * shard))
    held = {name: np.empty((min(shard, n), *values.shape[1:]), values.dtype) for name, values in one.items()}
    for minibatch in minibatches:
        start, stop = minibatch.step // shard * shard, minibatch.step + minibatch.n_cells
        for name, values in answers(minibatch).items():
            held[name][minibatch.step - start : stop - start] = values
        done += minibatch.n_cells
        if stop % shard == 0 or stop == n:
            own = Selection(selection.data, selection.rows(start, stop), slice(None))
            named = {f"obs/{SOURCE_ROW}": own.row_n, "obs/_index": own.obs_names()}
            _write(root, start, stop, named | {name: values[: stop - start] for name, values in held.items()})
        if on_progress is not None and world.rank == 0:
            on_progress(done, share)


def _write(root: zarr.Group, start: int, stop: int, written: dict[str, Any]) -> None:
    # Without this a chunk of fill values alone would be left out, and an absent chunk counts as lost.
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, values in written.items():
            array: Any = root[name]
            array[start:stop] = values


def chunk_cells_of(batch_size: int | None) -> int:
    """Give the number of cells to compute at a time.

    Raises
    ------
    ValueError
        As `check_count`.
    """
    if batch_size is None:
        return _CHUNK_CELLS
    check_count("batch_size", batch_size)
    return batch_size


def check_count(name: str, value: int) -> None:
    """Refuse what is no whole number from 1.

    Raises
    ------
    ValueError
        If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}: a whole number from 1 is needed")


class RowsProgress:
    """Says on a terminal how much is done, and elsewhere nothing."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._began = time.perf_counter()

    def __call__(self, done: int, share: int) -> None:
        """Show that `done` of `share` cells are done."""
        if self._stream.isatty():
            speed = done / max(time.perf_counter() - self._began, 1e-9)
            left = f"{speed:.0f} cells/s  {(share - done) / speed / 60:.1f} min left"
            self._stream.write(f"\r\x1b[K{done}/{share} cells  {left}" + ("\n" if done == share else ""))
            self._stream.flush()
