"""Bound a question while it runs: its cells, its time, and the wish of its client to stop it.

Shape letters in this file
    n   cells
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.atlas.cell_map.cell_map import CellMap
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


class WatchedAtlas(Atlas):
    """An atlas whose reads are counted. It shares all with the atlas that it is made from and opens nothing."""

    def __init__(self, atlas: Atlas, watch: Watch, open_map: Callable[[], CellMap]) -> None:
        # A query runs to its end inside one call of numpy, torch or numba after the other and takes no callback:
        # its reads are the only place where it can be counted and stopped.
        self.__dict__.update(atlas.__dict__)
        self._watch, self.open_map = watch, open_map
        if atlas.leaves is not None:
            self.leaves = _WatchedLeaves(atlas.leaves, watch)  # type: ignore[assignment]

    def read_latent(self, rows: Any = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read as `Atlas.read_latent`, counted."""
        self._watch.check(_n_rows(rows, self.n_cells))
        return super().read_latent(rows)

    def read_mean(self, rows: Any = None) -> NDArray[np.float32]:
        """Read as `Atlas.read_mean`; nothing is decoded from means alone."""
        self._watch.check()
        return super().read_mean(rows)

    def read_cells(self, rows: Any = None) -> LatentCells:
        """Read as `Atlas.read_cells`, which reads and counts the latents."""
        self._watch.check()
        return super().read_cells(rows)

    def chunks(self, *arguments: Any) -> Iterator[slice]:
        """Iterate as `Atlas.chunks`, and stop when asked."""
        for rows in super().chunks(*arguments):
            self._watch.check()
            yield rows


class _WatchedLeaves:
    """Leaves whose tables are read under the watch."""

    def __init__(self, leaves: Any, watch: Watch) -> None:
        self._leaves, self._watch = leaves, watch

    def __getattr__(self, name: str) -> Any:
        self._watch.check()
        return getattr(self._leaves, name)


def _n_rows(rows: Any, n_cells: int) -> int:
    if rows is None:
        return n_cells
    return len(range(n_cells)[rows]) if isinstance(rows, slice) else len(rows)
