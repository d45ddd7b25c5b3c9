"""What a run tells of itself: a line of JSON for every few steps, and a line for the person who watches."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]


class MetricsLog:
    """The metrics of a run, in memory and, given a path, as JSON lines.

    Opened for a run that resumes at `step`, it drops the lines of steps that will be done again.
    """

    def __init__(self, path: Path | None, *, step: int) -> None:
        self.rows: list[Row] = []
        self._path = path
        if path is None:
            return
        if path.exists():
            self.rows = [row for row in read_metrics(path) if row["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        partial.replace(path)

    def write(self, row: Row) -> None:
        """Add a line."""
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[Row]:
    """Read JSON lines; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress:
    """A live line on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._open = False

    def __call__(self, row: Row) -> None:
        """Show one line of metrics."""
        text = describe(row)
        if self._live and row["kind"] == "train":
            self._stream.write(f"\r\x1b[K{text}")
            self._open = True
        elif self._live or row["kind"] != "train" or row["step"] % row["steps_per_epoch"] == 0:
            self._stream.write(("\r\x1b[K" if self._open else "") + text + "\n")
            self._open = False
        self._stream.flush()

    def close(self) -> None:
        """End a live line."""
        if self._open:
            self._stream.write("\n")
            self._open = False


def describe(row: Row) -> str:
    """Say a line of metrics in words."""
    done, total = row["step"], row["steps_per_epoch"] * row["max_epochs"]
    head = f"epoch {row['epoch'] + 1}/{row['max_epochs']}  step {done}/{total}"
    parts = f"elbo {row['elbo']:.2f} = reconstruction {row['reconstruction']:.2f} + kl {row['kl']:.2f}"
    if row["kind"] == "validation":
        return f"{head}  validation  {parts}"
    left = (total - done) / max(row["steps_per_s"], 1e-9)
    return (
        f"{head}  {parts}  {row['cells_per_s']:.0f} cells/s  waiting {100 * row['wait_share']:.0f}%  "
        f"{row['memory_mib']:.0f} MiB  {left / 60:.1f} min left"
    )
