"""Closed standard streams, and text from files on a terminal."""

import io
import os
import sys

from dist_scvi.loaders.arrays.printable import printable_lines


def open_closed_streams() -> None:
    """Connect standard streams that the caller has closed to the null device.

    Otherwise the next file that is opened takes the number of the closed stream, and output of a library to standard
    error is written into a checkpoint. This must be called before any other file is opened.
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
    """Print `text` without control characters, which names from files may contain."""
    print(printable_lines(text), file=sys.stderr if to_stderr else sys.stdout)
