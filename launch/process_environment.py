"""The environment of a command, set before numba and torch are imported, which read it when they are loaded."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import dist_scvi

_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Variables of GNU's and Intel's OpenMP."""


def prepare_environment() -> None:
    """Let idle threads sleep, and give numba a folder for compiled code, unless the user has set these variables.

    OpenMP's threads spin between loops, for up to 200 ms. On a machine that others use, a thread that spins takes the
    core of one that has work, and every loop waits for that one.

    numba refuses to be imported if it can write neither next to the code nor to the home directory, as in a container
    with a read-only file system. It gets a folder of this process only: it runs what it finds there.
    """
    for name, value in _SLEEP.items():
        os.environ.setdefault(name, value)
    if "NUMBA_CACHE_DIR" not in os.environ and not (_writable(_next_to_code()) or _writable(_of_user())):
        folder = tempfile.mkdtemp(prefix="dist-scvi-numba-")  # mode 0700
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["NUMBA_CACHE_DIR"] = folder


def _next_to_code() -> Path:
    return Path(dist_scvi.__file__).parent


def _of_user() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - never raises


def _writable(folder: Path) -> bool:
    """Return whether `folder` can be written to, or created."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK | os.X_OK)
