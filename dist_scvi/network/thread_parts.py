"""Run the parts of a computation on a few threads that sleep while they have nothing to do.

OpenMP's threads spin between two loops: beside a busy process they keep a core from those who have work, and every loop
waits for the one thread that lost its core. Here the caller takes parts too, whoever is free takes the next, and all
others sleep. The parts do not depend on the number of threads, so neither do the results.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count

import torch

_pool: ThreadPoolExecutor | None = None
_n_threads = 1
_lock = threading.Lock()


@contextmanager
def own_threads(n_threads: int) -> Iterator[None]:
    """Let `run_parts` use `n_threads` threads, and torch a single one, for as long as this lasts.

    Both at once would fight for the cores: torch's threads spin for milliseconds after each operation.
    """
    global _pool, _n_threads  # noqa: PLW0603 - as torch's own number of threads, it belongs to the process
    with _lock:
        before, torch_before = (_pool, _n_threads), torch.get_num_threads()
        _n_threads = n_threads
        _pool = ThreadPoolExecutor(n_threads - 1, "dist_scvi-parts") if n_threads > 1 else None
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            if _pool is not None:
                _pool.shutdown()
            _pool, _n_threads = before
            torch.set_num_threads(torch_before)


def run_parts(work: Callable[[int], None], n_parts: int) -> None:
    """Call `work` with every number below `n_parts`, in any order, and return when all are done.

    Raises
    ------
    Exception
        What `work` raised first.
    """
    pool = _pool
    if pool is None or n_parts < 2:  # noqa: PLR2004
        for part in range(n_parts):
            work(part)
        return
    numbers = count()

    def take() -> None:
        while (part := next(numbers)) < n_parts:
            work(part)

    others = [pool.submit(take) for _ in range(min(_n_threads, n_parts) - 1)]
    try:
        take()
    finally:
        for other in others:
            if not other.cancel():
                other.exception()  # wait: the arrays must not go while others write to them
    for other in others:
        if not other.cancelled():
            other.result()
