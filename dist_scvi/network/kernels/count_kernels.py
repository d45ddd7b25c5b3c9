"""Log-probabilities of counts and their gradients in closed form, row by row, compiled by numba.

A row is a cell. All counts are first treated as 0, in loops that LLVM vectorises. The stored entries then add the
difference; they are gathered into short arrays so that these loops vectorise too. The logits are overwritten with their
gradients, so no other array of the size of the logits is allocated.

Each loop runs over a block of genes that stays in the L1 cache, and uses few arrays: LLVM must prove that no two of
them overlap, and stops vectorising if this needs more than eight comparisons. Scratch space is therefore one array with
blocks at constant offsets.

Shape letters in this file
    n   cells
    g   genes
    e   stored entries
    k   rows of the inverse dispersion: 1, or n
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dist_scvi.network.kernels.fast_math import exp, log, log_of_sum, select

_BLOCK = 512
_EXACT = 8
"""Up to this count, the ratio of gamma functions is computed as a product; above, by Stirling's series."""
_LARGE_THETA = np.float32(1e4)
_EPS = np.float32(1e-8)
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_LOWEST = np.float32(-3e38)
_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)

# The flags let LLVM assume that there is no NaN or infinity, so a NaN in a `_vector` loop may turn into any number.
# `_plain` functions therefore add `_ZERO * sum` of the inputs to the results, which is NaN if an input is not finite.
_Loop = TypeVar("_Loop", bound=Callable[..., Any])
_vector = cast(
    "Callable[[_Loop], _Loop]",
    njit(nogil=True, cache=True, error_model="numpy", fastmath={"nnan", "ninf", "nsz", "reassoc", "contract"}),
)
_plain = cast("Callable[[_Loop], _Loop]", njit(nogil=True, cache=True, error_model="numpy"))


@_vector
def _max(a: NDArray[Any]) -> Any:
    highest = a.dtype.type(_LOWEST)
    for i in range(len(a)):
        highest = select(a[i] > highest, a[i], highest)
    return highest


@_vector
def _sum(a: NDArray[Any]) -> Any:
    total = a.dtype.type(0)
    for i in range(len(a)):
        total += a[i]
    return total


@_vector
def _exponentials(a: NDArray[Any], shift: Any) -> Any:
    total = a.dtype.type(0)
    for i in range(len(a)):
        value = exp(a[i] - shift)
        a[i] = value
        total += value
    return total


@_plain
def _softmax(logits_g: NDArray[Any]) -> Any:
    """Replace logits by exponentials; return the factor that scales these to shares, NaN if a logit is not finite."""
    check = _sum(logits_g)
    total = _exponentials(logits_g, _max(logits_g))
    return _ONE / total + _ZERO * check


@_vector
def _logarithms(exp_g: NDArray[Any], theta_g: NDArray[Any], scale: Any, work: NDArray[Any]) -> None:
    """Store mu / (theta + mu) and the logarithm of 1 + mu / theta in `work`."""
    for i in range(len(exp_g)):
        y = exp_g[i] * scale / (theta_g[i] + _EPS)
        z = _ONE + y
        inverse = _ONE / z
        work[i] = y * inverse
        work[i + _BLOCK] = log_of_sum(y, z, inverse)


@_vector
def _zeros(theta_g: NDArray[Any], work: NDArray[Any]) -> Any:
    """Sum the log-probabilities of zeros under the negative binomial."""
    total = theta_g.dtype.type(0)
    for i in range(len(theta_g)):
        total -= theta_g[i] * work[i + _BLOCK]
        work[i + 2 * _BLOCK] = _ONE
    return total


@_vector
def _inflated_zeros(zi_g: NDArray[Any], theta_g: NDArray[Any], work: NDArray[Any]) -> Any:
    """Sum them with zero inflation, as ``softplus(t) - softplus(-zi)``.

    Stores the sigmoid of t in `work`, and replaces the logits of zero inflation by their gradients.
    """
    total = theta_g.dtype.type(0)
    for i in range(len(zi_g)):
        zi = zi_g[i]
        t = -theta_g[i] * work[i + _BLOCK] - zi
        exp_t, exp_zi = exp(-abs(t)), exp(-abs(zi))
        inverse_t, inverse_zi = _ONE / (_ONE + exp_t), _ONE / (_ONE + exp_zi)
        sigmoid_t = select(t > _ZERO, inverse_t, exp_t * inverse_t)
        total += _HALF * ((t + abs(t)) - (abs(zi) - zi)) + log((_ONE + exp_t) * inverse_zi)
        work[i + 2 * _BLOCK] = sigmoid_t
        zi_g[i] = select(zi > _ZERO, exp_zi * inverse_zi, inverse_zi) - sigmoid_t
    return total


@_vector
def _slopes(theta_g: NDArray[Any], work: NDArray[Any], slope_g: NDArray[Any], d_theta_g: NDArray[Any]) -> Any:
    """Store the derivative in log mu, add that in theta, and return the sum of the former."""
    total = theta_g.dtype.type(0)
    for i in range(len(theta_g)):
        theta = theta_g[i]
        slope = -work[i + 2 * _BLOCK] * theta * work[i]
        slope_g[i] = slope
        total += slope
        share = theta / (theta + _EPS)
        d_theta_g[i] += work[i + 2 * _BLOCK] * (share * work[i] - work[i + _BLOCK])
    return total


@_vector
def _finish(exp_g: NDArray[Any], slope_g: NDArray[Any], factor: Any) -> None:
    """Turn derivatives in log mu into derivatives in the logits of the shares."""
    for i in range(len(exp_g)):
        exp_g[i] = slope_g[i] - exp_g[i] * factor


@_vector
def _is_small(count: Any, theta: Any) -> Any:
    """Return whether the ratio of gamma functions is a product of few factors that does not overflow."""
    return (count <= _EXACT) & (theta <= _LARGE_THETA) & (np.float32(np.int32(count)) == count)


@_vector
def _stored(work: NDArray[Any], n_entries: int, scale: Any, inflated: Any) -> Any:
    """Sum what stored entries add to the log-probability, and store what they add to the derivatives.

    Parameters
    ----------
    work
        On entry exponentials, theta, logits of zero inflation and counts, a block each. On return the additions to the
        derivatives in log mu, theta and the logits of zero inflation, in the first three blocks.
    inflated
        1 with zero inflation, else 0.
    """
    total = work.dtype.type(0)
    for i in range(n_entries):
        mu, theta, count = work[i] * scale, work[i + _BLOCK], work[i + 3 * _BLOCK]
        inverse_theta = _ONE / (theta + _EPS)
        y = mu * inverse_theta
        z = _ONE + y
        inverse = _ONE / z
        log_sum = log_of_sum(y, z, inverse)
        t = -theta * log_sum - work[i + 2 * _BLOCK]
        exp_t = exp(-abs(t))
        inverse_t = _ONE / (_ONE + exp_t)
        rest = select(count > _ZERO, inflated, _ZERO * inflated)  # a stored zero is already complete
        not_t = rest * select(t > _ZERO, exp_t * inverse_t, inverse_t)
        small = select(_is_small(count, theta), count, _ZERO * count)
        ratio, slope = work.dtype.type(1), work.dtype.type(0)
        for k in range(_EXACT):  # ratio of gamma functions over the factorial, and its derivative in theta
            scaled = (theta + np.float32(k)) * np.float32(1 / (k + 1))
            inside = small > np.float32(k)
            slope = select(inside, slope * scaled + ratio * np.float32(1 / (k + 1)), slope)
            ratio = select(inside, ratio * scaled, ratio)
        total += (
            count * log((mu + _EPS) * inverse_theta * inverse)
            + log(ratio * (_ONE + rest * (inverse_t - _ONE)))
            - rest * _HALF * (abs(t) - t)
        )
        share = theta * inverse_theta
        work[i] = count * (mu / (mu + _EPS) - y * inverse) - not_t * theta * y * inverse
        work[i + _BLOCK] = not_t * (share * y * inverse - log_sum) - count * inverse_theta * inverse + slope / ratio
        work[i + 2 * _BLOCK] = -not_t
    return total


@_plain
def _lgamma_digamma(y: float) -> tuple[float, float]:
    """Return lgamma, to 1e-13, and digamma of y > 0 by Stirling's series, shifted to 10 and above."""
    product, digamma = 1.0, 0.0
    while y < 10.0:
        product *= y
        digamma -= 1.0 / y
        y += 1.0
    log_y, inverse = math.log(y), 1.0 / y
    square = inverse * inverse
    lgamma = (y - 0.5) * log_y - y + _HALF_LOG_2_PI - math.log(product)
    lgamma += inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))
    digamma += log_y - 0.5 * inverse
    digamma -= square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132))))
    return lgamma, digamma


@_plain
def _add_stored(
    exp_g: NDArray[Any],
    zi_g: NDArray[Any] | None,
    zi_e: NDArray[Any],
    theta_g: NDArray[Any],
    gene_e: NDArray[Any],
    count_e: NDArray[Any],
    scale: Any,
    work: NDArray[Any],
    slope_g: NDArray[Any],
    d_theta_g: NDArray[Any],
) -> tuple[float, float]:
    """Add the contribution of a cell's stored entries; return the additions to its log-probability and slope."""
    value, total = 0.0, 0.0
    for low in range(0, len(gene_e), _BLOCK):
        high = min(low + _BLOCK, len(gene_e))
        for e in range(low, high):
            work[e - low] = exp_g[gene_e[e]]
            work[e - low + _BLOCK] = theta_g[gene_e[e]]
            work[e - low + 2 * _BLOCK] = 0 if zi_g is None else zi_e[e]
            work[e - low + 3 * _BLOCK] = count_e[e]
        value += _stored(work, high - low, scale, work.dtype.type(zi_g is not None))
        for e in range(low, high):
            slope_g[gene_e[e]] += work[e - low]
            total += work[e - low]
            d_theta_g[gene_e[e]] += work[e - low + _BLOCK]
            if zi_g is not None:
                zi_g[gene_e[e]] += work[e - low + 2 * _BLOCK]
    return value, total


@_plain
def _add_large(theta_g: NDArray[Any], gene_e: NDArray[Any], count_e: NDArray[Any], d_theta_g: NDArray[Any]) -> float:
    """Add the ratios of gamma functions of the entries that `_stored` leaves out; return their sum.

    This is a separate loop because a branch in `_stored` would prevent its vectorisation.
    """
    value = 0.0
    for e in range(len(gene_e)):
        theta = theta_g[gene_e[e]]
        if not _is_small(count_e[e], theta):
            above, digamma_above = _lgamma_digamma(float(count_e[e]) + theta)
            own, digamma_own = _lgamma_digamma(float(theta))
            value += above - own - _lgamma_digamma(float(count_e[e]) + 1.0)[0]
            d_theta_g[gene_e[e]] += digamma_above - digamma_own
    return value


@_plain
def negative_binomial_rows(
    logits_ng: NDArray[Any],
    zi_ng: NDArray[Any] | None,
    theta_kg: NDArray[Any],
    library_n: NDArray[Any],
    indptr: NDArray[np.int64],
    gene_e: NDArray[Any],
    count_e: NDArray[Any],
    value_n: NDArray[np.float64],
    slope_n: NDArray[Any],
    d_theta_kg: NDArray[Any],
    first: int,
    stop: int,
) -> None:
    """Compute the log-probabilities of the cells from `first` to `stop`, and replace logits by gradients.

    Parameters
    ----------
    logits_ng, zi_ng
        Logits of the shares, and of zero inflation or None.
    theta_kg
        Inverse dispersion: one row for all cells, or one for each.
    library_n
        Factor of the shares.
    indptr, gene_e, count_e
        The counts, by row.
    value_n, slope_n
        Receive the log-probability and its derivative in the logarithm of the library size.
    d_theta_kg
        The derivative in theta is added to it: to one row for all these cells, or to one for each. Threads must not
        share a row.
    """
    n_genes = logits_ng.shape[1]
    slope_g, work = np.empty_like(logits_ng[0]), np.empty(4 * _BLOCK, logits_ng.dtype)
    zi_e = np.empty(n_genes, logits_ng.dtype)
    for n in range(first, stop):
        exp_g, theta_g = logits_ng[n], theta_kg[n if len(theta_kg) > 1 else 0]
        d_theta_g = d_theta_kg[n if len(d_theta_kg) > 1 else 0]
        own_gene_e, own_count_e = gene_e[indptr[n] : indptr[n + 1]], count_e[indptr[n] : indptr[n + 1]]
        value, total = 0.0, 0.0
        if zi_ng is not None:
            for e in range(len(own_gene_e)):
                zi_e[e] = zi_ng[n, own_gene_e[e]]  # copied, as the loops below overwrite the logits
            value += _ZERO * _sum(zi_ng[n])  # NaN if a logit is not finite
        to_share = _softmax(exp_g)
        scale = to_share * library_n[n]
        for low in range(0, n_genes, _BLOCK):
            high = min(low + _BLOCK, n_genes)
            _logarithms(exp_g[low:high], theta_g[low:high], scale, work)
            if zi_ng is None:
                value += _zeros(theta_g[low:high], work)
            else:
                value += _inflated_zeros(zi_ng[n, low:high], theta_g[low:high], work)
            total += _slopes(theta_g[low:high], work, slope_g[low:high], d_theta_g[low:high])
        zi_g = None if zi_ng is None else zi_ng[n]
        more, steeper = _add_stored(
            exp_g, zi_g, zi_e, theta_g, own_gene_e, own_count_e, scale, work, slope_g, d_theta_g
        )
        value, total = value + more + _add_large(theta_g, own_gene_e, own_count_e, d_theta_g), total + steeper
        _finish(exp_g, slope_g, logits_ng.dtype.type(total) * to_share)
        value_n[n], slope_n[n] = value + _ZERO * to_share, total


@_plain
def poisson_rows(
    logits_ng: NDArray[Any],
    library_n: NDArray[Any],
    indptr: NDArray[np.int64],
    gene_e: NDArray[Any],
    count_e: NDArray[Any],
    value_n: NDArray[np.float64],
    slope_n: NDArray[Any],
    first: int,
    stop: int,
) -> None:
    """Compute them for a Poisson distribution; arguments as for `negative_binomial_rows`."""
    slope_g = np.empty_like(logits_ng[0])
    for n in range(first, stop):
        exp_g, library = logits_ng[n], library_n[n]
        to_share = _softmax(exp_g)
        value, total = -float(library), 0.0
        slope_g[:] = 0
        for e in range(indptr[n], indptr[n + 1]):
            count = float(count_e[e])
            if count > 0:
                value += count * math.log(exp_g[gene_e[e]] * to_share * library)
                value -= _lgamma_digamma(count + 1.0)[0]
                slope_g[gene_e[e]] += count
                total += count
        # The expected counts sum to the library size for any logits, so their derivatives in the logits cancel.
        _finish(exp_g, slope_g, logits_ng.dtype.type(total) * to_share)
        value_n[n], slope_n[n] = value + _ZERO * to_share, total - library
