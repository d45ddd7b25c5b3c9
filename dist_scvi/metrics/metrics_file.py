"""The file ``metrics.jsonl`` of a run: one JSON object a line, each with a checksum of its content."""

import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

from dist_scvi.storage.atomic_files import add_path_to_errors
from dist_scvi.storage.run_storage import LocalStorage, RunStorage, open_run_storage

log = logging.getLogger(__name__)

Row = dict[str, Any]
"""A line of metrics. Its ``kind`` is train (some steps), epoch (all steps of one) or validation."""

METRICS = "metrics.jsonl"
_CHECKSUM = "crc32"
_MAX_LINE_BYTES = 1 << 16
_COUNTS = ("epoch", "step", "steps_per_epoch", "max_epochs")
_NUMBERS = {
    "train": ("kl_weight", "lr", "loss", "elbo", "reconstruction", "kl", "cells_per_s", "steps_per_s"),
    "epoch": ("lr", "loss", "elbo", "reconstruction", "kl"),
    "validation": ("loss", "elbo", "reconstruction", "kl"),
}
"""Required keys of a line without a checksum, as earlier versions wrote them."""


class MetricsLog:
    """The metrics of a run, in memory and, given its folder, as JSON lines.

    When a run resumes at `step`, the lines of steps that will be repeated are removed, and damaged lines are reported
    and removed. Object storage has no append operation, so each `sync` writes all lines.
    """

    def __init__(self, storage: RunStorage | None, *, step: int) -> None:
        self.rows: list[Row] = []
        self._storage, self._path = storage, None
        if storage is None:
            return
        self.rows = [row for row in read_metrics(storage) if row["step"] <= step]
        # Written as a new file, not truncated in place: readers see the old lines or the new ones, and `MetricsReader`
        # notices the new file by its inode.
        storage.write(METRICS, self._pack())
        if isinstance(storage, LocalStorage):
            self._path = Path(storage.uri) / METRICS

    def write(self, row: Row) -> None:
        """Append a line."""
        self.rows.append(row)
        if self._path is not None:
            # No fsync for each line: only a checkpoint relies on the lines before it, and `sync` precedes each.
            with add_path_to_errors(self._path), self._path.open("a") as file:
                file.write(_line_of(row))

    def sync(self) -> None:
        """Flush all lines to storage."""
        if self._path is not None:
            with add_path_to_errors(self._path), self._path.open("rb") as file:
                os.fsync(file.fileno())
        elif self._storage is not None:
            self._storage.write(METRICS, self._pack())

    def _pack(self) -> bytes:
        return "".join(map(_line_of, list(self.rows))).encode()  # a copy: training appends meanwhile


class MetricsReader:
    """Read the lines that are added to the metrics of a run by another thread or process."""

    def __init__(self, storage: RunStorage) -> None:
        self._storage, self._n_rows = storage, 0
        self._path = Path(storage.uri) / METRICS if isinstance(storage, LocalStorage) else None
        self._offset, self._file_number = 0, 0

    def read(self) -> list[Row]:
        """Return the lines since the last call, and all lines again when a run resumes, which replaces the file.

        Raises
        ------
        OSError
            If storage fails.
        """
        if self._path is None:
            rows = read_metrics(self._storage, report=False)
            n_before, self._n_rows = self._n_rows, len(rows)
            return rows[n_before:] if n_before <= len(rows) else rows
        if not self._path.exists():
            return []
        if self._path.stat().st_ino != self._file_number:
            self._offset, self._file_number = 0, self._path.stat().st_ino
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return _parse(whole)[0]


def read_metrics(storage: RunStorage | Path, *, report: bool = True) -> list[Row]:
    """Read the metrics of the run in the folder `storage`; none if there are none.

    Parameters
    ----------
    report
        Log a warning that names damaged lines, which are skipped. A last line that a kill cut off is not damaged: its
        steps are repeated.
    """
    storage = open_run_storage(storage)
    try:
        rows, damaged = _parse(storage.read(METRICS))
    except FileNotFoundError:
        return []
    if damaged and report:
        named = ", ".join(map(str, damaged[:10])) + ", ..." * (len(damaged) > 10)
        log.warning("%s/%s: damaged lines are skipped (line %s); all others are used", storage.uri, METRICS, named)
    return rows


def _parse(content: bytes) -> tuple[list[Row], list[int]]:
    """Return the complete rows, and the numbers of the damaged lines, from 1."""
    rows, damaged = [], []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        row = _row_of(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            damaged.append(number)
    return rows, damaged


def _line_of(row: Row) -> str:
    # A checksum of the text: the json module reads its own output and writes it again without a change.
    checksum = zlib.crc32(json.dumps(row).encode())
    return json.dumps({**row, _CHECKSUM: f"{checksum:08x}"}) + "\n"


def _row_of(line: bytes) -> Row | None:
    """Parse a line; return None if it is damaged."""
    try:
        row = json.loads(line) if len(line) <= _MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.get("kind") not in _NUMBERS:
        return None
    checksum = row.pop(_CHECKSUM, None)
    if checksum is not None:
        return row if checksum == f"{zlib.crc32(json.dumps(row).encode()):08x}" else None
    counts = all(type(row.get(key)) is int and 0 <= row[key] < 1 << 53 for key in _COUNTS)
    return row if counts and all(type(row.get(key)) in (int, float) for key in _NUMBERS[row["kind"]]) else None
