"""Several workers as threads of one process, for what they say to each other in Python objects."""

import threading
from collections.abc import Callable
from typing import Any

from dist_scvi.world import worker_device


class ThreadWorld:
    """The place of a thread among others, with the methods of `World` that need no tensors."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, said: list[Any]) -> None:
        self.rank, self.size, self.device = rank, size, worker_device(0)
        self._barrier, self._said = barrier, said

    def from_all(self, value: Any) -> list[Any]:
        self._said[self.rank] = value
        self.wait()
        values = list(self._said)
        self.wait()
        return values

    def wait(self) -> None:
        self._barrier.wait(timeout=60)


def together(size: int, work: Callable[[Any], Any]) -> list[Any]:
    """Let `size` workers do `work`, and give what each returned; an error of one is raised."""
    barrier, said = threading.Barrier(size), [None] * size
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadWorld(rank, size, barrier, said))
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
