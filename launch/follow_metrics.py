"""Follow a run from another process, by the metrics that it writes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dist_scvi.metrics.metrics_file import MetricsReader, Row, read_metrics
from dist_scvi.metrics.reporter import MetricsReporter
from dist_scvi.storage.run_storage import LocalStorage, RunStorage

_POLL_S, _REMOTE_POLL_S = 0.5, 10.0


@contextmanager
def show_progress(place: RunStorage | None, progress: MetricsReporter) -> Iterator[None]:
    """Show the metrics that are added to the run in `place` during the block."""
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
    reader = MetricsReader(place)
    while True:
        ended = stop.wait(_POLL_S if isinstance(place, LocalStorage) else _REMOTE_POLL_S)
        rows: list[Row] = []
        with suppress(OSError):  # the process that writes the run reports errors of storage
            rows = reader.read()
        for row in rows:
            if _place(row) > last:
                last = _place(row)
                progress(row)
        if ended:
            return


def _place(row: Row) -> tuple[int, int]:
    """Return the position of a line in a run; after a restart, lines that were shown appear again and are skipped."""
    return row["step"], int(row["kind"] == "validation")
