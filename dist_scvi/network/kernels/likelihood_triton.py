"""The likelihood of counts on a GPU: softmax, log-probability and gradients in one kernel; a kernel for dense counts.

A program processes a few cells, one after the other. All counts are first treated as 0; the stored entries then add the
difference, so that gamma functions are computed for stored entries only. Gradients are closed forms. This file imports
only torch and Triton, so that ``benchmarks/gpu.py`` runs on a bare machine.

Shape letters in this file
    n   cells
    g   genes
    e   stored entries
    p   programs
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 8
"""Cells of a program. Their derivatives in theta are added in order, without atomics, so results are reproducible."""
_BLOCK, _ENTRIES = 2048, 256
_EPS = tl.constexpr(1e-8)
_EXACT = tl.constexpr(8)
_HALF_LOG_2_PI = tl.constexpr(0.9189385332046727)


@triton.jit
def _log_of_sum(y, z):
    """Return the logarithm of 1 + y; accurate also if y is lost in ``z = 1 + y``."""
    return tl.log(z) + (y - (z - 1)) / z


@triton.jit
def _zero(mu, theta, zi, inflated: tl.constexpr):
    """Return the log-probability of a zero, and its derivatives in log mu, theta and the logit of zero inflation."""
    y = mu / (theta + _EPS)
    z = 1 + y
    share, log_sum = y / z, _log_of_sum(y, z)
    slope_theta = theta / (theta + _EPS) * share - log_sum
    if inflated:
        t = -theta * log_sum - zi
        exp_t, exp_zi = tl.exp(-tl.abs(t)), tl.exp(-tl.abs(zi))
        sigmoid_t = tl.where(t > 0, 1 / (1 + exp_t), exp_t / (1 + exp_t))
        sigmoid_not_zi = tl.where(zi > 0, exp_zi / (1 + exp_zi), 1 / (1 + exp_zi))
        value = 0.5 * ((t + tl.abs(t)) - (tl.abs(zi) - zi)) + tl.log((1 + exp_t) / (1 + exp_zi))
        return value, -sigmoid_t * theta * share, sigmoid_t * slope_theta, sigmoid_not_zi - sigmoid_t
    return -theta * log_sum, -theta * share, slope_theta, 0 * zi


@triton.jit
def _lgamma_digamma(y):
    """Return lgamma and digamma of y > 0, float64, by Stirling's series shifted by 10.

    The shift is a fixed number of steps for all entries, without a branch for each.
    """
    product, digamma = y * 0 + 1, y * 0
    for _ in tl.static_range(10):
        product *= y
        digamma -= 1 / y
        y += 1
    inverse = 1 / y
    square, log_y = inverse * inverse, tl.log(y)
    lgamma = (y - 0.5) * log_y - y + _HALF_LOG_2_PI - tl.log(product)
    lgamma += inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    digamma += log_y - 0.5 * inverse - square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    return lgamma, digamma


@triton.jit
def _gamma_ratio(count, theta):
    """Return the logarithm of gamma(theta + count) / gamma(theta) / count!, and its derivative in theta."""
    small = (count <= _EXACT) & (count == tl.floor(count)) & (theta <= 1e4)
    ratio, slope = count * 0 + 1, count * 0
    for k in tl.static_range(_EXACT):
        scaled = (theta + k) / (k + 1)
        inside = count > k
        slope = tl.where(inside, slope * scaled + ratio / (k + 1), slope)
        ratio = tl.where(inside, ratio * scaled, ratio)
    above, digamma_above = _lgamma_digamma(count.to(tl.float64) + theta)
    own, digamma_own = _lgamma_digamma(theta.to(tl.float64))
    factorial, _ = _lgamma_digamma(count.to(tl.float64) + 1)
    value = tl.where(small, tl.log(ratio).to(tl.float64), above - own - factorial)
    return value, tl.where(small, slope / ratio, (digamma_above - digamma_own).to(tl.float32))


@triton.jit
def _stored(mu, theta, zi, count, kind: tl.constexpr):
    """Return what entries add to the log-probability and its derivatives; ``kind`` is 0 nb, 1 zinb, 2 Poisson."""
    none = count * 0
    if kind == 2:
        factorial, _ = _lgamma_digamma(count.to(tl.float64) + 1)
        return count * tl.log(tl.where(count > 0, mu, 1)) - factorial, count, none, none
    y = mu / (theta + _EPS)
    z = 1 + y
    share, log_sum = y / z, _log_of_sum(y, z)
    value, slope_theta = _gamma_ratio(count, theta)
    value += count * tl.log((mu + _EPS) / (theta + _EPS) / z)
    slope = count * (mu / (mu + _EPS) - share)
    slope_theta -= count / (theta + _EPS) / z
    not_t = none
    if kind == 1:
        t = -theta * log_sum - zi
        exp_t = tl.exp(-tl.abs(t))
        not_t = tl.where(count > 0, tl.where(t > 0, exp_t / (1 + exp_t), 1 / (1 + exp_t)), 0)
        value -= tl.where(count > 0, 0.5 * (tl.abs(t) - t) + tl.log(1 + exp_t), 0)
        slope -= not_t * theta * share
        slope_theta += not_t * (theta / (theta + _EPS) * share - log_sum)
    return value, slope, slope_theta, -not_t


@triton.jit
def _normaliser(logits, base, n_genes, block: tl.constexpr):
    """Return the highest logit of a cell, and the sum of the exponentials of the logits minus it, in one pass."""
    genes = tl.arange(0, block)
    highest, total = -float("inf"), 0.0
    for low in range(0, n_genes, block):
        inside = low + genes < n_genes
        score = tl.load(logits + base + low + genes, mask=inside, other=-float("inf")).to(tl.float32)
        before = highest
        highest = tl.maximum(highest, tl.max(score, 0))
        total = total * tl.exp(before - highest) + tl.sum(tl.exp(score - highest), 0)
    return highest, total


@triton.jit
def _load_genes(logits, zi, theta_row, base, at, inside, highest, scale, kind: tl.constexpr):
    """Return mu, theta and the logit of zero inflation of the genes `at`."""
    mu = tl.exp(tl.load(logits + base + at, mask=inside, other=-float("inf")).to(tl.float32) - highest) * scale
    theta = tl.load(theta_row + at, mask=inside, other=1.0) if kind < 2 else mu * 0 + 1
    gate = tl.load(zi + base + at, mask=inside, other=0.0).to(tl.float32) if kind == 1 else mu * 0
    return mu, theta, gate


@triton.jit
def _add(pointer, at, inside, value):
    tl.store(pointer + at, tl.load(pointer + at, mask=inside, other=0.0) + value, mask=inside)


@triton.jit
def _sums(
    logits, zi, theta_row, gene, count, base, begin, end, highest, scale, library, n_genes,
    kind: tl.constexpr, block: tl.constexpr, entries: tl.constexpr,
):  # fmt: skip
    """Return the log-probability of a cell, and its derivative in the logarithm of the library size."""
    genes, places = tl.arange(0, block), tl.arange(0, entries)
    slopes = highest * 0.0
    value = slopes.to(tl.float64)
    if kind == 2:
        value -= library
        slopes -= library
    else:
        for low in range(0, n_genes, block):
            inside = low + genes < n_genes
            mu, theta, gate = _load_genes(logits, zi, theta_row, base, low + genes, inside, highest, scale, kind)
            v, s, _, _ = _zero(mu, theta, gate, kind == 1)
            value += tl.sum(tl.where(inside, v, 0.0), 0)
            slopes += tl.sum(tl.where(inside, s, 0.0), 0)
    for low in range(begin, end, entries):
        inside = low + places < end
        at = tl.load(gene + low + places, mask=inside, other=0)
        x = tl.load(count + low + places, mask=inside, other=0.0)
        mu, theta, gate = _load_genes(logits, zi, theta_row, base, at, inside, highest, scale, kind)
        v, s, _, _ = _stored(tl.where(inside, mu, 1.0), theta, gate, x, kind)
        value += tl.sum(tl.where(inside, v, 0.0), 0)
        slopes += tl.sum(tl.where(inside, s, 0.0), 0)
    return value, slopes


@triton.jit
def _write_gradients(
    logits, zi, theta_row, gene, count, d_logits, d_zi, d_theta_row,
    base, begin, end, highest, scale, factor, weight, n_genes,
    kind: tl.constexpr, block: tl.constexpr, entries: tl.constexpr,
):  # fmt: skip
    """Store the gradients of a cell's logits, and add those of theta."""
    genes, places = tl.arange(0, block), tl.arange(0, entries)
    for low in range(0, n_genes, block):
        at, inside = low + genes, low + genes < n_genes
        mu, theta, gate = _load_genes(logits, zi, theta_row, base, at, inside, highest, scale, kind)
        slope = mu * 0
        if kind < 2:
            _, slope, in_theta, in_zi = _zero(mu, theta, gate, kind == 1)
            _add(d_theta_row, at, inside, weight * in_theta)
            if kind == 1:
                tl.store(d_zi + base + at, weight * in_zi, mask=inside)
        share = tl.exp(tl.load(logits + base + at, mask=inside, other=-float("inf")).to(tl.float32) - highest)
        tl.store(d_logits + base + at, weight * (slope - share * factor), mask=inside)
    # The loop below reads what other threads of the program stored above; the next cell reads what it stores to theta.
    tl.debug_barrier()
    for low in range(begin, end, entries):
        inside = low + places < end
        at = tl.load(gene + low + places, mask=inside, other=0)
        x = tl.load(count + low + places, mask=inside, other=0.0)
        mu, theta, gate = _load_genes(logits, zi, theta_row, base, at, inside, highest, scale, kind)
        _, slope, in_theta, in_zi = _stored(tl.where(inside, mu, 1.0), theta, gate, x, kind)
        _add(d_logits + base, at, inside, weight * slope)
        if kind < 2:
            _add(d_theta_row, at, inside, weight * in_theta)
        if kind == 1:
            _add(d_zi + base, at, inside, weight * in_zi)
    tl.debug_barrier()


@triton.jit
def _rows_kernel(
    logits, zi, theta, library, indptr, gene, count, weight, value_out, slope_out, d_logits, d_zi, d_theta,
    n_cells, n_genes,
    kind: tl.constexpr, by_cell: tl.constexpr, gradient: tl.constexpr, rows: tl.constexpr,
    block: tl.constexpr, entries: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    for row in range(rows):
        n = program * rows + row
        if n < n_cells:
            base = n * n_genes
            theta_row = theta + (base if by_cell else 0)
            highest, total = _normaliser(logits, base, n_genes, block)
            library_size, begin, end = tl.load(library + n), tl.load(indptr + n), tl.load(indptr + n + 1)
            scale = library_size / total
            value, slopes = _sums(
                logits, zi, theta_row, gene, count, base, begin, end, highest, scale, library_size, n_genes,
                kind, block, entries,
            )  # fmt: skip
            tl.store(value_out + n, value)
            tl.store(slope_out + n, slopes)
            if gradient:
                # For Poisson the derivatives of the expected counts cancel, as these sum to the library size.
                factor = (slopes + library_size if kind == 2 else slopes) / total
                _write_gradients(
                    logits, zi, theta_row, gene, count, d_logits, d_zi,
                    d_theta + (base if by_cell else program * n_genes),
                    base, begin, end, highest, scale, factor, tl.load(weight + n), n_genes,
                    kind, block, entries,
                )  # fmt: skip


_KINDS = {"nb": 0, "zinb": 1, "poisson": 2}


def triton_log_likelihood(
    likelihood: str,
    logits_ng: Tensor,
    zi_ng: Tensor | None,
    theta: Tensor | None,
    library_n: Tensor,
    indptr: Tensor,
    gene_e: Tensor,
    count_e: Tensor,
) -> Tensor:
    """Sum the log-probability of each cell over its genes, shape (n,), float32.

    Parameters
    ----------
    likelihood
        ``zinb``, ``nb`` or ``poisson``.
    logits_ng, zi_ng
        Logits of the shares, and of zero inflation for ``zinb``; float32 or bfloat16.
    theta
        Inverse dispersion, shape (g,) or (n, g); None for ``poisson``.
    library_n
        Factor of the shares.
    indptr, gene_e, count_e
        The counts by row: int64, int32, float32; no gene twice in a row.
    """
    value_n: Tensor = _LogLikelihood.apply(likelihood, logits_ng, zi_ng, theta, library_n, (indptr, gene_e, count_e))
    return value_n


class _LogLikelihood(torch.autograd.Function):
    """The backward pass computes the log-probabilities again, which is cheaper than to keep arrays of shape (n, g)."""

    @staticmethod
    def forward(
        ctx: Any,
        likelihood: str,
        logits_ng: Tensor,
        zi_ng: Tensor | None,
        theta: Tensor | None,
        library_n: Tensor,
        counts: tuple[Tensor, ...],
    ) -> Tensor:
        ctx.likelihood, ctx.counts = likelihood, counts
        ctx.save_for_backward(logits_ng, zi_ng, theta, library_n)
        return _launch(likelihood, logits_ng, zi_ng, theta, library_n, counts, None)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, weight_n: Tensor) -> Any:
        logits_ng, zi_ng, theta, library_n = ctx.saved_tensors
        _, slope_n, d_logits_ng, d_zi_ng, d_theta = _launch(
            ctx.likelihood, logits_ng, zi_ng, theta, library_n, ctx.counts, weight_n.contiguous()
        )
        d_library_n = weight_n * torch.where(library_n > 0, slope_n / library_n, 0.0)
        return None, d_logits_ng, d_zi_ng, d_theta, d_library_n, None


def _launch(
    likelihood: str,
    logits_ng: Tensor,
    zi_ng: Tensor | None,
    theta: Tensor | None,
    library_n: Tensor,
    counts: tuple[Tensor, ...],
    weight_n: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    n_cells, n_genes = logits_ng.shape
    value_n, slope_n = (torch.empty(n_cells, device=logits_ng.device) for _ in range(2))
    by_cell, n_programs = theta is not None and theta.dim() == 2, triton.cdiv(n_cells, _ROWS)
    d_logits_ng = d_zi_ng = d_theta_pg = None
    if weight_n is not None:
        d_logits_ng = torch.empty_like(logits_ng)
        d_zi_ng = None if zi_ng is None else torch.empty_like(zi_ng)
        if theta is not None:
            d_theta_pg = torch.zeros(n_cells if by_cell else n_programs, n_genes, device=logits_ng.device)
    none = value_n  # placeholder for pointers that the kernel does not use
    if n_programs:
        _rows_kernel[(n_programs,)](
            logits_ng,
            none if zi_ng is None else zi_ng,
            none if theta is None else theta,
            library_n,
            *counts,
            none if weight_n is None else weight_n,
            value_n,
            slope_n,
            none if d_logits_ng is None else d_logits_ng,
            none if d_zi_ng is None else d_zi_ng,
            none if d_theta_pg is None else d_theta_pg,
            n_cells,
            n_genes,
            kind=_KINDS[likelihood],
            by_cell=by_cell,
            gradient=weight_n is not None,
            rows=_ROWS,
            block=min(_BLOCK, triton.next_power_of_2(n_genes)),
            entries=_ENTRIES,
            num_warps=8,
        )
    d_theta = d_theta_pg if by_cell or d_theta_pg is None else d_theta_pg.sum(0)
    return value_n, slope_n, d_logits_ng, d_zi_ng, d_theta


@triton.jit
def _dense_kernel(
    indptr,
    gene,
    count,
    out,
    n_genes,
    log: tl.constexpr,
    block: tl.constexpr,
    entries: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    genes, places = tl.arange(0, block), tl.arange(0, entries)
    for low in range(0, n_genes, block):
        tl.store(out + n * n_genes + low + genes, tl.zeros((block,), out.dtype.element_ty), mask=low + genes < n_genes)
    tl.debug_barrier()
    begin, end = tl.load(indptr + n), tl.load(indptr + n + 1)
    for low in range(begin, end, entries):
        inside = low + places < end
        x = tl.load(count + low + places, mask=inside, other=0.0)
        x = tl.log(1 + x) if log else x
        tl.store(out + n * n_genes + tl.load(gene + low + places, mask=inside, other=0), x, mask=inside)


def triton_dense(
    indptr: Tensor, gene_e: Tensor, count_e: Tensor, n_genes: int, *, log: bool, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return counts, or their log1p, as a dense array of shape (n, g)."""
    n_cells = len(indptr) - 1
    dense_ng = torch.empty(n_cells, n_genes, dtype=dtype, device=count_e.device)
    if n_cells:
        block = min(_BLOCK, triton.next_power_of_2(n_genes))
        _dense_kernel[(n_cells,)](
            indptr, gene_e, count_e, dense_ng, n_genes, log=log, block=block, entries=_ENTRIES, num_warps=4
        )
    return dense_ng
