"""Large arrays that are used again: memory fresh from the system costs more than decoding into it."""

import sys
import threading
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_NOBODY = 2
"""References to an array of which no part is in use: the list's, and that of the call that counts them."""


class Buffers:
    """Gives out arrays and takes back, unasked, those of which nobody holds a part any more.

    Keeps of each type at most as many as were in use at one time. May be used by several threads.
    """

    def __init__(self) -> None:
        self._blocks: defaultdict[np.dtype[Any], list[NDArray[Any]]] = defaultdict(list)
        self._lock = threading.Lock()

    def empty(self, length: int, dtype: DTypeLike) -> NDArray[Any]:
        """Give an array of `length` values, whatever they are."""
        with self._lock:
            blocks = self._blocks[np.dtype(dtype)]
            free = [at for at in range(len(blocks)) if sys.getrefcount(blocks[at]) == _NOBODY]
            for at in free:
                if length <= len(blocks[at]):
                    return blocks[at][:length]
            if free:
                del blocks[free[0]]
            blocks.append(np.empty(length + length // 8, dtype=dtype))
            return blocks[-1][:length]
