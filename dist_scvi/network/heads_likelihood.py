"""Log-probability of the counts from the decoder's last hidden layer, as a single autograd function.

The logits of a few cells at a time are computed, turned into log-probabilities and gradients by compiled loops
(`count_kernels`) while they are in the cache, and multiplied with the weights for the gradients. No array of the size
of cells times genes is allocated: fresh memory of that size costs as much as the product that fills it.

Shape letters in this file
    n   cells
    g   genes
    h   hidden units
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_scvi.loaders.minibatch import Tensors
from dist_scvi.network.kernels.count_kernels import negative_binomial_rows, poisson_rows
from dist_scvi.network.kernels.thread_parts import run_parts
from dist_scvi.network.linear import Linear

_CELLS = 256
"""Cells whose logits are in memory at the same time."""
_ROWS, _COLUMNS = 32, 2048
"""Cells and genes of a thread's part. They fix the order of additions, so results do not depend on the threads."""


@dataclass(frozen=True, slots=True)
class _Job:
    """Values that are the same for all tiles."""

    likelihood: str
    cells: Tensors
    operands: torch.dtype
    hidden_nh: Tensor
    theta: Tensor | None
    """Inverse dispersion, shape (g,) or (n, g); None if it is a head, or for Poisson."""
    library_n: Tensor
    weights: list[Tensor]
    """Weights of the heads: shares; zero inflation if any; dispersion by cell if any."""
    biases: list[Tensor]
    weight_n: Tensor | None
    """Weights of the cells in the gradients; None for all 1."""


def heads_log_likelihood(
    likelihood: str,
    hidden_nh: Tensor,
    heads: list[Linear],
    theta: Tensor | None,
    library_n: Tensor,
    cells: Tensors,
) -> Tensor:
    """Sum the log-probability of each cell over its genes, shape (n,).

    Parameters
    ----------
    likelihood
        ``zinb``, ``nb`` or ``poisson``.
    hidden_nh
        The decoder's last hidden layer.
    heads
        The linear layers of the logits of the shares; of zero inflation, for ``zinb``; and of the logarithm of the
        inverse dispersion, if `theta` is None and the likelihood has one.
    theta
        Inverse dispersion, shape (g,), or (n, g) by cell.
    library_n
        Factor of the shares.
    """
    operands = heads[0].operands or hidden_nh.dtype
    tensors = [value for head in heads for value in (head.weight, head.bias)]
    value_n: Tensor = _HeadsLogLikelihood.apply(  # type: ignore[no-untyped-call]
        likelihood, cells, operands, hidden_nh, theta, library_n, *tensors
    )
    return value_n


class _HeadsLogLikelihood(torch.autograd.Function):
    """Computes the gradients in the forward pass already, for cells of equal weight.

    Otherwise the backward pass would have to keep or compute the logits again. The mean loss of a minibatch weighs all
    its cells the same; if the weights differ nevertheless, `backward` computes everything again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        likelihood: str,
        cells: Tensors,
        operands: torch.dtype,
        hidden_nh: Tensor,
        theta: Tensor | None,
        library_n: Tensor,
        *heads: Tensor,
    ) -> Tensor:
        job = _Job(likelihood, cells, operands, hidden_nh, theta, library_n, [*heads[::2]], [*heads[1::2]], None)
        value_n, ctx.gradients = _compute(job, gradients=any(ctx.needs_input_grad))
        ctx.job = job
        return value_n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, weight_n: Tensor) -> Any:
        gradients = ctx.gradients
        if len(weight_n) and not (weight_n == weight_n[0]).all():
            _, gradients = _compute(replace(ctx.job, weight_n=weight_n), gradients=True)
        else:
            factor = weight_n[0] if len(weight_n) else weight_n.new_ones(())
            gradients = [None if value is None else value * factor for value in gradients]
        return None, None, None, *gradients


def _compute(job: _Job, *, gradients: bool) -> tuple[Tensor, list[Tensor | None]]:
    """Return the log-probabilities, and the gradients of hidden layer, theta, library size and heads."""
    hidden_nh, library_n = job.hidden_nh, job.library_n
    n, (n_genes, _) = len(hidden_nh), job.weights[0].shape
    value_n, slope_n = hidden_nh.new_empty(n, dtype=torch.float64), torch.empty_like(hidden_nh[:, 0])
    d_hidden_nh = torch.zeros_like(hidden_nh)
    d_theta = None if job.theta is None else torch.zeros_like(job.theta)
    d_heads = [value for pair in zip(job.weights, job.biases, strict=True) for value in map(torch.zeros_like, pair)]
    buffers = _buffers(len(job.weights), min(_CELLS, n), n_genes, hidden_nh.dtype)
    for first in range(0, n, _CELLS):
        stop = min(first + _CELLS, n)
        logits = [buffer[: stop - first] for buffer in buffers]
        _multiply(job, hidden_nh[first:stop], logits)
        _differentiate(job, first, stop, logits, value_n, slope_n, d_theta)
        if gradients:
            _multiply_back(job, first, stop, logits, d_hidden_nh, d_heads)
    d_library_n = torch.where(library_n > 0, slope_n / library_n, 0.0)
    if job.weight_n is not None:
        d_library_n = d_library_n * job.weight_n
    return value_n.to(hidden_nh.dtype), [d_hidden_nh, d_theta, d_library_n, *d_heads]


def _multiply(job: _Job, hidden_nh: Tensor, logits: list[Tensor]) -> None:
    """Compute the logits of all heads."""
    hidden_nh, n_parts = hidden_nh.to(job.operands), _n_parts(logits[0])

    def multiply(part: int) -> None:
        head, genes = part // n_parts, _genes(part % n_parts)
        weight_gh, bias_g = job.weights[head][genes], job.biases[head][genes]
        if job.operands == hidden_nh.dtype == weight_gh.dtype:
            torch.addmm(bias_g, hidden_nh, weight_gh.t(), out=logits[head][:, genes])
        else:
            torch.add(hidden_nh @ weight_gh.to(job.operands).t(), bias_g, out=logits[head][:, genes])

    _without_autograd(multiply, n_parts * len(logits))


def _differentiate(
    job: _Job, first: int, stop: int, logits: list[Tensor], value_n: Tensor, slope_n: Tensor, d_theta: Tensor | None
) -> None:
    """Compute the log-probabilities of the cells from `first` to `stop`; replace the logits by their gradients."""
    n_cells, n_genes = logits[0].shape
    edges = [*range(0, n_cells, _ROWS), n_cells]
    cells = job.cells
    counts = (cells.indptr[first : stop + 1].numpy(), cells.gene_e.numpy(), cells.count_e.numpy())
    found = (value_n[first:stop].numpy(), slope_n[first:stop].numpy())
    scores, library_n = logits[0].numpy(), job.library_n[first:stop].numpy()
    if job.likelihood == "poisson":
        run_parts(lambda i: poisson_rows(scores, library_n, *counts, *found, edges[i], edges[i + 1]), len(edges) - 1)
    else:
        zi = logits[1].numpy() if job.likelihood == "zinb" else None
        theta_kg = logits[-1].exp_() if job.theta is None else job.theta
        theta_kg = theta_kg[first:stop] if job.theta is not None and job.theta.dim() == 2 else theta_kg
        shared = theta_kg.dim() == 1
        theta = theta_kg.reshape(-1, n_genes).numpy()
        by_part = shared and job.weight_n is None
        slopes = np.zeros((len(edges) - 1 if by_part else n_cells, n_genes), scores.dtype)

        def differentiate(part: int) -> None:
            begin, end = edges[part], edges[part + 1]
            rows = slopes[part : part + 1] if by_part else slopes
            negative_binomial_rows(scores, zi, theta, library_n, *counts, *found, rows, begin, end)

        run_parts(differentiate, len(edges) - 1)
        d_theta_kg = torch.from_numpy(slopes)
        if job.theta is None:
            logits[-1].mul_(d_theta_kg)
        elif d_theta is not None and shared:
            d_theta += d_theta_kg.sum(0) if job.weight_n is None else job.weight_n[first:stop] @ d_theta_kg
        elif d_theta is not None:
            d_theta[first:stop] = d_theta_kg if job.weight_n is None else d_theta_kg * job.weight_n[first:stop, None]
    if job.weight_n is not None:
        for d_logits_ng in logits:
            d_logits_ng.mul_(job.weight_n[first:stop, None])


def _multiply_back(
    job: _Job, first: int, stop: int, logits: list[Tensor], d_hidden_nh: Tensor, d_heads: list[Tensor]
) -> None:
    """Add the gradients of the weights and of the hidden layer from those of the logits."""
    n_parts = _n_parts(logits[0])
    hidden_nh = job.hidden_nh[first:stop].to(job.operands)
    shares: list[Tensor] = [hidden_nh] * (n_parts * len(logits))

    def multiply(part: int) -> None:
        head, genes = part // n_parts, _genes(part % n_parts)
        d_weight_gh, d_bias_g = (gradient[genes] for gradient in d_heads[2 * head : 2 * head + 2])
        d_bias_g += logits[head][:, genes].sum(0)
        d_logits_ng = logits[head][:, genes].to(job.operands)
        if job.operands == d_weight_gh.dtype:
            d_weight_gh.addmm_(d_logits_ng.t(), hidden_nh)
        else:
            d_weight_gh += d_logits_ng.t() @ hidden_nh
        shares[part] = d_logits_ng @ job.weights[head][genes].to(job.operands)

    _without_autograd(multiply, len(shares))
    # Added up here in the order of the parts: threads adding to one array would race, and change the order.
    for share in shares:
        d_hidden_nh[first:stop] += share


def _n_parts(logits_ng: Tensor) -> int:
    return -(-logits_ng.shape[1] // _COLUMNS)


def _genes(part: int) -> slice:
    return slice(part * _COLUMNS, (part + 1) * _COLUMNS)


def _without_autograd(work: Callable[[int], None], n_parts: int) -> None:
    @torch.no_grad()  # inside the work: the mode is local to a thread
    def quietly(part: int) -> None:
        work(part)

    run_parts(quietly, n_parts)


class _Buffers(threading.local):
    """Buffers for the logits of a tile, reused from step to step."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []


_kept = _Buffers()


def _buffers(n_heads: int, n_cells: int, n_genes: int, dtype: torch.dtype) -> list[Tensor]:
    """Return uninitialised buffers of shape (n_cells, n_genes)."""
    held = _kept.held
    if len(held) != n_heads or not all(
        len(buffer) >= n_cells and buffer.shape[1] == n_genes and buffer.dtype == dtype for buffer in held
    ):
        # Allocated by numpy, which requests huge pages from the kernel; torch does not.
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        _kept.held = [torch.from_numpy(np.empty((n_cells, n_genes), kind)) for _ in range(n_heads)]
    return [buffer[:n_cells] for buffer in _kept.held]
