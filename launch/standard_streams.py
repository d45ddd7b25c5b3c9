"""Standard streams that may be closed, and text from files that reaches a terminal."""

import io
import os
import sys

from dist_scvi.loaders.arrays.printable import printable_lines


def open_closed_streams() -> None:
    """Connect standard streams that the caller has closed to the null device.

    Otherwise the next file that is opened takes the number of the closed stream, and whatever a library writes to
    standard error lands in a checkpoint. It must happen before any other file is opened.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), line_buffering=True)
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in step with the progress on stderr, also in a file


def print_text(text: str, *, to_stderr: bool = False) -> None:
    """Print `text` without the control characters that names from files may hold."""
    print(printable_lines(text), file=sys.stderr if to_stderr else sys.stdout)
