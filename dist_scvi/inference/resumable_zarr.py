"""A Zarr output that several workers write shard by shard. It resumes after a kill and appears only when complete.

Unfinished work is in ``.partial-NAME`` next to the output, in a folder named by the hash of the request: the output so
far, and a marker file for each shard that is safely on disk. A different request uses a different folder, so that a
worker left over from an earlier start cannot mix the two.

Shape letters in this file
    n   cells
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from dist_scvi.inference.output_identity import digest, to_json
from dist_scvi.loaders.arrays.anndata_layout import replace_folder
from dist_scvi.loaders.arrays.zarr_access import open_to_write
from dist_scvi.storage.atomic_files import sync_folder, write_file
from dist_scvi.world import World

T = TypeVar("T")
log = logging.getLogger(__name__)

_OUTPUT, _DONE, _QUESTION, _LOCK = "output", "done", "question.json", ".lock"
_FORMAT = "dist_scvi.shards/1"


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of an unfinished output that this worker still has to write."""

    folder: Path
    """The Zarr group that holds the arrays."""
    marks: Path
    shard_cells: int
    spans: list[tuple[int, int]]
    """The rows of each shard."""
    cells_before: int
    """Cells in shards that an earlier start has written."""
    rounds: int
    """Number of shards that every worker writes; some workers write one more."""
    world: World

    @property
    def share(self) -> int:
        """Cells written by earlier starts plus the cells of this worker."""
        return self.cells_before + sum(stop - start for start, stop in self.spans)

    def write(self, start: int, stop: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the rows ``[start, stop)``, a whole shard, and mark it as done once it is on disk.

        The workers wait for each other after each round of shards. The loss of a worker is thus noticed soon, and no
        worker waits at the end for all the remaining shards of a slower one.

        Parameters
        ----------
        arrays
            Arrays by their paths in the group. All have shards of `shard_cells` rows.

        Raises
        ------
        OSError
            If the disk is full, fails or is not writable.
        """
        number = start // self.shard_cells
        mark = self.marks / f"{number:08d}"
        with explain_write_errors(self.folder):
            if not mark.exists():  # a worker left over from an earlier start may have written it in the meantime
                self._put(slice(start, stop), arrays, [self.folder / name / "c" / str(number) for name in arrays])
                # Only after the chunks are synced: a mark without its chunks would lose the shard after a power loss.
                write_file(mark, b"")
        # Only in rounds in which every worker has a shard: a barrier that some workers do not enter never returns.
        if self.spans.index((start, stop)) < self.rounds:
            self.world.wait()

    def _put(self, rows: slice, arrays: Mapping[str, NDArray[Any]], chunks: Sequence[Path]) -> None:
        for chunk, (name, values) in zip(chunks, arrays.items(), strict=True):
            _remove(chunk)  # Zarr would read an existing shard first, which a power loss may have left incomplete
            array: Any = open_to_write(self.folder / name)
            array[rows] = values
        for chunk in chunks:
            sync_tree(chunk)
            sync_folder(chunk.parent)
            if rows.start == self.spans[0][0]:  # the first shard of a worker may have created the folder
                sync_folder(chunk.parent.parent)


@contextmanager
def written_in_shards(
    path: Path,
    identity: Mapping[str, Any],
    create: Callable[[Path], None],
    *,
    n_cells: int,
    shard_cells: int,
    world: World,
    check_free: Callable[[], None],
    finish: Callable[[Path], None],
    group: str = ".",
) -> Iterator[Shards]:
    """Yield to each worker the shards that it has to write; afterwards move the output to the folder `path`.

    If an earlier start with the same `identity` was killed, its finished shards are not computed again. The two starts
    may have different numbers of workers. Finished shards are also kept after an error.

    Parameters
    ----------
    identity
        Plain values that determine what is written; the same for all workers.
    create
        Creates the output with empty arrays at a given path. Called on rank 0, as are `check_free` and `finish`.
    check_free
        Raises if `path` exists.
    finish
        Adds the last parts of the output and syncs them; it may be called again after a kill.
    group
        Zarr group within the output that holds the arrays.

    Raises
    ------
    ValueError
        If another process writes the same output, or workers differ in `identity`.
    OSError
        If the disk is full, fails or is not writable.
    """
    text = to_json({"format": _FORMAT, "n_cells": n_cells, "shard_cells": shard_cells, **identity})
    check_same_on_all(world, text)
    unfinished = path.with_name(f".partial-{path.name}")
    work = unfinished / digest(text)[:16]
    with ExitStack() as held:

        def begin() -> list[int]:
            check_free()
            with explain_write_errors(unfinished):
                held.enter_context(lock_folder(unfinished))
                check_free()  # another process may have finished the output before the lock was acquired
                return _begin(work, text, create, -(-n_cells // shard_cells))

        left = run_on_first(world, begin)
        spans = [(number * shard_cells, min((number + 1) * shard_cells, n_cells)) for number in left]
        cells_before = n_cells - sum(stop - start for start, stop in spans)
        yield Shards(
            work / _OUTPUT / group,
            work / _DONE,
            shard_cells,
            spans[world.rank :: world.size],  # remaining shards only, so a restart may have another number of workers
            cells_before,
            len(spans) // world.size,
            world,
        )
        world.wait()  # the output must not be moved while another worker still writes its last shard
        run_on_first(world, lambda: _finish(work, path, finish))


def sync_tree(path: Path) -> None:
    """Sync a file, or a folder with everything in it, so that it survives a loss of power."""
    for below in path.rglob("*") if path.is_dir() else ():
        sync_folder(below)
    sync_folder(path)


def check_same_on_all(world: World, text: str) -> None:
    """Check that all workers would write the same output as rank 0.

    Raises
    ------
    ValueError
        If `text`, which describes the output, differs.
    """
    asked = world.from_all(digest(text))
    others = [rank for rank, found in enumerate(asked) if found != asked[0]]
    if others:
        raise ValueError(
            f"worker {others[0]} has another model, other cells or other arguments than worker 0: all workers of an "
            "output need the same"
        )


def run_on_first(world: World, work: Callable[[], T]) -> T:
    """Call `work` on rank 0; every worker returns its result, or raises its exception."""
    done: tuple[T | None, Exception | None] = (None, None)
    if world.rank == 0:
        try:
            done = (work(), None)
        # Raising here would leave the other workers waiting in from_all until their timeout.
        except Exception as error:  # noqa: BLE001 - raised below, by all
            done = (None, error)
    result, failure = world.from_all(done)[0]
    if failure is not None:
        raise done[1] or failure
    return result  # type: ignore[return-value]


def _begin(work: Path, identity: str, create: Callable[[Path], None], n_shards: int) -> list[int]:
    """Prepare `work` to continue, or create it, and return the numbers of the remaining shards."""
    for other in work.parent.iterdir():
        if other.name not in (work.name, _LOCK):
            _remove(other)
    # The question file is written last, after a sync: without it, the arrays below may be incomplete.
    if (work / _QUESTION).exists() and (work / _OUTPUT).exists():
        for torn in (work / _OUTPUT).rglob("*.partial"):  # files that Zarr was writing
            if torn.is_file():
                torn.unlink()
        done = {int(mark.name) for mark in (work / _DONE).iterdir() if mark.name.isdigit()}
        log.info("%s: %d of %d shards are done", work, len(done), n_shards)
        return [number for number in range(n_shards) if number not in done]
    _remove(work)
    (work / _DONE).mkdir(parents=True)
    create(work / _OUTPUT)
    sync_tree(work)
    write_file(work / _QUESTION, identity.encode())
    sync_folder(work.parent)
    return list(range(n_shards))


def _finish(work: Path, path: Path, finish: Callable[[Path], None]) -> None:
    """Complete the output and move it to `path`."""
    with explain_write_errors(work):
        finish(work / _OUTPUT)
        sync_folder(work / _OUTPUT)
        replace_folder(work / _OUTPUT, path)
        sync_folder(path.parent)
    shutil.rmtree(work.parent, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock `folder` against other processes, where the file system supports locks.

    Raises
    ------
    ValueError
        If another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        # flock, not a file that exists while locked: the kernel releases it when the process is killed.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(file.fileno()).st_nlink == 0  # removed by another process, which has just finished
        except BlockingIOError:
            taken = True
        except OSError as error:
            log.warning("%s cannot be locked (%s): let no other process write the same output", folder, error)
            taken = False
        if taken:
            raise ValueError(f"another process is writing in {folder}: wait for it, end it, or give another path")
        yield


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Add to an `OSError` the path and how to continue."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error} while writing {error.filename or folder}: make room there, or let it be "
            "written, and give the same command again; it goes on from the shards that are done",
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
