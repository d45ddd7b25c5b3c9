"""Run the parts of a computation on a few threads that sleep while they have no work.

OpenMP threads spin between two loops. Next to another busy process they take cores from threads that have work, and
every loop waits for the thread that lost its core. Here the calling thread works too, each free thread takes the next
part, and idle threads sleep. The parts do not depend on the number of threads, so neither do the results.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import count

import torch

_local = threading.local()


@lru_cache(maxsize=1)
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, "dist_scvi-parts")


@contextmanager
def own_threads() -> Iterator[None]:
    """Let `run_parts` use the number of threads set for torch, and torch one thread, within the context."""
    n_threads = torch.get_num_threads()
    if getattr(_local, "n_threads", 1) > 1 or n_threads == 1:
        yield
        return
    _local.n_threads = n_threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _local.n_threads = 1
        torch.set_num_threads(n_threads)


def run_parts(work: Callable[[int], None], n_parts: int) -> None:
    """Call `work` with every number below `n_parts`, in any order, and return when all calls are done.

    Raises
    ------
    Exception
        The first exception of `work`.
    """
    n_threads = min(getattr(_local, "n_threads", 1), n_parts)
    if n_threads < 2:
        for part in range(n_parts):
            work(part)
        return
    numbers = count()  # a next() of it is atomic under the GIL, so no two threads get the same part

    def take() -> None:
        while (part := next(numbers)) < n_parts:
            work(part)

    pool = _pool(_local.n_threads - 1)
    others = [pool.submit(take) for _ in range(n_threads - 1)]
    try:
        take()
    finally:
        for other in others:
            if not other.cancel():
                other.exception()  # wait: the arrays must not be freed while other threads write to them
    for other in others:
        if not other.cancelled():
            other.result()
