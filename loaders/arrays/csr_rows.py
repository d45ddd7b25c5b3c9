"""Rows of counts in CSR form with narrow types, and the checks of every count before it is used.

Shape letters in this file
    n   cells (rows)
    e   stored entries of these cells
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.kernels import repeated_gene, sum_rows, take_rows

_GAP_CELLS = 64
"""Most rows between two requested ones that are read along instead of starting another read."""
_READ_CELLS = 16_384
"""Most rows of a read."""
_VALUES_TOGETHER = 1 << 20
_HINT = "SCVI needs raw counts, whole numbers >= 0"


@dataclass(frozen=True, slots=True)
class CsrRows:
    """Some rows of a count matrix in CSR form, in narrow integer types."""

    counts_e: NDArray[Any]
    """Counts, uint8, uint16 or uint32; float32 where a store is read with fractional counts."""
    genes_e: NDArray[np.integer]
    """Column of each count, uint16 or int32, in any order within a row, never twice."""
    indptr: NDArray[np.int64]
    """Start of each row in the two other arrays, shape (n + 1,), from 0."""

    @property
    def n_cells(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.counts_e.nbytes + self.genes_e.nbytes + self.indptr.nbytes

    def take(self, index_n: NDArray[np.int64] | None) -> "CsrRows":
        """Copy the rows `index_n`, in that order; with None return `self`."""
        if index_n is None:
            return self
        begin_n = self.indptr[index_n]
        indptr = row_starts(self.indptr[index_n + 1] - begin_n)
        counts_e, genes_e = np.empty(indptr[-1], self.counts_e.dtype), np.empty(indptr[-1], self.genes_e.dtype)
        take_rows(self.counts_e, self.genes_e, begin_n, indptr, counts_e, genes_e)
        return CsrRows(counts_e, genes_e, indptr)

    def part(self, low: int, high: int) -> "CsrRows":
        """Return the rows ``[low, high)``, as views of counts and genes."""
        begin, end = self.indptr[low], self.indptr[high]
        return CsrRows(self.counts_e[begin:end], self.genes_e[begin:end], self.indptr[low : high + 1] - begin)

    def library_n(self) -> NDArray[Any]:
        """Return the total count of each cell, int64, or float64 of fractional counts."""
        if self.counts_e.dtype.kind == "f":
            sum_n = np.zeros(self.n_cells)
            sum_rows(self.counts_e, self.indptr, sum_n)
            return sum_n
        # A sum of 65,536 counts below 65,536 fits 32 bits, and the CPU adds more of these in one instruction.
        small = self.counts_e.itemsize < 4 and self.genes_e.itemsize < 4
        total_n = np.zeros(self.n_cells, dtype=np.uint32 if small else np.int64)
        sum_rows(self.counts_e, self.indptr, total_n)
        return total_n.astype(np.int64)


@dataclass(frozen=True, slots=True)
class GeneChoice:
    """Genes to keep, with new numbers."""

    place_g: NDArray[np.int32]
    """New number of every gene, -1 for a gene that is dropped."""
    n_genes: int
    """Number of genes kept."""


def row_starts(length_n: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the start of each row, and the end of the last, if rows of these lengths are joined."""
    indptr = np.zeros(len(length_n) + 1, dtype=np.int64)
    np.cumsum(length_n, out=indptr[1:])
    return indptr


def gene_type(n_genes: int) -> type[np.integer]:
    """Return the type of gene numbers."""
    return np.uint16 if n_genes <= 1 << 16 else np.int32


def concatenate(parts: Sequence[CsrRows]) -> CsrRows:
    """Concatenate the rows of `parts`."""
    offsets = np.cumsum([0, *(part.indptr[-1] for part in parts)])
    indptr = [np.zeros(1, dtype=np.int64), *(part.indptr[1:] + at for part, at in zip(parts, offsets, strict=False))]
    return CsrRows(
        np.concatenate([part.counts_e for part in parts]),
        np.concatenate([part.genes_e for part in parts]),
        np.concatenate(indptr),
    )


def row_runs(row_n: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the contiguous ranges, first row and last + 1, that contain `row_n`, which must not decrease."""
    runs = []
    for run in np.split(row_n, np.flatnonzero(np.diff(row_n) > _GAP_CELLS) + 1):
        for at in range(0, len(run), _READ_CELLS):
            part = run[at : at + _READ_CELLS]
            runs.append((int(part[0]), int(part[-1]) + 1))
    return runs


def from_arrays(
    data_e: NDArray[Any],
    indices_e: NDArray[Any],
    indptr: NDArray[np.int64],
    *,
    n_genes: int,
    first_row: int,
    where: str,
    fractional: bool = False,
) -> CsrRows:
    """Check the rows read from `where` and narrow them.

    Parameters
    ----------
    data_e, indices_e
        Values and column numbers as stored, of any numeric type.
    indptr
        Start of each row, shape (n + 1,), relative to the first entry given.
    first_row
        Row number of the first row, for messages.
    fractional
        Accept values that are not whole too, all as float32.

    Raises
    ------
    ValueError
        If a value is not a whole number >= 0 below 2**32, or with `fractional` not a finite number >= 0, a column is
        out of range, or a gene occurs twice in a row. The message contains the row and the gene.
    """

    def refuse(entry: int, what: str, advice: str) -> ValueError:
        row = first_row + int(np.searchsorted(indptr, entry, side="right")) - 1
        return ValueError(f"{where} holds {what} at row {row}, gene {indices_e[entry]}: {advice}")

    check_numbers(data_e.dtype, where)
    counts_e = _float_counts(data_e) if fractional else _narrow_counts(data_e)
    if counts_e is None:
        bad = int(np.argmin(_is_positive(data_e) if fractional else _is_count(data_e)))
        advice = f"{_HINT}; if they lie in another layer, name it with data.layer=NAME"
        if fractional:
            advice = f"{_HINT}, or fractional ones that are finite and >= 0"
        elif _is_positive(data_e[bad : bad + 1])[0]:
            advice += ", or to train on these values as they are, set data.allow_fractional: true (--allow-fractional)"
        raise refuse(bad, str(data_e[bad]), advice)
    if len(indices_e) and (indices_e.min() < 0 or indices_e.max() >= n_genes):
        bad = int(np.argmax((indices_e < 0) | (indices_e >= n_genes)))
        raise refuse(
            bad, "an entry", f"there are {n_genes} genes; the store is damaged, write it again from its source"
        )
    genes_e: NDArray[np.integer] = indices_e.astype(gene_type(n_genes))
    repeated = repeated_gene(genes_e, indptr, n_genes)
    if repeated >= 0:
        raise refuse(
            repeated, "a second entry", "each gene may occur once; sum them with X.sum_duplicates() and save again"
        )
    return CsrRows(counts_e, genes_e, indptr)


def from_dense(dense_ng: NDArray[Any], *, first_row: int, where: str, fractional: bool = False) -> CsrRows:
    """Convert rows of a dense matrix of any numeric type to CSR, check them and narrow them; see `from_arrays`.

    scipy.sparse is not used because it supports neither float16 nor a foreign byte order.
    """
    check_numbers(dense_ng.dtype, where)
    cell_e, genes_e = np.nonzero(dense_ng)
    indptr = row_starts(np.bincount(cell_e, minlength=len(dense_ng)))
    counts_e = dense_ng[cell_e, genes_e]
    n_genes = dense_ng.shape[1]
    return from_arrays(
        counts_e, genes_e, indptr, n_genes=n_genes, first_row=first_row, where=where, fractional=fractional
    )


def check_numbers(dtype: np.dtype[Any], where: str) -> None:
    """Refuse a matrix that is not numeric.

    Raises
    ------
    ValueError
        If `dtype` is not an integer or float type.
    """
    if dtype.kind not in "iuf":
        raise ValueError(f"{where} is of type {dtype}: {_HINT}")


def _narrow_counts(data_e: NDArray[Any]) -> NDArray[np.unsignedinteger] | None:
    """Return the counts in the smallest type that holds them, or None if one is not a count."""
    if not len(data_e):
        return np.zeros(0, dtype=np.uint8)
    low, high = data_e.min().item(), data_e.max().item()  # in Python's numbers: 2**32 overflows a float16
    if not (low >= 0 and high < 1 << 32):  # false for NaN too
        return None
    counts_e: NDArray[np.unsignedinteger] = data_e.astype(
        np.uint8 if high < 1 << 8 else np.uint16 if high < 1 << 16 else np.uint32
    )
    if not np.issubdtype(data_e.dtype, np.integer) and not np.array_equal(counts_e, data_e):
        return None
    return counts_e


def count_bits(counts_e: NDArray[Any]) -> NDArray[Any]:
    """Return whole counts unchanged, and fractional ones as unsigned integers with the same bits.

    Integer sums do not depend on the order of addition, and a changed bit changes them. Checksums need both.
    """
    return counts_e.view(np.uint32) if counts_e.dtype == np.float32 else counts_e


def has_fractions(data_e: NDArray[Any]) -> bool:
    """Return whether some values are finite and not whole."""
    if data_e.dtype.kind != "f":
        return False
    pages = range(0, len(data_e), _VALUES_TOGETHER)  # a copy of all values would double the memory of the AnnData
    parts = (data_e[at : at + _VALUES_TOGETHER] for at in pages)
    return any(bool(((np.trunc(part) != part) & np.isfinite(part)).any()) for part in parts)


def _float_counts(data_e: NDArray[Any]) -> NDArray[np.float32] | None:
    """Return the values as float32, or None if one is negative or not finite."""
    return np.abs(data_e.astype(np.float32)) if _is_positive(data_e).all() else None  # abs: -0.0 becomes 0.0


def _is_positive(data_e: NDArray[Any]) -> NDArray[np.bool_]:
    positive_e: NDArray[np.bool_] = (data_e >= 0) & (data_e <= np.finfo(np.float32).max)
    return positive_e


def _is_count(data_e: NDArray[Any]) -> NDArray[np.bool_]:
    value_e = data_e.astype(np.float64)
    whole_e: NDArray[np.bool_] = np.floor(value_e) == value_e
    return (value_e >= 0) & (value_e < 1 << 32) & whole_e
