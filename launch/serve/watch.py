"""Bound a question while it runs: its cells, its time, and the wish of its client to stop it.

Shape letters in this file
    n   cells
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.atlas.cell_map.cell_map import CellMap, open_map
from dist_scvi.inference.encode_decode import LatentCells
from dist_scvi.launch.serve.limits import Limits


class TooLargeError(ValueError):
    """A question exceeds what the service allows."""


class CancelledError(Exception):
    """The client has left, or has cancelled the question."""


class Watch:
    """Progress of a question, and the reasons to stop it."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._cancelled = limits, threading.Event()
        self._began_s = time.monotonic()
        self.cells_read = 0

    @property
    def seconds(self) -> float:
        """Seconds since the question was asked."""
        return time.monotonic() - self._began_s

    def cancel(self) -> None:
        """Stop the question at its next read."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled the question."""
        return self._cancelled.is_set()

    def check(self, n_cells: int = 0) -> None:
        """Count cells that are about to be read.

        Raises
        ------
        CancelledError
            If the question was cancelled.
        TooLargeError
            If it has read more cells or taken longer than the service allows.
        """
        if self._cancelled.is_set():
            raise CancelledError("cancelled")
        self.cells_read += n_cells
        if self.cells_read > self._limits.cells:
            raise TooLargeError(
                f"the question decodes more than {self._limits.cells:,} cells, the limit of this service: choose fewer "
                "by where, an engine that decodes a sample, or open the atlas itself"
            )
        if self.seconds > self._limits.question_s:
            raise TooLargeError(
                f"the question took longer than {self._limits.question_s:g} s, the limit of this service: choose fewer "
                "cells, genes or groups"
            )


_current: ContextVar[Watch | None] = ContextVar("_current", default=None)


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Count and bound what this thread reads of atlases while the block runs."""
    token = _current.set(watch)
    try:
        yield
    finally:
        _current.reset(token)


def check_watch(n_cells: int = 0) -> None:
    """Call `Watch.check` of the question that this thread answers; do nothing in other threads."""
    watch = _current.get()
    if watch is not None:
        watch.check(n_cells)


class WatchedAtlas(Atlas):
    """An atlas whose reads are counted by the watch of the question. It shares all with the atlas it is made from."""

    def __init__(self, atlas: Atlas) -> None:
        # A query runs to its end inside one call of numpy, torch or numba after the other and takes no callback:
        # its reads are the only place where it can be counted and stopped.
        self.__dict__.update(atlas.__dict__)
        if atlas.leaves is not None:
            self.leaves = _WatchedLeaves(atlas.leaves)  # type: ignore[assignment]

    @cached_property
    def cell_map(self) -> CellMap:
        """The map of the cells.

        Raises
        ------
        ValueError
            If there is none, or it is damaged or of another atlas.
        """
        try:
            return open_map(self)
        except FileNotFoundError as error:
            raise ValueError(f"{self.uri} has no map of its cells") from error

    def read_latent(self, rows: Any = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read as `Atlas.read_latent`, counted."""
        check_watch(_n_rows(rows, self.n_cells))
        return super().read_latent(rows)

    def read_mean(self, rows: Any = None) -> NDArray[np.float32]:
        """Read as `Atlas.read_mean`; nothing is decoded from means alone."""
        check_watch()
        return super().read_mean(rows)

    def read_cells(self, rows: Any = None) -> LatentCells:
        """Read as `Atlas.read_cells`, which reads and counts the latents."""
        check_watch()
        return super().read_cells(rows)

    def chunks(self, *arguments: Any) -> Iterator[slice]:
        """Iterate as `Atlas.chunks`, and stop when asked."""
        for rows in super().chunks(*arguments):
            check_watch()
            yield rows


class _WatchedLeaves:
    """Leaves whose tables are read under the watch."""

    def __init__(self, leaves: Any) -> None:
        self._leaves = leaves

    def __getattr__(self, name: str) -> Any:
        check_watch()
        return getattr(self._leaves, name)


def _n_rows(rows: Any, n_cells: int) -> int:
    if rows is None:
        return n_cells
    return len(range(n_cells)[rows]) if isinstance(rows, slice) else len(rows)
