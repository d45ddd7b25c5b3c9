"""Watching a run from another process, through the metrics it writes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_scvi.metrics import Progress, Row, read_metrics

_POLL_S = 0.5


@contextmanager
def shown_progress(path: Path, progress: Progress) -> Iterator[None]:
    """Show the lines that are added to the metrics file `path` while the block runs."""
    rows = read_metrics(path) if path.exists() else []
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(path, progress, stop, max(map(_place, rows), default=(0, 0))))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        progress.close()


def _watch(path: Path, progress: Progress, stop: threading.Event, last: tuple[int, int]) -> None:
    offset, file_number = 0, 0
    while True:
        ended = stop.wait(_POLL_S)
        if path.exists():
            if path.stat().st_ino != file_number:  # a resumed run writes the file anew
                offset, file_number = 0, path.stat().st_ino
            with path.open("rb") as file:
                file.seek(offset)
                whole, found, _ = file.read().rpartition(b"\n")
            offset += len(whole) + len(found)
            for line in whole.splitlines():
                row = json.loads(line)
                if _place(row) > last:
                    last = _place(row)
                    progress(row)
        if ended:
            return


def _place(row: Row) -> tuple[int, int]:
    """Order of a line in a run; after a restart, lines that were shown come again and are passed over."""
    return row["step"], int(row["kind"] == "validation")
