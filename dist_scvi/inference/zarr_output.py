"""Results with a row for each cell, written to a Zarr folder that anndata opens, in constant memory.

Shape letters in this file
    n   cells
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dist_scvi.inference.cell_selection import Selection
from dist_scvi.inference.output_identity import cells_fingerprint, digest
from dist_scvi.inference.resumable_zarr import Shards, sync_tree, written_in_shards
from dist_scvi.loaders.arrays.anndata_layout import SOURCE_ROW, finish_table, new_array, new_root, new_strings
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.read_limits import READ_TIMEOUT_S
from dist_scvi.loaders.stream import prefetch, rows_minibatch
from dist_scvi.progress_reporter import ProgressReporter
from dist_scvi.world import World

_CHUNK_CELLS = 1024
_CHUNK_BYTES, _CHUNK_ROWS = 1 << 22, 4096
_SHARD_CHUNKS = 16
_SHARDS = 16
"""Shards to aim for in an output with enough rows, so that about as many workers can share it.

It does not depend on the number of workers: a restart with another number of workers finds the same shards.
"""

RowArrays = Mapping[str, NDArray[Any]]
"""Arrays with a row for each cell, by their place in an AnnData: ``X``, ``obsm/KEY``, ``layers/KEY``, ``obs/KEY``."""
ComputeChunk = Callable[[MiniBatch], RowArrays]
"""Computes the arrays of the cells of a minibatch."""


def compute_or_write(
    selection: Selection,
    answers: ComputeChunk,
    out: str | Path | None = None,
    *,
    identity: Mapping[str, Any],
    var_names: Sequence[str] = (),
    world: World | None = None,
    batch_size: int | None = None,
) -> list[NDArray[Any]] | zarr.Group:
    """Compute `answers` and return the arrays in the requested order, or write them to `out` as `write_rows` does.

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
        identity=identity,
        var_names=var_names,
        world=world,
        chunk_cells=chunk_cells,
        on_progress=ProgressReporter("computed"),
    )


def write_rows(
    selection: Selection,
    answers: ComputeChunk,
    out: str | Path,
    *,
    identity: Mapping[str, Any],
    var_names: Sequence[str] = (),
    world: World | None = None,
    chunk_cells: int = _CHUNK_CELLS,
    attributes: Mapping[str, Any] | None = None,
    finish: Callable[[zarr.Group], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> zarr.Group:
    """Compute `answers` for the cells of `selection` and write them to the new folder `out`.

    Every worker calls it with the same arguments, except for its rank in `world`; each computes and writes a part.
    Memory does not grow with the number of cells. The folder appears only when it is complete. After a kill or an
    error the same call, by any number of workers, continues from the finished shards. Unfinished work is in
    ``.partial-NAME`` next to `out`.

    Parameters
    ----------
    answers
        Called for the first cell alone before any other, to find the names, shapes and types of the arrays.
    out
        Folder on a disk that all workers share.
    identity
        Plain values that, together with the cells, determine what `answers` returns: the model, the method and its
        arguments. Unfinished work of another `identity` is removed.
    var_names
        Names of the columns of X.
    chunk_cells
        Cells computed at a time; a later call may continue with another number.
    attributes
        Plain values to keep in the attributes of the group.
    finish
        Adds to the group before the folder appears, on rank 0; it may be called again after a kill.
    on_progress
        Called on rank 0 with two numbers of cells: those done by earlier calls and by this worker, and the first of
        these plus all cells of this worker.

    Returns
    -------
    zarr.Group
        The output, open for reading: an AnnData in Zarr v3 whose rows are the cells in the order of their store.
        ``obs/source_row`` is the row of each in the store.

    Raises
    ------
    ValueError
        If `out` exists or is a URL, another process is writing it, or the cells are requested in another order than
        that of their store.
    OSError
        If the disk is full, fails or is not writable.
    """
    world = world or World()
    path = _path_of(out)
    _check_free(path)  # also here, before anything is computed; `written_in_shards` repeats it under the lock
    _check_rising(selection)
    one = answers(rows_minibatch(selection.data, selection.rows(0, 1)))
    chunk, shard = _rows_together(one, selection.n_cells)
    kept = dict(attributes or {})

    def create(unfinished: Path) -> None:
        _create(unfinished, selection.n_cells, one, var_names, chunk, shard)
        zarr.open_group(unfinished, mode="r+").attrs.update(kept)

    def complete(unfinished: Path) -> None:
        if finish is not None:
            finish(zarr.open_group(unfinished, mode="r+"))
            sync_tree(unfinished)

    described = {
        "cells": cells_fingerprint(selection.data),
        "rows": None if selection.row_n is None else digest(selection.row_n),
        "arrays": {name: [str(values.dtype), *values.shape[1:]] for name, values in one.items()},
        "var_names": digest(*map(str, var_names)),
        "attributes": kept,
        "chunk_cells": chunk,  # that of the stored arrays; the argument `chunk_cells` does not change what is written
        "question": identity,
    }
    with written_in_shards(
        path,
        described,
        create,
        n_cells=selection.n_cells,
        shard_cells=shard,
        world=world,
        check_free=partial(_check_free, path),
        finish=complete,
    ) as shards:
        _fill(shards, selection, answers, one, chunk_cells, on_progress)
    return zarr.open_group(path, mode="r")


def _path_of(out: str | Path) -> Path:
    if "://" in str(out):
        raise ValueError(f"out={str(out)!r}: a folder on a disk is needed, not a URL; write it there and copy it")
    return Path(out).expanduser().resolve()


def _check_free(path: Path) -> None:
    if path.exists():
        raise ValueError(f"out={str(path)!r} exists: give another path, or remove it")


def _check_rising(selection: Selection) -> None:
    if isinstance(selection.order, slice):
        return
    # Shards are written in the order of the store: in another order, the cells of one read would belong to many shards.
    wrong = np.flatnonzero(selection.order != np.arange(len(selection.order)))
    if len(wrong):
        row = selection.rows(0, selection.n_cells)[selection.order[wrong[0]]]
        raise ValueError(
            f"indices[{wrong[0]}] is row {row}, which is not above all before it: with out= the cells are written by "
            "rising row, each once; sort indices, or leave out away"
        )


def _rows_together(one: RowArrays, n_cells: int) -> tuple[int, int]:
    """Return the rows of a chunk and of a shard: the same in all arrays, so that a worker writes whole shards."""
    row_bytes = max(values.nbytes for values in one.values())
    chunk = min(max(1, _CHUNK_BYTES // row_bytes), _CHUNK_ROWS)
    return chunk, chunk * min(max(1, -(-n_cells // (_SHARDS * chunk))), _SHARD_CHUNKS)


def _create(path: Path, n: int, one: RowArrays, var_names: Sequence[str], chunk: int, shard: int) -> None:
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


def _read(selection: Selection, shards: Shards, chunk_cells: int) -> Iterator[MiniBatch]:
    """Read the cells of this worker's shards; ``step`` is the position of the first cell of a minibatch."""
    for start, stop in shards.spans:
        for at in range(start, stop, chunk_cells):
            yield rows_minibatch(selection.data, selection.rows(at, min(at + chunk_cells, stop)), step=at)


def _fill(
    shards: Shards,
    selection: Selection,
    answers: ComputeChunk,
    one: RowArrays,
    chunk_cells: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Write this worker's shards, each in one call: Zarr would read back and pack again a shard written in parts."""
    tell = on_progress if on_progress is not None and shards.world.rank == 0 else lambda *_: None
    most = min(shards.shard_cells, selection.n_cells)
    held = {name: np.empty((most, *values.shape[1:]), values.dtype) for name, values in one.items()}
    # The next minibatch is read while this one is computed; more than one would only use memory.
    minibatches = prefetch(_read(selection, shards, chunk_cells), 1, timeout_s=READ_TIMEOUT_S)
    done = shards.cells_before
    tell(done, shards.share)
    for start, stop in shards.spans:
        at = start
        while at < stop:
            minibatch = next(minibatches)
            for name, values in answers(minibatch).items():
                held[name][at - start : at - start + minibatch.n_cells] = values
            at += minibatch.n_cells
            done += minibatch.n_cells
            tell(done, shards.share)
        own = Selection(selection.data, selection.rows(start, stop), slice(None))
        named: dict[str, Any] = {f"obs/{SOURCE_ROW}": own.row_n, "obs/_index": own.obs_names()}
        shards.write(start, stop, named | {name: values[: stop - start] for name, values in held.items()})


def chunk_cells_of(batch_size: int | None) -> int:
    """Return the number of cells to compute at a time.

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
    """Check that `value` is a whole number of at least 1.

    Raises
    ------
    ValueError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}: a whole number from 1 is needed")
