"""Uniform samples of cells, chosen by a hash of their identity: independent of chunks, workers and the order of rows.

Shape letters in this file
    n   cells
    m   cells of the sample
    q   groups
    l   leaves
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dist_scvi.atlas.queries.groups import CellGroups
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import CellSet
from dist_scvi.loaders.order.keyed_hash import hash_rows

_SAMPLE_KEY = 106
_OPEN = 2.0**-31
"""Keeps uniform numbers of 30 bits inside (0, 1)."""
CANDIDATES_PER_CELL = 16
"""Number of candidates for each cell of an even sample."""

Seeds = tuple[int, int]
"""Seed of a query, and its purpose."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupSamples:
    """A sample of each group, and the leaves of the groups."""

    rows: tuple[NDArray[np.int64], ...]
    """Rows of the atlas, by ascending hash."""
    n_q: NDArray[np.int64]
    """Cells of each group."""
    cells_ql: NDArray[np.int64] | None
    """Cells of each group in each leaf; None if the atlas has no leaves."""


def sample_cells(atlas: AtlasReader, cells: CellSet, size: int, *, seed: int) -> NDArray[np.int64]:
    """Choose `size` cells without replacement, or all; return their rows by ascending hash."""
    return sample_sets(atlas, [cells], size, seed=seed).rows[0]


def sample_sets(atlas: AtlasReader, sets: list[CellSet], size: int, *, seed: int) -> GroupSamples:
    """Sample several sets of cells in one pass; sets may overlap."""
    drawn = [_Smallest(size) for _ in sets]
    n_leaves = 0 if atlas.leaves is None else atlas.leaves.n_leaves
    cells_ql = np.zeros((len(sets), n_leaves), dtype=np.int64)
    for rows in atlas.chunks():
        leaf_n = atlas.read_leaf(rows)
        hash_n = hash_rows(atlas.read_source_row(rows), seed, _SAMPLE_KEY)
        for place, cells in enumerate(sets):
            here_n = np.flatnonzero(cells.mask(rows))
            drawn[place].add(hash_n[here_n], rows.start + here_n)
            if leaf_n is not None:
                cells_ql[place] += np.bincount(leaf_n[here_n], minlength=n_leaves)
    n_q = np.array([smallest.seen for smallest in drawn], dtype=np.int64)
    return GroupSamples(tuple(smallest.rows() for smallest in drawn), n_q, cells_ql if n_leaves else None)


def sample_groups(
    atlas: AtlasReader, groups: CellGroups, cells: CellSet, size: int, pool: int, *, seed: int
) -> tuple[GroupSamples, NDArray[np.int64], NDArray[np.int32]]:
    """Sample each group and, apart, a pool of all chosen cells.

    Returns
    -------
    tuple
        The samples of the groups, the rows of the pool by rising hash, and the group of each cell of the pool.
    """
    drawn, pooled = [_Smallest(size) for _ in groups.names], _Smallest(pool)
    n_leaves = 0 if atlas.leaves is None else atlas.leaves.n_leaves
    cells_ql = np.zeros((len(drawn), n_leaves), dtype=np.int64)
    for rows in atlas.chunks():
        group_n = np.where(cells.mask(rows), groups.codes(rows), np.int32(-1))
        leaf_n, hash_n = atlas.read_leaf(rows), hash_rows(atlas.read_source_row(rows), seed, _SAMPLE_KEY)
        order_n = np.argsort(group_n, kind="stable")
        starts = np.searchsorted(group_n[order_n], np.arange(len(drawn) + 1))
        for group in np.unique(group_n[group_n >= 0]).tolist():
            here_n = order_n[starts[group] : starts[group + 1]]
            drawn[group].add(hash_n[here_n], rows.start + here_n)
            if leaf_n is not None:
                cells_ql[group] += np.bincount(leaf_n[here_n], minlength=n_leaves)
        # A cell without a value in the columns of the groups still belongs to the rest of each group.
        chosen_n = np.flatnonzero(cells.mask(rows))
        pooled.add(hash_n[chosen_n], rows.start + chosen_n)
    n_q = np.array([smallest.seen for smallest in drawn], dtype=np.int64)
    samples = GroupSamples(tuple(smallest.rows() for smallest in drawn), n_q, cells_ql if n_leaves else None)
    row_m = pooled.rows()
    return samples, row_m, groups_of_rows(atlas, groups, row_m)


def groups_of_rows(atlas: AtlasReader, groups: CellGroups, row_m: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the group of each of some rows."""
    group_m = np.full(len(row_m), -1, dtype=np.int32)
    order_m = np.argsort(row_m)
    sorted_m = row_m[order_m]
    for rows in atlas.chunks():
        first, last = np.searchsorted(sorted_m, (rows.start, rows.stop))
        if first < last:
            group_m[order_m[first:last]] = groups.codes(rows)[sorted_m[first:last] - rows.start]
    return group_m


def spread_cells(qzm_mk: NDArray[np.float32], n_chosen: int) -> NDArray[np.int64]:
    """Choose cells that are distributed in the latent space like all of them.

    The cells are halved along the widest dimension until there are `n_chosen` parts; of each part the first cell is
    taken, which is uniform if they are sorted by hash. Neighbours in the answer are neighbours in the latent space.
    With `even_normal` a probability errs two thirds as much as by a plain sample: benchmarks/results/atlas.json.
    """
    chosen: list[int] = []
    waiting = [(np.arange(len(qzm_mk)), n_chosen)]
    while waiting:
        index_m, n_parts = waiting.pop()
        if n_parts == 1:
            chosen.append(int(index_m.min()))
            continue
        widest = int(np.argmax(qzm_mk[index_m].var(axis=0)))
        sorted_m = index_m[np.argsort(qzm_mk[index_m, widest], kind="stable")]
        n_left = n_parts // 2
        cut = len(index_m) * n_left // n_parts
        waiting += [(np.sort(sorted_m[cut:]), n_parts - n_left), (np.sort(sorted_m[:cut]), n_left)]
    return np.array(chosen, dtype=np.int64)


def even_normal(n: int, n_columns: int, seeds: Seeds) -> NDArray[np.float32]:
    """Return standard normals of which every run of neighbours is spread evenly, shape (n, columns).

    Notes
    -----
    A scrambled Sobol sequence (Owen 1998, doi:10.1006/jcom.1998.0487).
    """
    from scipy.stats.qmc import Sobol

    points = Sobol(n_columns, seed=np.random.default_rng(seeds))
    uniform = points.random_base2(max(1, (n - 1).bit_length()))[:n]
    return np.asarray(ndtri(uniform.clip(_OPEN, 1 - _OPEN)), dtype=np.float32)


class _Smallest:
    """The rows with the smallest hashes among those added, in any order."""

    def __init__(self, size: int) -> None:
        self._size, self.seen = size, 0
        self._hash_m, self._row_m = np.zeros(0, np.uint64), np.zeros(0, np.int64)

    def add(self, hash_n: NDArray[np.uint64], row_n: NDArray[np.int64]) -> None:
        """Consider some cells."""
        self.seen += len(row_n)
        if len(self._hash_m) == self._size:  # most cells of a large group are above the largest hash so far
            below_n = np.flatnonzero(hash_n < self._hash_m[-1])
            hash_n, row_n = hash_n[below_n], row_n[below_n]
        if not len(row_n):
            return
        hash_m, row_m = np.concatenate([self._hash_m, hash_n]), np.concatenate([self._row_m, row_n])
        order_m = np.argsort(hash_m, kind="stable")[: self._size]
        self._hash_m, self._row_m = hash_m[order_m], row_m[order_m]

    def rows(self) -> NDArray[np.int64]:
        """Return the rows, by ascending hash."""
        return self._row_m
