"""Large arrays that are used again: memory fresh from the system costs more than decoding into it."""

import sys
import threading

import numpy as np
from numpy.typing import DTypeLike, NDArray

_NOBODY = 2
"""References to an array of which no part is in use: the list's, and that of the call that counts them."""


class Buffers:
    """Gives out arrays and takes back, unasked, those of which nobody holds a part any more.

    Keeps at most as many as were in use at one time. May be used by several threads.
    """

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def empty(self, length: int, dtype: DTypeLike) -> NDArray[np.generic]:
        """Give an array of `length` values, whatever they are."""
        size = length * np.dtype(dtype).itemsize
        with self._lock:
            free = [at for at in range(len(self._blocks)) if sys.getrefcount(self._blocks[at]) == _NOBODY]
            for at in free:
                if size <= self._blocks[at].nbytes <= 2 * size:
                    return self._blocks[at][:size].view(dtype)
            if free:
                del self._blocks[free[0]]
            fresh = np.empty(size + size // 8, dtype=np.uint8)
            self._blocks.append(fresh)
            return fresh[:size].view(dtype)
