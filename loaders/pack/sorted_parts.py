"""Parts of rows on disk, each sorted by the destination of its rows in the new order.

A part is a folder of four arrays. ``records`` has the destination, the length and the obs values of every row;
``counts`` and ``genes`` hold the entries; ``edges`` holds how much of the part comes before each block of destinations.
So any stretch of the new order consists of one contiguous stretch of every part.

Shape letters in this file
    n   rows
    e   stored entries of these rows
    g   genes
    b   edges of blocks of destinations, one more than blocks
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.csr_rows import CsrRows, concatenate, count_bits, gene_type
from dist_scvi.loaders.order.keyed_hash import hash_keys, permute

_SHUFFLE_KEY = 5
ROWS, ENTRIES, COUNTS = 0, 1, 2
"""Columns of the edges: rows, entries and sum of counts before each edge."""


@dataclass(frozen=True, slots=True)
class MovingRows:
    """Some rows and their destinations."""

    counts: CsrRows
    records_n: NDArray[np.void]
    """The fields ``destination``, ``length``, ``total`` and ``name``, and one for each obs column, by its number."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.counts.nbytes + self.records_n.nbytes


def destinations(
    code_n: NDArray[np.integer], before_g: NDArray[np.int64], size_g: NDArray[np.int64], seed: int | None
) -> NDArray[np.int64]:
    """Return the place of each row in the new order: group after group, shuffled in each.

    Here g are groups.

    Parameters
    ----------
    code_n
        Group of each row.
    before_g, size_g
        Rows of each group before these, and in total.
    seed
        Seed of the order; None keeps the order within a group.
    """
    # A keyed permutation rather than a shuffled list: each piece computes the places of its own rows, so that pieces
    # are independent of each other and no list of all rows exists.
    start_g = np.cumsum(size_g) - size_g
    order = np.argsort(code_n, kind="stable")
    place_n = np.empty(len(code_n), dtype=np.int64)
    for member in np.split(order, np.flatnonzero(np.diff(code_n[order])) + 1):
        if len(member):
            group = int(code_n[member[0]])
            index = before_g[group] + np.arange(len(member))
            if seed is not None:
                index = permute(index, int(size_g[group]), hash_keys(seed, _SHUFFLE_KEY, group))
            place_n[member] = start_g[group] + index
    return place_n


def settle_rows(rows: CsrRows, place_g: NDArray[np.int32], n_kept: int) -> tuple[CsrRows, NDArray[np.int64]]:
    """Drop zeros and the genes whose place is -1, renumber and sort the others, and return the sum of each row."""
    # Fractional counts are handled by their bits: integer sums do not depend on the order of addition.
    bits_e = count_bits(rows.counts_e)
    counts_e = np.empty_like(bits_e)
    genes_e: NDArray[np.integer] = np.empty(len(counts_e), dtype=gene_type(n_kept))
    indptr, total_n = np.empty_like(rows.indptr), np.empty(rows.n_cells, dtype=np.int64)
    count_g = np.zeros(n_kept, dtype=np.uint32)
    _settle(bits_e, rows.genes_e, rows.indptr, place_g, counts_e, genes_e, indptr, total_n, count_g)
    kept_e = counts_e[: indptr[-1]].copy().view(rows.counts_e.dtype)
    return CsrRows(kept_e, genes_e[: indptr[-1]].copy(), indptr), total_n


def write_part(folder: Path, pending: list[MovingRows], *, n_cells: int, block_cells: int) -> None:
    """Write the rows of `pending` as one part, sorted by destination; `pending` is emptied.

    Parameters
    ----------
    n_cells
        Cells of the whole new order.
    block_cells
        Destinations of a block.
    """
    records_n = np.concatenate([rows.records_n for rows in pending])
    counts = concatenate([rows.counts for rows in pending])
    # Releases the rows of the caller before the sorted copies are made: one copy less in memory.
    pending.clear()
    order = np.argsort(records_n["destination"])
    records_n = records_n[order]
    indptr = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(records_n["length"], out=indptr[1:])
    begin_n = np.empty(len(order), dtype=np.int64)
    begin_n[order] = indptr[:-1]
    whole = counts.counts_e.dtype.kind != "f"
    narrow = np.min_scalar_type(counts.counts_e.max(initial=0)) if whole else counts.counts_e.dtype
    counts_e = np.empty(len(counts.counts_e), dtype=narrow)
    genes_e = np.empty_like(counts.genes_e)
    place_rows(counts.counts_e, counts.genes_e, np.diff(counts.indptr), begin_n, counts_e, genes_e)
    total = np.concatenate([[0], np.cumsum(records_n["total"])])
    border_b = np.minimum(np.arange(-(-n_cells // block_cells) + 1) * block_cells, n_cells)
    row_b = np.searchsorted(records_n["destination"], border_b)
    folder.mkdir(parents=True)
    edges = np.stack([row_b, indptr[row_b], total[row_b]], axis=1)
    for name, values in {"records": records_n, "counts": counts_e, "genes": genes_e, "edges": edges}.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, values)
            # The piece is renamed after this and counts as written: without fsync a power loss could leave the name
            # without the content.
            file.flush()
            os.fsync(file.fileno())


def sum_edges(parts: Sequence[Path]) -> NDArray[np.int64]:
    """Return rows, entries and sum of counts of all parts before each edge, shape (b, 3)."""
    total = np.load(parts[0] / "edges.npy")
    for part in parts[1:]:
        total += np.load(part / "edges.npy")
    return np.asarray(total, dtype=np.int64)


def joint_types(parts: Sequence[Path]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return the narrowest types that hold the counts and the records of all parts."""
    records = [_opened(part, "records").dtype for part in parts]
    fields = records[0].names or ()
    joint = [(name, np.result_type(*{kind.fields[name][0] for kind in records if kind.fields})) for name in fields]
    return np.result_type(*{_opened(part, "counts").dtype for part in parts}), np.dtype(joint)


def gather_records(
    parts: Sequence[Path], edges: NDArray[np.int64], first: int, last: int, kind: np.dtype[Any]
) -> NDArray[np.void]:
    """Return the records of the blocks ``[first, last)`` from all parts, as type `kind`."""
    low, high = int(edges[first, ROWS]), int(edges[last, ROWS])
    out_n = np.empty(high - low, dtype=kind)
    for part, (a, b), _ in _stretches(parts, first, last):
        records_n = np.asarray(_opened(part, "records")[a:b])
        out_n[records_n["destination"] - low] = records_n
    return out_n


def gather_entries(
    parts: Sequence[Path],
    edges: NDArray[np.int64],
    low: int,
    high: int,
    kinds: tuple[np.dtype[Any], np.dtype[Any]],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the counts and genes of the entries ``[low, high)`` of the new order, as types `kinds`."""
    # Entries are found by whole blocks of rows, the only positions that edges have. Rows outside of [low, high) are cut
    # off by `place_rows`.
    first = int(np.searchsorted(edges[:, ENTRIES], low, side="right")) - 1
    last = int(np.searchsorted(edges[:, ENTRIES], high, side="left"))
    origin = int(edges[first, ROWS])
    moved = []
    length_n = np.zeros(int(edges[last, ROWS]) - origin, dtype=np.int64)
    for part, (a, b), entries in _stretches(parts, first, last):
        records_n = _opened(part, "records")[a:b]
        place_n, part_length_n = np.asarray(records_n["destination"]) - origin, np.array(records_n["length"])
        length_n[place_n] = part_length_n
        moved.append((part, entries, place_n, part_length_n))
    begin_n = np.cumsum(length_n) - length_n + (edges[first, ENTRIES] - low)
    counts_e, genes_e = np.empty(high - low, dtype=kinds[0]), np.empty(high - low, dtype=kinds[1])
    for part, (a, b), place_n, part_length_n in moved:
        place_rows(
            np.asarray(_opened(part, "counts")[a:b]),
            np.asarray(_opened(part, "genes")[a:b]),
            part_length_n.astype(np.int64),
            begin_n[place_n],
            counts_e,
            genes_e,
        )
    return counts_e, genes_e


def _stretches(parts: Sequence[Path], first: int, last: int) -> Iterator[tuple[Path, tuple[int, int], tuple[int, int]]]:
    """Yield the rows and the entries that each part has in the blocks ``[first, last)``."""
    for part in parts:
        edges = _opened(part, "edges")
        low, high = edges[first].tolist(), edges[last].tolist()
        if high[ROWS] > low[ROWS]:
            yield part, (low[ROWS], high[ROWS]), (low[ENTRIES], high[ENTRIES])


def _opened(part: Path, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.load(part / f"{name}.npy", mmap_mode="r")
    return array


@njit(nogil=True, cache=True)
def place_rows(
    count_e: NDArray[Any],
    gene_e: NDArray[Any],
    length_n: NDArray[np.int64],
    begin_n: NDArray[np.int64],
    out_count_e: NDArray[Any],
    out_gene_e: NDArray[Any],
) -> None:
    """Copy consecutive rows to the positions `begin_n`; entries outside of the output are dropped."""
    at = 0
    for n in range(len(length_n)):
        shift = begin_n[n] - at
        end = at + length_n[n]
        for e in range(max(at, -shift), min(end, len(out_count_e) - shift)):
            out_count_e[e + shift] = count_e[e]
            out_gene_e[e + shift] = gene_e[e]
        at = end


@njit(nogil=True, cache=True)
def _settle(
    count_e: NDArray[Any],
    gene_e: NDArray[Any],
    indptr: NDArray[np.int64],
    place_g: NDArray[np.int32],
    out_count_e: NDArray[Any],
    out_gene_e: NDArray[Any],
    out_indptr: NDArray[np.int64],
    total_n: NDArray[np.int64],
    count_g: NDArray[np.uint32],
) -> None:
    """See `settle_rows`; `count_g` is zero for every gene kept, before and after the call."""
    at = 0
    out_indptr[0] = 0
    for n in range(len(total_n)):
        begin, total, descents = at, 0, 0
        for e in range(indptr[n], indptr[n + 1]):
            place = place_g[gene_e[e]]
            if place >= 0 and count_e[e] > 0:
                descents += at > begin and place < out_gene_e[at - 1]
                out_count_e[at] = count_e[e]
                out_gene_e[at] = place
                total += count_e[e]
                at += 1
        # Only rows that are not sorted take this way: it visits every gene kept.
        if descents:
            for e in range(begin, at):
                count_g[out_gene_e[e]] = out_count_e[e]
            at = begin
            for g in range(len(count_g)):
                if count_g[g]:
                    out_count_e[at] = count_g[g]
                    out_gene_e[at] = g
                    count_g[g] = 0
                    at += 1
        total_n[n] = total
        out_indptr[n + 1] = at
