"""Requests of a process to all workers, between two steps: to save, or to save and stop."""

import threading
import time


class SaveRequests:
    """Requests of signal handlers and other threads, which training reads in every step and sends to all workers.

    All workers act on a request at the same step.
    """

    def __init__(self) -> None:
        self._save, self._stop = threading.Event(), threading.Event()
        self._minutes: float | None = None
        self._saved_s = time.monotonic()

    def save(self) -> None:
        """Request a checkpoint, for instance before a machine is removed while the others continue."""
        self._save.set()

    def stop(self) -> None:
        """Request a checkpoint and then the end, for instance when the time of a job is over."""
        self._stop.set()

    def every(self, minutes: float | None) -> None:
        """Request a checkpoint whenever the last one is older than this."""
        self._minutes, self._saved_s = minutes, time.monotonic()

    def saved(self) -> None:
        """Record that a checkpoint was just made."""
        self._saved_s = time.monotonic()

    def read(self) -> tuple[float, float]:
        """Return the requests to save and to stop, as numbers to be summed over workers; a save is returned once."""
        late = self._minutes is not None and time.monotonic() - self._saved_s > 60 * self._minutes
        save = late or self._save.is_set()
        if save:
            self._save.clear()
            self.saved()
        return float(save), float(self._stop.is_set())
