"""The environment of a command, set before numba is imported, which reads it when it is loaded."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import dist_scvi


def prepare_environment() -> None:
    """Give numba a folder for compiled code where it has none, unless the user has named one.

    numba refuses to compile if it can write neither next to the code nor to the home directory, as in a container
    with a read-only file system. It gets a folder of this process only, because it runs what it finds there.
    """
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
