"""Handle the signals by which a scheduler announces the end of a job."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that Kubernetes, spot machines and SLURM send before they kill a process."""


@contextmanager
def call_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, call `stop` in a thread when one of `SIGNALS` arrives.

    A thread, because a handler runs between two bytecodes of the main thread, which may hold the lock that `stop`
    needs. Outside the main thread, where Python handles no signals, nothing changes.
    """

    def called(_number: int, _frame: object) -> None:
        threading.Thread(target=stop, name="stop", daemon=True).start()

    with _handled(called):
        yield


@contextmanager
def exit_on_signal(leave: Callable[[], NoReturn]) -> Iterator[None]:
    """While the block runs, call `leave` in the main thread for `SIGNALS` that are not handled inside the block."""
    with _handled(lambda _number, _frame: leave()):
        yield


@contextmanager
def _handled(called: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, called) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
