"""Exponential and logarithm that LLVM can vectorise, for numba loops.

The functions of the C library are called for one number at a time. For float32, these are polynomials (Cephes, expf.c
and logf.c) and bit operations with an error of at most 1.5 units in the last place. For float64 they are those of the
C library.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

# No reassociation: it would remove the correction terms, which are zero in exact arithmetic.
_OPTIONS: Any = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}

_ONE, _HALF = np.float32(1), np.float32(0.5)
_LOWEST, _HIGHEST = np.float32(-87.33), np.float32(88.37)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912)  # 1.5 * 2^23: adding it rounds to a whole number, in the lowest bits
_ROUND_BITS, _BIAS, _MANTISSA = np.int32(0x4B400000), np.int32(127), np.int32(23)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_E0, _E1, _E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E3, _E4, _E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_L0, _L1, _L2 = np.float32(7.0376836292e-2), np.float32(-1.1514610310e-1), np.float32(1.1676998740e-1)
_L3, _L4, _L5 = np.float32(-1.2420140846e-1), np.float32(1.4249322787e-1), np.float32(-1.6668057665e-1)
_L6, _L7, _L8 = np.float32(2.0000714765e-1), np.float32(-2.4999993993e-1), np.float32(3.3333331174e-1)


def _build_bits(_context: Any, x: Any) -> Any:
    """Reinterpret a float32 as int32."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), build


def _build_from_bits(_context: Any, x: Any) -> Any:
    """Reinterpret an int32 as float32."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), build


def _build_select(_context: Any, condition: Any, yes: Any, no: Any) -> Any:
    """Return `yes` or `no` without a branch, which would prevent vectorisation."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.select(*args)

    return yes(types.boolean, yes, yes), build


_bits, _from_bits = cast("Any", intrinsic(_build_bits)), cast("Any", intrinsic(_build_from_bits))
select = cast("Any", intrinsic(_build_select))


def exp(x: Any) -> Any:
    """Return e to the power of `x`; in float32 `x` is limited to [-87.33, 88.37]."""
    return math.exp(x)


def log(x: Any) -> Any:
    """Return the natural logarithm of a positive normal number."""
    return math.log(x)


def log_of_sum(y: Any, z: Any, inverse: Any) -> Any:
    """Return the logarithm of 1 + `y`, given ``z = 1 + y`` and ``1 / z``; accurate also if `y` is lost in the sum."""
    return math.log(z) + (y - (z - 1)) * inverse


def _exp32(x: Any) -> Any:
    x = select(x > _LOWEST, x, _LOWEST)
    x = select(x < _HIGHEST, x, _HIGHEST)
    rounded = x * _LOG2_E + _ROUND
    power = np.int32(_bits(rounded) - _ROUND_BITS)
    whole = rounded - _ROUND
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    return (p * (r * r) + r + _ONE) * _from_bits(np.int32((power + _BIAS) << _MANTISSA))


def _log32(x: Any) -> Any:
    power = np.int32(np.int32(_bits(x) - _SQRT_HALF_BITS) >> _MANTISSA)
    f = _from_bits(np.int32(_bits(x) - np.int32(power << _MANTISSA))) - _ONE
    p = ((((((((_L0 * f + _L1) * f + _L2) * f + _L3) * f + _L4) * f + _L5) * f + _L6) * f + _L7) * f) + _L8
    square, whole = f * f, np.float32(power)
    return f + (p * f * square + whole * _LN2_LOW - _HALF * square) + whole * _LN2_HIGH


@overload(exp, jit_options=_OPTIONS, strict=False)
def _overload_exp(x: Any) -> Callable[..., Any]:
    return _exp32 if x == types.float32 else lambda x: math.exp(x)  # noqa: PLW0108 - numba compares signatures


@overload(log, jit_options=_OPTIONS, strict=False)
def _overload_log(x: Any) -> Callable[..., Any]:
    return _log32 if x == types.float32 else lambda x: math.log(x)  # noqa: PLW0108 - numba compares signatures


@overload(log_of_sum, jit_options=_OPTIONS, strict=False)
def _overload_log_of_sum(y: Any, z: Any, inverse: Any) -> Callable[..., Any]:
    return lambda y, z, inverse: log(z) + (y - (z - _ONE)) * inverse
