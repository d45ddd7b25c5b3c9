"""Packing: writes the counts of a store to a new store that is faster to read, in another order, in two passes.

The first pass reads the source sequentially and writes its rows to parts, each sorted by destination (`scatter`). The
second writes every file of the result from one contiguous stretch of each part (`gather`). Finished work of both stays
in ``<path>.partial``, so that a packing that was killed continues from there. The result is the same to the last byte,
also for another number of processes or another memory.

Two passes because the rows of a file of the result are anywhere in the source: reading them directly would need one
random read for each row, or all counts in memory.
"""

import fcntl
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dask.local import get_sync
from dask.multiprocessing import RemoteException, get
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.anndata_layout import check_free, replace_folder
from dist_scvi.loaders.arrays.pack_manifest import Manifest, PackSource, read_manifest
from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.pack.gather import (
    begin_gathering,
    create_store,
    finish_store,
    unfinished,
    write_shard,
    write_table,
)
from dist_scvi.loaders.pack.job import (
    BLOCK_CELLS,
    SHARD_CELLS,
    SHARD_ENTRIES,
    Budget,
    Codec,
    PackJob,
    begin_job,
    check_codec,
    check_columns,
    check_disk,
    check_genes,
    check_place,
    plan_pieces,
    probe_store,
    source_bytes,
    write_file,
)
from dist_scvi.loaders.pack.scatter import (
    Source,
    count_groups,
    open_columns,
    record_bytes,
    unfinished_pieces,
    write_piece,
)

Progress = Callable[[int, int], None]

_COMPLETE = "complete"
"""Name of the file that marks the result as complete; only the move to its path remains."""
_SOURCES: dict[Path, Source] = {}
"""Sources that this process has opened, by the working folder. An open source cannot be sent to another process."""


def pack_store(
    open_source: Callable[[], CellStore],
    path: str | Path,
    *,
    seed: int | None = 0,
    group_by: str | None = None,
    genes: Sequence[str] | None = None,
    obs_columns: Sequence[str] | None = None,
    codec: Codec = "lz4hc",
    as_annbatch: bool = False,
    memory_bytes: int = 2 << 30,
    processes: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the cells of a store as an AnnData in Zarr v3: shuffled, in narrow types, every chunk checksummed.

    Called again after it was killed, it continues from where it stopped.

    Parameters
    ----------
    open_source
        Opens the store, such as ``functools.partial(open_store, "atlas.zarr")``. It is called once in each process,
        and so has to be picklable if there are several.
    path
        Folder to write. Unfinished work is in ``<path>.partial``: about twice the size of the result.
    seed
        Seed of the order of the cells, in which every order is equally likely; None keeps the order of the source.
    group_by
        Write the categories of this obs column one after another, by name, and shuffle in each; cells without a
        category come last.
    genes
        Names of the genes to keep, in the order of the result; all by default.
    obs_columns
        Names of the obs columns to keep; all by default. ``source_row``, the row in the source, is added if no column
        has that name.
    codec
        Compressor of the counts: ``lz4hc`` is small and the fastest to read, ``lz4`` is written ten times as fast,
        ``zstd`` is a little smaller.
    as_annbatch
        Write the collection of one AnnData that annbatch reads.
    memory_bytes
        Upper bound for the memory of all processes together, without the page cache of the system.
    processes
        Processes that read and write. Several are spawned: a script needs its ``if __name__ == "__main__"``.
    overwrite
        Replace a Zarr folder at `path`, when the result is complete.
    progress
        Called with (cells done, cells to do); each cell is read once and written once, and so counts twice.

    Returns
    -------
    Manifest

    Raises
    ------
    ValueError
        If the source is damaged or does not hold raw counts, a gene or column is missing, memory or disk space is too
        small, `path` is inside a store, or another packing to `path` is unfinished.
    FileExistsError
        If `path` exists and may not be replaced.
    RuntimeError
        If a process ended unexpectedly.

    Notes
    -----
    ``anndata.read_zarr`` keeps the types of the counts and gene numbers. For computations with scipy, convert the
    matrix by ``csr_matrix((X.data, X.indices, X.indptr), X.shape)``, which widens the gene numbers.
    """
    path = Path(path).expanduser().resolve()
    folder = path.with_name(f"{path.name}.partial")
    with closing(open_source()) as store:
        check_place(path, store.uri)
        # Not checked for a complete result: a kill during the move can leave the earlier or the new folder at `path`.
        if not (folder / _COMPLETE).exists():
            check_free(path, overwrite=overwrite)
        job = PackJob(
            source=PackSource(
                store.uri, getattr(store, "layer", None), store.n_cells, len(store.var_names), store.n_entries
            ),
            fingerprint=0,
            seed=seed,
            group_by=group_by,
            genes=check_genes(store, genes),
            obs_columns=check_columns(store, obs_columns, group_by),
            codec=check_codec(codec),
            as_annbatch=as_annbatch,
            block_cells=BLOCK_CELLS,
            shard_cells=SHARD_CELLS,
            shard_entries=SHARD_ENTRIES,
            piece_cells=store.n_cells,
        )
        source, budget = _plan(open_columns(store, job), folder, Budget(memory_bytes, processes))
        with _alone(folder):
            source = replace(source, job=begin_job(folder, source.job))
            if not (folder / _COMPLETE).exists():
                _pack(source, open_source, folder, budget, progress)
            for name in ("pieces", "done"):
                shutil.rmtree(folder / name, ignore_errors=True)
            replace_folder(folder / "store", path)
            shutil.rmtree(folder)
    manifest = read_manifest(path)
    assert manifest is not None
    return manifest


def _plan(source: Source, folder: Path, budget: Budget) -> tuple[Source, Budget]:
    """Divide the work by a sample of rows, and refuse it if memory or disk space is too small."""
    job, row_bytes = source.job, record_bytes(source)
    probe = probe_store(source.store, job.genes)
    budget = replace(budget, source_bytes=source_bytes(job, row_bytes))
    budget.check(job, counts_bytes=probe.counts_bytes, record_bytes=row_bytes)
    check_disk(folder, job, probe, record_bytes=row_bytes)
    job = replace(job, fingerprint=probe.fingerprint)
    job = plan_pieces(job, budget, probe, record_bytes=row_bytes, chunk_cells=source.store.chunk_cells)
    return replace(source, job=job), budget


def _pack(
    source: Source,
    open_source: Callable[[], CellStore],
    folder: Path,
    budget: Budget,
    progress: Progress | None,
) -> None:
    """Do the remaining work in `folder`."""
    report = _Report(source.job.source.n_cells, progress)
    _SOURCES[folder] = source
    try:
        with _workers(budget.processes, partial(_begin_work, source.job, open_source, folder)) as pool:
            _scatter(source, folder, budget, pool, report)
            _gather(source, folder, budget, pool, report)
    finally:
        del _SOURCES[folder]
    write_file(folder / _COMPLETE, b"")


def _scatter(source: Source, folder: Path, budget: Budget, pool: ProcessPoolExecutor | None, report: "_Report") -> None:
    """Do the remaining work of the first pass."""
    pieces, job = folder / "pieces", source.job
    pieces.mkdir(exist_ok=True)
    left = unfinished_pieces(pieces, job)
    report.add(job.source.n_cells - sum(high - low for low, high in map(job.piece_span, left)))
    before_pg = count_groups(source)
    tasks = {
        f"piece{number}": partial(_write_piece, folder, number, before_pg[number], before_pg[-1], budget.part_bytes)
        for number in left
    }
    _run(tasks, pool, report)


def _write_piece(
    folder: Path, number: int, before_g: NDArray[np.int64], size_g: NDArray[np.int64], part_bytes: int
) -> int:
    return write_piece(
        _SOURCES[folder], folder / "pieces", number, before_g=before_g, size_g=size_g, part_bytes=part_bytes
    )


def _gather(source: Source, folder: Path, budget: Budget, pool: ProcessPoolExecutor | None, report: "_Report") -> None:
    """Do the remaining work of the second pass."""
    plan = begin_gathering(source.job, folder)
    # Counts may be larger than those of the sample.
    budget.check(source.job, counts_bytes=plan.counts_type.itemsize, record_bytes=plan.records_type.itemsize)
    create_store(plan, source)
    (folder / "done").mkdir(exist_ok=True)
    shards, tables = unfinished(plan)
    report.add(plan.n_cells - sum(map(plan.cells_of_shard, shards)))
    tasks = {f"table{number}": partial(write_table, plan, number) for number in tables}
    tasks |= {f"shard{number}": partial(write_shard, plan, number) for number in shards}
    _run(tasks, pool, report)
    finish_store(plan, source.job)


def _begin_work(job: PackJob, open_source: Callable[[], CellStore], folder: Path) -> None:
    """Open the source in a worker process."""
    _end_with_parent()
    _SOURCES[folder] = open_columns(open_source(), job)


def _end_with_parent() -> None:
    """End this process when its parent is killed: a killed parent cannot shut down its workers."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _workers(processes: int, begin: Callable[[], None]) -> Iterator[ProcessPoolExecutor | None]:
    """Return a pool of processes that are initialised by `begin`, or None if this process does all work."""
    # Spawned, not forked: threads of the parent, such as those that decompress, do not survive a fork.
    if processes == 1:
        yield None
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), begin) as pool:
        yield pool


def _run(tasks: Mapping[str, Callable[[], int]], pool: ProcessPoolExecutor | None, report: "_Report") -> None:
    """Run `tasks` in the processes of `pool`, or in this one, and report the result of each.

    Raises
    ------
    RuntimeError
        If a process ended unexpectedly.
    """
    graph = {name: (task,) for name, task in tasks.items()}
    finished: Any = (None, None, None, lambda _key, result, *_: report.add(result), None)
    if pool is None:
        get_sync(graph, list(graph), callbacks=[finished])
        return
    try:
        get(graph, list(graph), pool=pool, chunksize=1, optimize_graph=False, callbacks=[finished])
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that packed was lost, likely for want of memory: start again to go on, with fewer processes if "
            "it happens again"
        ) from error
    except RemoteException as error:
        raise error.exception from error


class _Report:
    """Sums the cells that are done and reports them."""

    def __init__(self, n_cells: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, 2 * n_cells, progress

    def add(self, n_cells: int) -> None:
        """Count `n_cells` more as done, if there are any."""
        self._done += n_cells
        if n_cells and self._progress is not None:
            self._progress(self._done, self._total)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock `folder` against other processes while this one works there.

    Raises
    ------
    ValueError
        If another process has locked it.
    """
    # flock rather than a lock file that exists or not: the system releases it when the process is killed.
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is packing in {folder}: wait for it, or choose another path") from None
        yield
