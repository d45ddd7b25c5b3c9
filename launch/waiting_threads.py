"""Threads of a command that wait for work: asleep, not spinning."""

import os

_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Variables of GNU's and Intel's OpenMP."""


def let_waiting_threads_sleep() -> None:
    """Tell OpenMP to let threads sleep between loops, unless the user has set its variables.

    By default they spin, for up to 200 ms. On a machine that others use, a thread that spins takes the core of one that
    has work, and every loop waits for that one. OpenMP reads its variables when it is loaded, so this has to be called
    before torch is imported; processes that are started later inherit them.
    """
    for name, value in _SLEEP.items():
        os.environ.setdefault(name, value)
