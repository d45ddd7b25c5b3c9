"""Duplicated rows and names, found by 64-bit hashes in bounded memory.

Shape letters in this file
    n   cells of one read
    h   hashes in memory
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_HELD = 1 << 24
"""Most hashes in memory, with their rows: 256 MiB. The chance that two different rows of these have the same hash is
1 in 10^5."""
_SORTED_TOGETHER = 16
"""Parts in which they are sorted, so that sorting needs little additional memory."""
_PAIRS = 3


@dataclass(frozen=True, slots=True)
class Copies:
    """Rows or names that occur more than once."""

    n_copies: int
    """Rows equal to an earlier one, among those compared."""
    share: float
    """Share of rows compared. They are chosen by their hash, so that a row is compared with all its copies or not at
    all."""
    pairs: tuple[tuple[int, int], ...]
    """The first few copies: the earlier row, and the row equal to it."""


class Hashes:
    """Hashes of many rows, to find those that occur twice.

    Parameters
    ----------
    n_rows
        Rows that will be added.
    part
        Which of `n_parts` is compared.
    """

    def __init__(self, n_rows: int, part: int = 0) -> None:
        self._parts, self._part = n_parts(n_rows), part
        room = n_rows if self._parts == 1 else _HELD + _HELD // 8
        self._hash_h, self._row_h = np.empty(room, dtype=np.uint64), np.empty(room, dtype=np.int64)
        self._held = 0

    def add(self, hash_n: NDArray[np.uint64], start: int) -> None:
        """Add the hashes of the rows from `start` on; rows with hash 0 are not compared.

        If the memory is full, which is only possible with many copies, later rows are not compared.
        """
        place_n = np.flatnonzero((hash_n != 0) & (hash_n % np.uint64(self._parts) == self._part))
        place_n = place_n[: len(self._hash_h) - self._held]
        here = slice(self._held, self._held + len(place_n))
        self._hash_h[here], self._row_h[here] = hash_n[place_n], start + place_n
        self._held = here.stop

    def copies(self) -> Copies:
        """Compare all hashes that were added."""
        n_copies, pairs = 0, []
        top_h = self._hash_h[: self._held] >> np.uint64(60)
        for top in range(_SORTED_TOGETHER):
            place_h = np.flatnonzero(top_h == top)
            hash_h = self._hash_h[place_h]
            order = np.argsort(hash_h, kind="stable")
            hash_h, row_h = hash_h[order], self._row_h[place_h[order]]
            copy = np.flatnonzero(hash_h[1:] == hash_h[:-1]) + 1
            n_copies += len(copy)
            first = np.searchsorted(hash_h, hash_h[copy])
            pairs += sorted(zip(row_h[copy].tolist(), row_h[first].tolist(), strict=True))[:_PAIRS]
        return Copies(n_copies, 1 / self._parts, tuple((one, other) for other, one in sorted(pairs)[:_PAIRS]))


def n_parts(n_rows: int) -> int:
    """Return the number of parts into which the hashes of `n_rows` are divided, so that one fits into memory."""
    return max(1, -(-n_rows // _HELD))


def hash_names(names: Iterable[str]) -> NDArray[np.uint64]:
    """Return a hash of each name, never 0."""
    digests = b"".join(blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8") | np.uint64(1 << 59)
