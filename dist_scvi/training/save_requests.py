"""What a process asks of all workers between two steps: to save, or to save and stop."""

import threading
import time


class SaveRequests:
    """Wishes of signals and of other threads, which training looks at in every step and tells all workers.

    A wish is raised once; what all workers then do about it, they do at the same step.
    """

    def __init__(self) -> None:
        self._save, self._stop = threading.Event(), threading.Event()
        self._minutes: float | None = None
        self._saved_s = time.monotonic()

    def save(self) -> None:
        """Ask for a checkpoint, as when a machine will be taken away and the others go on."""
        self._save.set()

    def stop(self) -> None:
        """Ask for a checkpoint and an end, as when the job's time is over."""
        self._stop.set()

    def every(self, minutes: float | None) -> None:
        """Ask for a checkpoint whenever the last is older than this."""
        self._minutes, self._saved_s = minutes, time.monotonic()

    def saved(self) -> None:
        """Take notice that there is a checkpoint now."""
        self._saved_s = time.monotonic()

    def read(self) -> tuple[float, float]:
        """Give the wishes as numbers that can be added up over workers: to save, to stop; a save is asked for once."""
        late = self._minutes is not None and time.monotonic() - self._saved_s > 60 * self._minutes
        save = late or self._save.is_set()
        if save:
            self._save.clear()
            self.saved()
        return float(save), float(self._stop.is_set())
