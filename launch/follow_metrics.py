"""Watching a run from another process, through the metrics it writes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_scvi.storage.run_storage import LocalStorage, RunStorage
from dist_scvi.training.metrics import METRICS, MetricsReporter, Row, metrics_in, read_metrics

_POLL_S, _REMOTE_POLL_S = 0.5, 10.0


@contextmanager
def show_progress(place: RunStorage | None, progress: MetricsReporter) -> Iterator[None]:
    """Show the metrics that are added to the run in `place` while the block runs."""
    if place is None:
        yield
        return
    stop, last = threading.Event(), max(map(_place, read_metrics(place)), default=(0, 0))
    thread = threading.Thread(target=_watch, args=(place, progress, stop, last))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        progress.close()


def _watch(place: RunStorage, progress: MetricsReporter, stop: threading.Event, last: tuple[int, int]) -> None:
    tail = _Tail(place) if isinstance(place, LocalStorage) else None
    while True:
        ended = stop.wait(_POLL_S if tail else _REMOTE_POLL_S)
        rows: list[Row] = []
        with suppress(OSError):  # whoever writes the run tells of storage that fails
            rows = tail.read() if tail else read_metrics(place)
        for row in rows:
            if _place(row) > last:
                last = _place(row)
                progress(row)
        if ended:
            return


class _Tail:
    """Reads what was added to the metrics of a run on a disk."""

    def __init__(self, place: LocalStorage) -> None:
        self._path, self._offset, self._file_number = Path(place.uri) / METRICS, 0, 0

    def read(self) -> list[Row]:
        if not self._path.exists():
            return []
        if self._path.stat().st_ino != self._file_number:  # a resumed run writes the file anew
            self._offset, self._file_number = 0, self._path.stat().st_ino
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, found, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(found)
        return metrics_in(whole)


def _place(row: Row) -> tuple[int, int]:
    """Order of a line in a run; after a restart, lines that were shown come again and are passed over."""
    return row["step"], int(row["kind"] == "validation")
