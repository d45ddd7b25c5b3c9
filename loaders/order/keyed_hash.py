"""Seeded, keyed arithmetic on row numbers: hashes and permutations that need no state and no array of all rows.

The training order has to be the same on every machine and with every numpy version. So it uses these functions and not
a random generator of numpy, whose stream may change between versions.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 0xFFFFFFFFFFFFFFFF
_FEISTEL_ROUNDS = 6


def hash_rows(rows: NDArray[np.int64], *keys: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash each row number under `keys` to 64 well-mixed bits; keys that are arrays broadcast with `rows`.

    Notes
    -----
    The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), once for the row and once for each key.
    """
    value = _mix(rows.astype(np.uint64))
    for key in keys:
        if isinstance(key, np.ndarray):  # arrays wrap around silently; for a numpy scalar numpy warns of overflow
            value = _mix(value ^ (key.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(1)))
        else:
            value = _mix(value ^ np.uint64((key * _GOLDEN + 1) & _WORD))
    return value


def hash_keys(*keys: int) -> int:
    """Hash a few integers to one integer of 63 bits, a valid seed of a generator."""
    return int(hash_rows(np.zeros(1, dtype=np.int64), *keys)[0] >> np.uint64(1))


def permute(index: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
    """Map each `index` in ``[0, n)`` to its place in a pseudorandom permutation of ``[0, n)``.

    The cost is proportional to the length of `index`: no array of length `n` is allocated.

    Notes
    -----
    A balanced Feistel network on the smallest even number of bits that holds `n`, walked along its cycle until the
    result is below `n` (Black and Rogaway, CT-RSA 2002).
    """
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    value = index.astype(np.uint64)
    outside = np.ones(value.shape, dtype=bool)
    # The loop ends: the network permutes all numbers of these bits, and the cycle of each index returns to an index
    # below n. Few passes are needed, as there are at most about four times as many numbers as indices.
    while outside.any():
        left, right = value[outside] >> np.uint64(half_bits), value[outside] & mask
        for turn in range(_FEISTEL_ROUNDS):
            left, right = right, left ^ (hash_rows(right.astype(np.int64), key, turn) & mask)
        value[outside] = (left << np.uint64(half_bits)) | right
        outside = value >= np.uint64(n)
    return value.astype(np.int64)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = value + np.uint64(_GOLDEN)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
