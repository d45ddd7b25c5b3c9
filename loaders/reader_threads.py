"""How many threads fetch and decode chunks: the processors of this process, less those that compute."""

import os

_REMOTE_THREADS = 32
"""Requests to a network in flight: their threads wait, so they may outnumber the processors."""
_compute_threads = 0


def reserve_compute_threads(number: int) -> None:
    """Leave `number` processors of this process to computing; 0, as at first, lets reading use all of them.

    At least one thread always reads. Reads that have begun keep the threads that they have.

    Raises
    ------
    ValueError
        If `number` is negative.
    """
    global _compute_threads  # noqa: PLW0603 - one process has one set of processors, whoever reads in it
    if number < 0:
        raise ValueError(f"number={number}: the number of compute threads, 0 or more, is needed")
    _compute_threads = number


def reader_threads(*, remote: bool = False) -> int:
    """Count the threads that may read at once in this process.

    Its processors are those that the system allows it, at most ``OMP_NUM_THREADS``, which launchers set to the share of
    one of several workers on a machine.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processors = min(processors, int(os.environ.get("OMP_NUM_THREADS") or processors))
    # Without this, a reader takes a processor from a compute thread for whose result all others then wait.
    threads = max(1, processors - _compute_threads)
    return max(threads, _REMOTE_THREADS) if remote else threads
