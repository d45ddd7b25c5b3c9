"""The product of sparse counts and a dense weight, without a dense array of the counts.

Shape letters in this file
    n   cells
    g   genes
    h   hidden units
    c   further dense columns
    e   stored entries
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from dist_scvi.network.kernels.thread_parts import run_parts

_GENES = 1024
"""Genes of a thread's part. It fixes the order of additions, so results do not depend on the number of threads."""
_ROWS = 64
"""Cells of a part whose counts are made dense."""
_DENSE_SHARE = 0.15
"""Share of stored entries from which a dense product is faster. Measured on one thread with 128 hidden units: sparse
loops cost as much as the dense product at a share of 0.1 to 0.15, and three times as much at 0.5."""
_BLOCK = 16
"""Genes whose weights are transposed at a time: one cache line of 16 float32 for each hidden unit."""


_Loop = TypeVar("_Loop", bound=Callable[..., Any])
_loop = cast("Callable[[_Loop], _Loop]", njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy"))


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Input of an encoder: stored entries by row, and dense columns after those of the genes."""

    indptr: Tensor
    gene_e: Tensor
    value_e: Tensor
    n_genes: int
    rest_nc: Tensor | None = None

    @property
    def n_columns(self) -> int:
        """Number of columns, of genes and dense ones."""
        return self.n_genes + (0 if self.rest_nc is None else self.rest_nc.shape[1])


def sparse_product(rows: SparseRows, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply rows by the first columns of a weight of shape (h, at least `rows.n_columns`), and add the bias."""
    dense = len(rows.value_e) >= _DENSE_SHARE * (len(rows.indptr) - 1) * rows.n_genes
    product_nh: Tensor = (_DenseProduct if dense else _SparseProduct).apply(rows, weight)  # type: ignore[no-untyped-call]
    if bias is not None:
        product_nh = product_nh + bias
    if rows.rest_nc is not None:
        product_nh = product_nh + rows.rest_nc @ weight[:, rows.n_genes : rows.n_columns].t()
    return product_nh


class _DenseProduct(torch.autograd.Function):
    """Multiplies the counts of some genes at a time, so that results do not depend on the number of threads."""

    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor) -> Tensor:
        n_cells, n_parts = len(rows.indptr) - 1, -(-rows.n_genes // _GENES)
        x_ng = torch.from_numpy(np.empty((n_cells, rows.n_genes), rows.value_e.numpy().dtype))
        products = weight.new_empty(n_parts, n_cells, len(weight))
        entries = (rows.indptr.numpy(), rows.gene_e.numpy(), rows.value_e.numpy(), x_ng.numpy())
        run_parts(lambda part: _fill(*entries, part * _ROWS, (part + 1) * _ROWS), -(-n_cells // _ROWS))

        @torch.no_grad()  # inside: the mode is local to a thread
        def multiply(part: int) -> None:
            genes = _genes(part, rows.n_genes)
            torch.mm(x_ng[:, genes], weight[:, genes].t(), out=products[part])

        run_parts(multiply, n_parts)
        ctx.x_ng, ctx.weight_shape = x_ng, weight.shape
        return products.sum(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_product_nh: Tensor) -> Any:
        x_ng, n_genes = ctx.x_ng, ctx.x_ng.shape[1]
        d_weight = d_product_nh.new_empty(ctx.weight_shape)
        d_weight[:, n_genes:] = 0

        @torch.no_grad()
        def multiply(part: int) -> None:
            genes = _genes(part, n_genes)
            torch.mm(d_product_nh.t(), x_ng[:, genes], out=d_weight[:, genes])

        run_parts(multiply, -(-n_genes // _GENES))
        return None, d_weight


def _genes(part: int, n_genes: int) -> slice:
    return slice(part * _GENES, min((part + 1) * _GENES, n_genes))


class _SparseProduct(torch.autograd.Function):
    """Processes entries by gene: the weight is read once, in order, and the hidden units of the cells stay in cache."""

    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor) -> Tensor:
        ctx.entries = _by_gene(rows.indptr.numpy(), rows.gene_e.numpy(), rows.value_e.numpy(), rows.n_genes)
        ctx.weight_shape, (start_g, row_e, value_e) = weight.shape, ctx.entries
        n_cells, n_parts = len(rows.indptr) - 1, -(-rows.n_genes // _GENES)
        # An array for each part: threads adding to one array would race.
        products = weight.new_zeros(n_parts, n_cells, len(weight))
        weight_hg, to_nh = weight.detach().numpy(), products.numpy()

        def add(part: int) -> None:
            low, high = part * _GENES, min((part + 1) * _GENES, rows.n_genes)
            _multiply(start_g, row_e, value_e, weight_hg, to_nh[part], low, high)

        run_parts(add, n_parts)
        return products.sum(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_product_nh: Tensor) -> Any:
        (n_hidden, n_columns), (start_g, row_e, value_e) = ctx.weight_shape, ctx.entries
        n_genes = len(start_g) - 1
        d_weight = d_product_nh.new_empty(n_hidden, n_columns)
        d_weight[:, n_genes:] = 0
        d_nh, to_hg = np.ascontiguousarray(d_product_nh.numpy()), d_weight.numpy()

        def add(part: int) -> None:
            low, high = part * _GENES, min((part + 1) * _GENES, n_genes)
            _multiply_back(start_g, row_e, value_e, d_nh, to_hg, low, high)

        run_parts(add, -(-n_genes // _GENES))
        return None, d_weight


@_loop
def _fill(
    indptr: NDArray[np.int64],
    gene_e: NDArray[np.int32],
    value_e: NDArray[Any],
    out_ng: NDArray[Any],
    first: int,
    stop: int,
) -> None:
    """Fill the rows from `first` to `stop`, or to the end."""
    for n in range(first, min(stop, len(out_ng))):
        row_g = out_ng[n]
        row_g[:] = 0
        for e in range(indptr[n], indptr[n + 1]):
            row_g[gene_e[e]] += value_e[e]


@_loop
def _by_gene(
    indptr: NDArray[np.int64], gene_e: NDArray[np.int32], value_e: NDArray[Any], n_genes: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]:
    """Sort the entries by gene; return the offset of each gene, and row and value of each entry.

    A counting sort, in linear time and stable: additions of a gene are in the order of the cells in every run.
    """
    start_g = np.zeros(n_genes + 1, np.int64)
    for e in range(len(gene_e)):
        start_g[gene_e[e] + 1] += 1
    for g in range(n_genes):
        start_g[g + 1] += start_g[g]
    next_g, row_e, sorted_e = start_g[:-1].copy(), np.empty(len(gene_e), np.int32), np.empty_like(value_e)
    for n in range(len(indptr) - 1):
        for e in range(indptr[n], indptr[n + 1]):
            at = next_g[gene_e[e]]
            row_e[at], sorted_e[at] = n, value_e[e]
            next_g[gene_e[e]] = at + 1
    return start_g, row_e, sorted_e


@_loop
def _multiply(
    start_g: NDArray[np.int64],
    row_e: NDArray[np.int32],
    value_e: NDArray[Any],
    weight_hg: NDArray[Any],
    out_nh: NDArray[Any],
    first: int,
    stop: int,
) -> None:
    n_units = len(weight_hg)
    block = np.empty((_BLOCK, n_units), out_nh.dtype)
    for low in range(first, stop, _BLOCK):
        high = min(low + _BLOCK, stop)
        if start_g[low] == start_g[high]:
            continue
        for h in range(n_units):
            for g in range(low, high):
                block[g - low, h] = weight_hg[h, g]
        for g in range(low, high):
            weight_h = block[g - low]
            for e in range(start_g[g], start_g[g + 1]):
                value, out_h = value_e[e], out_nh[row_e[e]]
                for h in range(n_units):
                    out_h[h] += value * weight_h[h]


@_loop
def _multiply_back(
    start_g: NDArray[np.int64],
    row_e: NDArray[np.int32],
    value_e: NDArray[Any],
    d_nh: NDArray[Any],
    out_hg: NDArray[Any],
    first: int,
    stop: int,
) -> None:
    n_units = d_nh.shape[1]
    block = np.empty((_BLOCK, n_units), d_nh.dtype)
    for low in range(first, stop, _BLOCK):
        high = min(low + _BLOCK, stop)
        block[:] = 0
        for g in range(low, high):
            out_h = block[g - low]
            for e in range(start_g[g], start_g[g + 1]):
                value, from_h = value_e[e], d_nh[row_e[e]]
                for h in range(n_units):
                    out_h[h] += value * from_h[h]
        for h in range(n_units):
            for g in range(low, high):
                out_hg[h, g] = block[g - low, h]
