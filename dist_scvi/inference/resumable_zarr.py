"""An output in Zarr that workers write shard by shard, that goes on where it was killed, and appears when complete.

What is unfinished lies beside it in ``.partial-NAME``, in a folder named by the question that it answers: the output so
far, and a mark for each shard that is safely on disk. Another question gets a folder of its own, so that not even a
worker left over from before can mix the two.

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

import zarr
from numpy.typing import NDArray

from dist_scvi.inference.output_identity import digest, to_json
from dist_scvi.loaders.arrays.anndata_layout import replace_folder
from dist_scvi.storage.atomic_files import sync_folder, write_file
from dist_scvi.world import World

T = TypeVar("T")
log = logging.getLogger(__name__)

_OUTPUT, _DONE, _QUESTION, _LOCK = "output", "done", "question.json", ".lock"
_FORMAT = "dist_scvi.shards/1"


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of an unfinished output that are left for this worker."""

    folder: Path
    """The Zarr group that holds the arrays."""
    marks: Path
    shard_cells: int
    spans: list[tuple[int, int]]
    """The rows of each shard."""
    cells_before: int
    """Cells whose shards an earlier start has written."""
    rounds: int
    """Shards that every worker has to write; some have one more."""
    world: World

    @property
    def share(self) -> int:
        """Cells that were done before, and those of this worker."""
        return self.cells_before + sum(stop - start for start, stop in self.spans)

    def write(self, start: int, stop: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the rows ``[start, stop)``, a whole shard, and mark it as done once it is on disk.

        The workers wait for each other after each round of shards: so the loss of one is noticed soon, and none waits
        at the end for all that a slower one has left.

        Parameters
        ----------
        arrays
            By their places in the group. All have shards of `shard_cells` rows.

        Raises
        ------
        OSError
            If the disk is full, fails or may not be written.
        """
        number = start // self.shard_cells
        mark = self.marks / f"{number:08d}"
        with explain_write_errors(self.folder):
            if not mark.exists():  # a worker left over from an earlier start may just have done it
                self._put(slice(start, stop), arrays, [self.folder / name / "c" / str(number) for name in arrays])
                write_file(mark, b"")
        if self.spans.index((start, stop)) < self.rounds:
            self.world.wait()

    def _put(self, rows: slice, arrays: Mapping[str, NDArray[Any]], chunks: Sequence[Path]) -> None:
        root = zarr.open_group(self.folder, mode="r+")
        # Without this a chunk of fill values alone would be left out, and an absent chunk counts as lost.
        with zarr.config.set({"array.write_empty_chunks": True}):
            for chunk, (name, values) in zip(chunks, arrays.items(), strict=True):
                _remove(chunk)  # Zarr reads what is there, and a loss of power may have torn it
                array: Any = root[name]
                array[rows] = values
        for chunk in chunks:
            sync_tree(chunk)
            sync_folder(chunk.parent)
            if rows.start == self.spans[0][0]:  # which may have made that folder
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
    """Give each worker the shards that it is to write; afterwards put the output in place as the folder `path`.

    If an earlier start with the same question was killed, what it has finished is not done again, by whatever number of
    workers either has. After an error, too, all that is done is kept.

    Parameters
    ----------
    question
        Plain values that decide what is written; the same for all workers.
    create
        Makes the output with empty arrays, at a path that it is given. On rank 0, as those below.
    check_free
        Refuses `path` if it is taken.
    finish
        Adds, synced, what is to be written at the very end; it may be called again after a kill.
    group
        Zarr group within the output that holds the arrays.

    Raises
    ------
    ValueError
        If another process writes the same output, or workers differ in their questions.
    OSError
        If the disk is full, fails or may not be written.
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
                check_free()  # another process may have finished it in between
                return _begin(work, text, create, -(-n_cells // shard_cells))

        left = run_on_first(world, begin)
        spans = [(number * shard_cells, min((number + 1) * shard_cells, n_cells)) for number in left]
        cells_before = n_cells - sum(stop - start for start, stop in spans)
        yield Shards(
            work / _OUTPUT / group,
            work / _DONE,
            shard_cells,
            spans[world.rank :: world.size],
            cells_before,
            len(spans) // world.size,
            world,
        )
        world.wait()
        run_on_first(world, lambda: _finish(work, path, finish))


def sync_tree(path: Path) -> None:
    """Let a file, or a folder with all in it, survive a loss of power."""
    for below in path.rglob("*") if path.is_dir() else ():
        sync_folder(below)
    sync_folder(path)


def check_same_on_all(world: World, text: str) -> None:
    """Refuse workers that would write other outputs than rank 0.

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
    """Let rank 0 do `work`; every worker gets what it gives, or raises what it raises."""
    done: tuple[T | None, Exception | None] = (None, None)
    if world.rank == 0:
        try:
            done = (work(), None)
        except Exception as error:  # noqa: BLE001 - raised below, by all
            done = (None, error)
    result, failure = world.from_all(done)[0]
    if failure is not None:
        raise done[1] or failure
    return result  # type: ignore[return-value]


def _begin(work: Path, identity: str, create: Callable[[Path], None], n_shards: int) -> list[int]:
    """Make `work` ready to go on, or begin it, and give the shards that are left."""
    for other in work.parent.iterdir():
        if other.name not in (work.name, _LOCK):
            _remove(other)
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
    """Complete the output and put it in place."""
    with explain_write_errors(work):
        finish(work / _OUTPUT)
        sync_folder(work / _OUTPUT)
        replace_folder(work / _OUTPUT, path)
        sync_folder(path.parent)
    shutil.rmtree(work.parent, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep others out of `folder` while this process works there, where the disk can lock files.

    Raises
    ------
    ValueError
        If another is there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(file.fileno()).st_nlink == 0  # removed by another, which has just finished
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
    """Say of an error of the disk where it was, and what to do."""
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
