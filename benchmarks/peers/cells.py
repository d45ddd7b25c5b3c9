"""Synthetic cells that look like Tahoe-100M to a loader: few counts of many genes, most of them ones.

Shape letters in this file
    n   cells
    e   stored entries of all cells
    l   labels
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

N_GENES = 62_710
N_LABELS = 50
ENTRIES_PER_CELL = 1_434
SHARE_OF_ONES = 0.79
_DRAWS = 1 << 18
_PARTS = {"counts_e": np.uint8, "genes_e": np.uint16, "indptr": np.int64, "label_n": np.int16}


@dataclass(frozen=True, slots=True)
class Cells:
    """Counts in compressed rows, genes rising within each, and the label of each cell."""

    counts_e: NDArray[np.uint8]
    genes_e: NDArray[np.uint16]
    indptr: NDArray[np.int64]
    label_n: NDArray[np.int16]

    def save(self, folder: Path) -> None:
        """Write each part as a file of its own, to be opened without loading it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _PARTS:
            np.save(folder / f"{name}.npy", getattr(self, name))


def load_cells(folder: Path) -> Cells:
    return Cells(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _PARTS))


def tahoe_like(n_cells: int, *, label_sorted: bool = False, seed: int = 0) -> Cells:
    """Draw cells: the genes of each label by a skewed popularity of its own, the counts geometric.

    Parameters
    ----------
    label_sorted
        Put cells of one label together, as atlases are delivered; otherwise their order is random.
    """
    rng = np.random.default_rng(seed)
    popularity_g = rng.gamma(0.25, 1.0, N_GENES)
    gene_ld = np.empty((N_LABELS, _DRAWS), dtype=np.uint16)
    for label in range(N_LABELS):
        total_g = np.cumsum(popularity_g * rng.lognormal(0.0, 0.5, N_GENES))
        gene_ld[label] = np.searchsorted(total_g, (np.arange(_DRAWS) + 0.5) / _DRAWS * total_g[-1])
    label_n = (np.arange(n_cells) * N_LABELS // n_cells).astype(np.int16)
    if not label_sorted:
        rng.shuffle(label_n)
    spread = 0.3
    length_n = ENTRIES_PER_CELL * rng.lognormal(-(spread**2) / 2, spread, n_cells)
    indptr = np.concatenate([[0], np.cumsum(np.clip(length_n, 200, 6000).astype(np.int64))])
    counts_e, genes_e = np.empty(indptr[-1], dtype=np.uint8), np.empty(indptr[-1], dtype=np.uint16)
    _draw(gene_ld, label_n, indptr, seed, counts_e, genes_e)
    return Cells(counts_e, genes_e, indptr, label_n)


@njit(nogil=True, cache=True, parallel=True)
def _draw(gene_ld, label_n, indptr, seed, counts_e, genes_e):  # noqa: ANN001, ANN202
    """Draw distinct genes for every cell, each cell from a seed of its own, whatever the number of threads."""
    for cell in prange(len(label_n)):
        np.random.seed(seed * 1_000_003 + cell)  # noqa: NPY002
        drawn_g = np.zeros(N_GENES, dtype=np.uint8)
        begin, end = indptr[cell], indptr[cell + 1]
        at = begin
        while at < end:
            gene = gene_ld[label_n[cell], np.random.randint(_DRAWS)]  # noqa: NPY002
            if drawn_g[gene]:
                continue
            drawn_g[gene] = 1
            genes_e[at] = gene
            count = 1
            while count < 255 and np.random.random() >= SHARE_OF_ONES:  # noqa: NPY002
                count += 1
            counts_e[at] = count
            at += 1
        genes_e[begin:end].sort()
