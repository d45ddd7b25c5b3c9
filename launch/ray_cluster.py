"""A cluster of Ray: the one of an address, or one for this process alone that is closed to everybody else."""

import atexit
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from dist_scvi.errors import WorkersFailedError
from dist_scvi.progress_reporter import report_waiting

_DEFAULT_TOKEN = Path("~/.ray/auth_token")
"""Where Ray looks for the token of a cluster that a user has set up."""


@cache
def prepare_own_cluster() -> None:
    """Make the cluster that this process starts listen on loopback only and require a token.

    Ray 2.60 reads these variables when it is imported, and caches the token, so they are set once before. Ray replaces
    ``_node_ip_address="127.0.0.1"`` by the address of the network interface; the variable that restricts it to loopback
    on Windows and macOS works on Linux too. Ray would write its own token to the home directory, readable for all users
    of the machine. The rendezvous port of torch on rank 0 remains open to the network.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ["RAY_AUTH_MODE"] = "token"
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or _DEFAULT_TOKEN.expanduser().is_file():
        return
    folder = Path(tempfile.mkdtemp(prefix="dist-scvi-token-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


_OBJECT_STORE_BYTES = 256 << 20
"""Of the cluster that a command starts: hardly any data pass through it, and /dev/shm of a container may be small."""


@contextmanager
def join_cluster(address: str | None, cpus: int) -> Iterator[None]:
    """Join a running cluster, or start one for this call only."""
    import ray

    started = not ray.is_initialized()
    if started:
        # without "local", Ray would join a cluster that happens to run on this machine
        own = {"address": "local", "num_cpus": max(os.cpu_count() or 1, cpus), "include_dashboard": False}
        own |= {"object_store_memory": _OBJECT_STORE_BYTES}
        found: dict[str, Any] = {"address": address} if address else own
        with report_waiting(lambda: "connecting to Ray" if address else "starting Ray"):
            try:
                ray.init(**found, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:
                if type(error) is not Exception:
                    raise
                # Ray has no type of its own for a node that does not start in time.
                raise WorkersFailedError(f"Ray did not start: {' '.join(str(error).split())}") from error
    try:
        yield
    finally:
        if started:
            ray.shutdown()
