"""The number of threads that fetch and decode chunks: the processors of this process minus those that compute."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_REMOTE_THREADS = 32
"""Concurrent requests to a network. Their threads wait most of the time, so they may outnumber the processors."""
_compute_threads = 0


@contextmanager
def reserve_compute_threads(number: int) -> Iterator[None]:
    """Reserve `number` processors of this process for computing within the context.

    At least one thread always reads. Reads that have begun keep their number of threads.

    Raises
    ------
    ValueError
        If `number` is negative.
    """
    global _compute_threads  # noqa: PLW0603 - all readers of a process share its processors
    if number < 0:
        raise ValueError(f"number={number}: the number of compute threads, 0 or more, is needed")
    before, _compute_threads = _compute_threads, number
    try:
        yield
    finally:
        _compute_threads = before


def reader_threads(*, remote: bool = False) -> int:
    """Return the number of threads that may read concurrently in this process.

    Its processors are those that the system allows it, at most ``OMP_NUM_THREADS``, which launchers set to the share of
    one of several workers on a machine.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processors = min(processors, int(os.environ.get("OMP_NUM_THREADS") or processors))
    # Without the subtraction, a reader takes a processor from a compute thread, and all others wait for its result.
    threads = max(1, processors - _compute_threads)
    return max(threads, _REMOTE_THREADS) if remote else threads
