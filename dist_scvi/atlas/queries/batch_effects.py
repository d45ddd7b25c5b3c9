"""Notes on expression that was decoded with a batch or covariate other than a cell's own.

Shape letters in this file
    n   cells
    g   genes
    q   groups
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from dist_scvi.atlas.queries.groups import CellGroups
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.sample import sample_cells
from dist_scvi.atlas.queries.where import CellSet
from dist_scvi.inference.encode_decode import LatentCells, covariates_of

_PROBE_CELLS = 256
_LEAST_SHIFT = 0.1
"""Smallest shift of the median gene, as a binary logarithm, that is noted: 7 percent."""


def composition_notes(
    atlas: AtlasReader, cells: CellSet, groups: CellGroups, batches: tuple[int | None, ...]
) -> tuple[str, ...]:
    """Note where numbers decoded with another batch reflect its composition rather than the cells.

    Shares add up to 1: a batch that raises some large genes lowers all others. And a group that has no cell in a batch
    is decoded with a batch in which the model was not trained on such cells.
    """
    if batches == (None,) or atlas.spec.batch is None:
        return ()
    notes, categories = [], atlas.spec.batch.categories
    for batch in batches[:8]:
        assert batch is not None
        notes += shift_notes(atlas, cells, with_batch(batch), f"batch {categories[batch]!r}")
    absent = _absent_groups(atlas, groups, batches)
    if absent:
        shown = ", ".join(absent[:3])
        notes.append(f"{len(absent)} groups have no cell in the batch ({shown}): the decoder extrapolates there")
    return tuple(notes)


def with_batch(batch: int) -> Callable[[LatentCells], LatentCells]:
    """Return a function that gives cells another batch."""
    return lambda cells: replace(cells, batch_n=np.full_like(cells.batch_n, batch))


def shift_notes(
    atlas: AtlasReader, cells: CellSet, change: Callable[[LatentCells], LatentCells], name: str
) -> list[str]:
    """Note if the change of a covariate moves the median gene; `name` is its new value."""
    # Size factors scale each gene by itself: nothing adds up to 1.
    shift = 0.0 if atlas.spec.size_factor_key else _median_shift(atlas, cells, change)
    if abs(shift) <= _LEAST_SHIFT:
        return []
    note = (
        f"{name} multiplies the median gene by {2**shift:.2f}: shares add up to 1, so the genes that it raises lower "
        "all others; compare groups within it, not with other values"
    )
    return [note]


@torch.no_grad()
def _median_shift(atlas: AtlasReader, cells: CellSet, change: Callable[[LatentCells], LatentCells]) -> float:
    """Return the median over genes of the log2 ratio of the scale after a change to that with the cells' own values."""
    probed, module = atlas.read_cells(sample_cells(atlas, cells, _PROBE_CELLS, seed=0)), atlas.module
    z_nk = module.latent(torch.from_numpy(probed.qzm_nk).to(module.device))
    own_g, other_g = (
        torch.log2(module.shares(z_nk, covariates_of(part, module.device))).mean(dim=0)
        for part in (probed, change(probed))
    )
    return float(torch.median(other_g - own_g))


def _absent_groups(atlas: AtlasReader, groups: CellGroups, batches: tuple[int | None, ...]) -> list[str]:
    """Note the groups that have no cell in a batch, if the leaves show this."""
    leaves, batch = atlas.leaves, atlas.spec.batch
    if leaves is None or groups.group_l is None or batch is None or batch.key not in leaves.columns:
        return []
    vocabulary = atlas.obs.categorical(batch.key).vocabulary
    code_l: NDArray[np.int32] = leaves.codes[:, leaves.columns.index(batch.key)]
    wanted = {vocabulary.index(batch.categories[code]) for code in batches if code is not None}
    seen = [set(code_l[groups.group_l == group].tolist()) for group in range(len(groups.names))]
    return [name for name, codes in zip(groups.names, seen, strict=True) if wanted - codes]
