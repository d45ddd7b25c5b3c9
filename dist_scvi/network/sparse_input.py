"""The product of sparse counts and a dense weight, without making the counts dense.

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

from dist_scvi.network.thread_parts import run_parts

_ROWS, _UNITS = 32, 64
"""Cells, and hidden units, of a part that a thread takes."""


_Loop = TypeVar("_Loop", bound=Callable[..., Any])
_loop = cast("Callable[[_Loop], _Loop]", njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy"))


@dataclass(frozen=True, slots=True)
class SparseRows:
    """What an encoder is given of some cells: stored entries by row, and dense columns after those of the genes."""

    indptr: Tensor
    gene_e: Tensor
    value_e: Tensor
    n_genes: int
    rest_nc: Tensor | None = None

    @property
    def n_columns(self) -> int:
        """Columns of genes and the others."""
        return self.n_genes + (0 if self.rest_nc is None else self.rest_nc.shape[1])


def sparse_product(rows: SparseRows, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply rows by the first columns of a weight of shape (h, at least `rows.n_columns`), and add the bias."""
    product_nh: Tensor = _SparseProduct.apply(rows, weight)  # type: ignore[no-untyped-call]
    if bias is not None:
        product_nh = product_nh + bias
    if rows.rest_nc is not None:
        product_nh = product_nh + rows.rest_nc @ weight[:, rows.n_genes : rows.n_columns].t()
    return product_nh


class _SparseProduct(torch.autograd.Function):
    """Rows of the transposed weight are added up; going backward, rows of the gradient are."""

    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor) -> Tensor:
        ctx.rows, ctx.shape = rows, weight.shape
        weight_gh = weight[:, : rows.n_genes].t().contiguous().numpy()
        n_cells = len(rows.indptr) - 1
        product_nh = weight.new_empty(n_cells, weight.shape[0])
        edges, entries = [*range(0, n_cells, _ROWS), n_cells], _entries(rows)
        to_nh = product_nh.numpy()
        run_parts(lambda i: _add_rows(*entries, weight_gh, to_nh, edges[i], edges[i + 1]), len(edges) - 1)
        return product_nh

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_product_nh: Tensor) -> Any:
        rows, (n_hidden, n_columns) = ctx.rows, ctx.shape
        d_weight_gh, d_nh, entries = d_product_nh.new_zeros(n_columns, n_hidden), d_product_nh.numpy(), _entries(rows)
        to_gh = d_weight_gh.numpy()

        def add(part: int) -> None:
            units = slice(part * _UNITS, (part + 1) * _UNITS)
            _add_columns(*entries, d_nh[:, units], to_gh[:, units])

        run_parts(add, -(-n_hidden // _UNITS))
        return None, d_weight_gh.t()


def _entries(rows: SparseRows) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]:
    return rows.indptr.numpy(), rows.gene_e.numpy(), rows.value_e.numpy()


@_loop
def _add_rows(
    indptr: NDArray[np.int64],
    gene_e: NDArray[np.int32],
    value_e: NDArray[Any],
    weight_gh: NDArray[Any],
    out_nh: NDArray[Any],
    first: int,
    stop: int,
) -> None:
    for n in range(first, stop):
        out_h = out_nh[n]
        out_h[:] = 0
        for e in range(indptr[n], indptr[n + 1]):
            value, weight_h = value_e[e], weight_gh[gene_e[e]]
            for h in range(len(out_h)):
                out_h[h] += value * weight_h[h]


@_loop
def _add_columns(
    indptr: NDArray[np.int64],
    gene_e: NDArray[np.int32],
    value_e: NDArray[Any],
    d_nh: NDArray[Any],
    out_gh: NDArray[Any],
) -> None:
    for n in range(len(indptr) - 1):
        from_h = d_nh[n]
        for e in range(indptr[n], indptr[n + 1]):
            value, out_h = value_e[e], out_gh[gene_e[e]]
            for h in range(len(from_h)):
                out_h[h] += value * from_h[h]
