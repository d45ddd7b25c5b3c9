"""Decode cells of an atlas in blocks of one shape.

A matrix product rounds a row alike at any position in a block of a given shape, but not in blocks of other shapes.
Blocks are therefore padded, so that an answer does not depend on chunks, workers or the order of rows.

Shape letters in this file
    n   cells
    g   genes
    s   cells, each at a draw of its posterior
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import CellSet
from dist_scvi.inference.encode_decode import LatentCells, covariates_of, decoded_with, draw_posterior

BLOCK_CELLS = 2048
"""Cells decoded together: their hidden units fit in the cache of a core."""


@dataclass(frozen=True, slots=True, eq=False)
class CellBlock:
    """Some cells, with their normalizers, groups and rows."""

    cells: LatentCells
    normalizer_n: NDArray[np.float32] | None
    """Logarithm of the normalizer of the scale at the mean of the posterior, with the cell's own batch."""
    group_n: NDArray[np.int32]
    row_n: NDArray[np.int64]
    """Rows of the atlas."""

    def __len__(self) -> int:
        return len(self.group_n)

    def take(self, index_n: NDArray[np.int64]) -> "CellBlock":
        """Return the cells at the indices `index_n`."""
        normalizer_n = None if self.normalizer_n is None else self.normalizer_n[index_n]
        return CellBlock(self.cells.take(index_n), normalizer_n, self.group_n[index_n], self.row_n[index_n])


def read_block(atlas: AtlasReader, rows: slice | NDArray[np.int64], group_n: NDArray[np.int32]) -> CellBlock:
    """Read cells with known groups."""
    row_n = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    return CellBlock(atlas.read_cells(rows), atlas.read_log_normalizer(rows), group_n, row_n)


def cell_blocks(
    atlas: AtlasReader, cells: CellSet, groups: Callable[[slice], NDArray[np.int32]]
) -> Iterator[CellBlock]:
    """Read the chosen cells of all groups, chunk by chunk in the order of rows."""
    for rows in atlas.chunks():
        group_n = np.where(cells.mask(rows), groups(rows), np.int32(-1))
        place_n = np.flatnonzero(group_n >= 0)
        if len(place_n) == len(group_n):
            yield read_block(atlas, rows, group_n)
        elif len(place_n):
            yield read_block(atlas, rows.start + place_n, group_n[place_n])


def even_blocks(blocks: Iterator[CellBlock], size: int = BLOCK_CELLS) -> Iterator[tuple[CellBlock, int]]:
    """Split and join blocks to blocks of `size` cells, the last padded with its first cell. Also yield the true size.

    The speed of decoding thus does not depend on the number of chosen cells per chunk.
    """
    waiting: list[CellBlock] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= size:
            joined = join_blocks(waiting)
            stop = len(joined) // size * size
            for at in range(0, stop, size):
                yield joined.take(np.arange(at, at + size)), size
            waiting = [joined.take(np.arange(stop, len(joined)))] if stop < len(joined) else []
    if waiting:
        joined = join_blocks(waiting)
        n = len(joined)
        yield joined.take(np.where(np.arange(size) < n, np.arange(size), 0)), n


def join_blocks(blocks: list[CellBlock]) -> CellBlock:
    """Join blocks into one."""
    if len(blocks) == 1:
        return blocks[0]
    arrays = {
        name: np.concatenate([getattr(block.cells, name) for block in blocks])
        for name in LatentCells.__dataclass_fields__
        if getattr(blocks[0].cells, name) is not None
    }
    parts = [block.normalizer_n for block in blocks if block.normalizer_n is not None]
    return CellBlock(
        LatentCells(**arrays),
        np.concatenate(parts) if parts else None,
        np.concatenate([block.group_n for block in blocks]),
        np.concatenate([block.row_n for block in blocks]),
    )


@torch.no_grad()
def decode_mean(
    atlas: AtlasReader, block: CellBlock, gene_g: NDArray[np.int64], batches: tuple[int | None, ...]
) -> NDArray[np.float32]:
    """Decode the scale of some genes at the mean of the posterior, averaged over `batches`, shape (n, g).

    With each cell's own batch and a stored normalizer only the columns of these genes are computed.
    """
    module = atlas.module
    covariates = covariates_of(block.cells, module.device)
    z_nk = module.latent(torch.from_numpy(block.cells.qzm_nk).to(module.device))
    genes = torch.from_numpy(gene_g).to(module.device)
    if batches == (None,) and block.normalizer_n is not None:
        normalizer_n = torch.from_numpy(block.normalizer_n).to(module.device)
        return _numpy(module.column_shares(z_nk, covariates, genes, normalizer_n))
    total_ng = torch.zeros(len(block), len(gene_g), dtype=torch.float64, device=module.device)
    for batch in batches:
        total_ng += module.shares(z_nk, decoded_with(covariates, batch), genes)
    return _numpy((total_ng / len(batches)).float())


@torch.no_grad()
def decode_draws(
    atlas: AtlasReader, cells: LatentCells, draw_s: NDArray[np.int64], *, seed: int, batch: int | None
) -> NDArray[np.float32]:
    """Decode the scale of all genes, each cell at its draw of the posterior, shape (s, g)."""
    module, n = atlas.module, len(draw_s)
    scale_sg = np.empty((n, len(atlas.var_names)), dtype=np.float32)
    size = min(BLOCK_CELLS, 512)
    for at in range(0, n, size):
        place = np.arange(at, at + size)
        place[n - at :] = at  # padded to one shape
        part = cells.take(place)
        z_sk, _ = draw_posterior(module, part, seed, draw_s[place])
        covariates = decoded_with(covariates_of(part, module.device), batch)
        stop = min(at + size, n)
        scale_sg[at:stop] = _numpy(module.shares(module.latent(z_sk), covariates))[: stop - at]
    return scale_sg


def _numpy(values: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.cpu().numpy()
    return array
