"""Markers: every group of cells against all others, in one pass over the sketches or one sample of each group.

Shape letters in this file
    g   genes
    l   leaves
    q   groups
    p   values of a group
    v   bins of the grid
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from dist_scvi.atlas.differential.all_pairs import SortedSample, gene_blocks, in_threads
from dist_scvi.atlas.differential.differential_expression import SKETCH_ERROR, DifferentialOptions, scored_table
from dist_scvi.atlas.differential.sides import (
    SideValues,
    correction_batches,
    count_means,
    decoded_side,
    largest_scale,
    sketched_side,
)
from dist_scvi.atlas.differential.sketch import FREE_BINS, SHARE_BINS, count_on_grid
from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.groups import CellGroups, group_cells
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.sample import CANDIDATES_PER_CELL, sample_groups
from dist_scvi.atlas.queries.where import Cells, CellSet, choose_cells, leaf_set
from dist_scvi.expression.de_groups import CountMeans, count_columns
from dist_scvi.expression.de_scores import bayes_factor, flag_by_fdr, offset_of_silent

_LARGE_GROUP = 0.25
"""Share of all cells from which a group is compared with its rest directly: subtracting it would amplify errors."""
_POOL_PER_SAMPLE = 4
_DESCRIBED = 1e-12
_GROUP_POINTS = 32
"""Quantiles of a group: against the smooth distribution of all cells more make no difference."""


def markers(
    atlas: AtlasReader,
    by: str | Sequence[str],
    *,
    where: Cells = None,
    n_genes: int | None = 100,
    delta: float = 0.25,
    fdr: float = 0.05,
    batch_correction: bool = False,
    engine: Literal["auto", "sketch", "pairs"] = "auto",
    n_samples: int = 500,
    pseudocounts: float | None = None,
    threshold_counts: float = 0.01,
    seed: int = 0,
) -> Answer:
    """Compare each group of cells with all others, for all groups at once.

    Parameters
    ----------
    by
        Obs columns whose observed combinations are the groups.
    where
        Only these cells, in the groups and in their rests.
    n_genes
        Genes returned for each group, those with the most certain increase first; None returns all.
    engine
        ``"sketch"`` for unions of leaves, else ``"pairs"``: `n_samples` cells of each group against a pool of all.
    pseudocounts
        None estimates one for each group, as `differential_expression` does.

    Returns
    -------
    Answer
        For each group its genes by `rank`: ``proba_up``, the probability that the gene is higher by `delta` in a cell
        of the group than in another, ``proba_de``, ``lfc_mean``, ``scale1``, ``scale2``, the standard error
        ``proba_de_se`` and the raw means and detection rates in and outside of the group.

    Raises
    ------
    ValueError
        As `differential_expression` and `group_cells`; also if there are fewer than two groups.
    """
    options = DifferentialOptions(
        "change", delta, fdr, batch_correction, engine, n_samples, pseudocounts, threshold_counts, "three", seed
    )
    if n_genes is not None and n_genes < 1:
        raise ValueError(f"n_genes={n_genes}: at least 1 is needed, or None for all")
    cells = choose_cells(atlas, where)
    groups = group_cells(atlas, by, cells)
    if len(groups.names) < 2 and groups.n_cells[0] == cells.n_cells:
        raise ValueError(f"all {cells.n_cells:,} cells are of one group, {groups.names[0]!r}: markers need two")
    obstacle = markers_obstacle(atlas, groups, batch_correction=batch_correction)
    if engine == "sketch" and obstacle:
        raise ValueError(f"engine='sketch': {obstacle}; use engine='pairs'")
    used = "pairs" if obstacle or engine == "pairs" else "sketch"
    compare = _by_sketch if used == "sketch" else _by_pairs
    tables = [
        _ranked(table, groups, place, options, n_genes)
        for place, table in enumerate(compare(atlas, groups, cells, options))
    ]
    sizes = dict(zip(groups.names, groups.n_cells.tolist(), strict=True))
    parameters: dict[str, Any] = asdict(options) | {"by": list(groups.by), "where": cells.text, "n_genes": n_genes}
    batch = "average" if batch_correction else "own"
    table = pd.concat(tables, ignore_index=True)
    return Answer("markers", table, used, batch, sizes, atlas.uri, atlas.digest, seed, parameters)


def markers_obstacle(atlas: AtlasReader, groups: CellGroups, *, batch_correction: bool) -> str | None:
    """Return the reason why sketches cannot answer, if there is one."""
    if atlas.leaves is None:
        return "this atlas has no leaves"
    if groups.group_l is None:
        return f"the groups are no unions of leaves, which are of {', '.join(atlas.leaves.columns)}"
    if batch_correction and atlas.spec.n_batch > 1:
        return "batch_correction=True: the sketches are of each cell's own batch"
    return None


def _ranked(
    table: pd.DataFrame, groups: CellGroups, place: int, options: DifferentialOptions, n_genes: int | None
) -> pd.DataFrame:
    """Order the genes of a group by certainty, and add the name of the group."""
    table[f"is_de_fdr_{options.fdr}"] = flag_by_fdr(table["proba_de"].to_numpy(), options.fdr)
    table = table.sort_values(["proba_up", "lfc_mean"], ascending=False, kind="stable").head(n_genes or len(table))
    table = table.rename_axis("gene").reset_index()
    table.insert(0, "group", groups.names[place])
    for column in reversed(groups.by):
        if column not in table.columns:
            table.insert(0, column, str(groups.table[column].iloc[place]))
    table.insert(list(table.columns).index("gene") + 1, "rank", np.arange(1, len(table) + 1))
    return table


def _by_sketch(
    atlas: AtlasReader, groups: CellGroups, cells: CellSet, options: DifferentialOptions
) -> "list[pd.DataFrame]":
    """Compare the quantiles of each group with the grid of all cells less those of the group."""
    leaves, group_l, n_genes = atlas.leaves, groups.group_l, len(atlas.var_names)
    assert leaves is not None
    assert group_l is not None
    assert cells.leaf_l is not None
    n_bins = FREE_BINS if atlas.spec.size_factor_key else SHARE_BINS
    below_gv = np.cumsum(count_on_grid(leaves, cells.leaf_l, n_genes, n_bins), axis=1) / 128.0
    size_l = np.zeros(leaves.n_leaves, dtype=np.int64)
    size_l[cells.leaf_l] = leaves.n_cells[cells.leaf_l]
    total, top_g = _Total(atlas, size_l), largest_scale(atlas, cells.leaf_l)
    mean_g, delta = np.empty(n_genes), options.delta
    assert delta is not None
    # The pseudocount of the mean is far below any scale, so that the same mean is used for all groups.
    in_threads(lambda genes: _grid_mean(below_gv[genes], _DESCRIBED, mean_g[genes]), gene_blocks(n_genes))
    tables = []
    for place, name in enumerate(groups.names):
        mine = leaf_set(atlas, np.flatnonzero(group_l == place), name)
        assert mine.leaf_l is not None
        others = leaf_set(atlas, np.setdiff1d(cells.leaf_l, mine.leaf_l), f"rest of {name}")
        own_l = np.zeros_like(size_l)
        own_l[mine.leaf_l] = leaves.n_cells[mine.leaf_l]
        first = sketched_side(atlas, mine, _GROUP_POINTS)
        counts = None if total.counts is None else total.split(own_l)
        second_mean = (total.mean_g * total.n_cells - first.mean_g * mine.n_cells) / others.n_cells
        if mine.n_cells > _LARGE_GROUP * cells.n_cells:
            table = scored_table(
                atlas, [first, sketched_side(atlas, others)], counts, options, sketched=True, with_up=True
            )
            tables.append(_with_up(table))
            continue
        pseudocounts = _pseudocounts(options, [first.top_g, top_g], counts)
        sizes = (mine.n_cells, others.n_cells)
        scores = _against_rest(first.parts[0], sizes, below_gv, mean_g, delta, pseudocounts)
        tables.append(_table(atlas, scores, [first.mean_g, second_mean], counts, pseudocounts))
    return tables


class _Total:
    """Sums over all chosen cells, from which those of a group are subtracted."""

    def __init__(self, atlas: AtlasReader, size_l: NDArray[np.int64]) -> None:
        assert atlas.leaves is not None
        self._atlas, self._size_l, self.n_cells = atlas, size_l, int(size_l.sum())
        self.mean_g = sketched_mean(atlas, size_l)
        self.counts = count_means(atlas, size_l) if atlas.leaves.has_counts else None

    def split(self, own_l: NDArray[np.int64]) -> list[CountMeans]:
        """Return the means of the counts of a group and of its rest."""
        assert self.counts is not None
        own, n_own = count_means(self._atlas, own_l), int(own_l.sum())
        rest = [
            np.maximum(total_g * self.n_cells - own_g * n_own, 0) / (self.n_cells - n_own)
            for total_g, own_g in zip(self.counts, own, strict=True)
        ]
        return [own, CountMeans(*rest)]


def sketched_mean(atlas: AtlasReader, size_l: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean scale of the cells of some leaves."""
    leaf_l = np.flatnonzero(size_l)
    assert atlas.leaves is not None
    mean_g: NDArray[np.float64] = (size_l[leaf_l] / size_l.sum()) @ atlas.leaves.scale_mean(leaf_l).astype(np.float64)
    return mean_g


def _pseudocounts(
    options: DifferentialOptions, tops: list[NDArray[np.float64]], counts: list[CountMeans] | None
) -> float:
    if options.pseudocounts is not None:
        return options.pseudocounts
    if counts is None:
        raise ValueError(
            "pseudocounts=None: it is found from the counts, which this atlas does not have; give a number"
        )
    return offset_of_silent(tops, [means.count_g < options.threshold_counts for means in counts])


def _against_rest(
    sample: SortedSample,
    sizes: tuple[int, int],
    below_gv: NDArray[np.float64],
    mean_g: NDArray[np.float64],
    delta: float,
    pseudocounts: float,
) -> NDArray[np.float64]:
    """Compare the values of a group with all cells on the grid less its own, shape (g, 5).

    Parameters
    ----------
    sizes
        Cells of the group and of its rest.
    mean_g
        Mean log2 scale of all cells.
    """
    found, (n_own, n_rest) = np.empty((len(below_gv), 5)), map(float, sizes)

    def work(genes: slice) -> None:
        args = (n_own, n_rest, delta, pseudocounts, found[genes])
        _compare_with_grid(sample.log2_gp[genes], below_gv[genes], *args)

    in_threads(work, gene_blocks(len(below_gv)))
    found[:, 4] = (mean_g * (n_own + n_rest) - n_own * found[:, 3]) / n_rest
    # The share of a pair is between 0 and 1: its variance over the many cells of the rest is at most p (1 - p).
    proba_g = np.maximum(found[:, 0], found[:, 1])
    found[:, 2] = np.sqrt(found[:, 2] / sample.n_effective + proba_g * (1 - proba_g) / n_rest + SKETCH_ERROR**2)
    return found


@njit(nogil=True, cache=True)
def _compare_with_grid(
    value_gp: NDArray[np.float32],
    below_gv: NDArray[np.float64],
    n_own: float,
    n_rest: float,
    delta: float,
    pseudocounts: float,
    found: NDArray[np.float64],
) -> None:
    """Compute the shares of pairs above delta and below -delta, the variance of the larger, and the group's mean."""
    n_genes, n_values = value_gp.shape
    up_p, down_p = np.empty(n_values), np.empty(n_values)
    factor = 2.0**-delta
    for gene in range(n_genes):
        below, above, mean = 0, 0, 0.0
        for i in range(n_values):
            value = np.float64(value_gp[gene, i])
            ratio = pseudocounts * 2.0**-value
            # log2((2**value + pc) * 2**-delta - pc), which most pairs must be below, and the same with +delta.
            low = value - delta + _log2_above_one(ratio * (1 - 1 / factor))
            high = value + delta + _log2_above_one(ratio * (1 - factor))
            mean += value + _log2_above_one(1e-3 * ratio)
            while below < n_values and value_gp[gene, below] <= low:
                below += 1
            while above < n_values and value_gp[gene, above] <= high:
                above += 1
            share = (_at(below_gv[gene], low) - n_own * below / n_values) / n_rest
            up_p[i] = min(max(share, 0.0), 1.0)
            share = (_at(below_gv[gene], high) - n_own * above / n_values) / n_rest
            down_p[i] = 1 - min(max(share, 0.0), 1.0)
        found[gene, 0], found[gene, 1] = up_p.mean(), down_p.mean()
        found[gene, 2] = up_p.var() if found[gene, 0] >= found[gene, 1] else down_p.var()
        found[gene, 3] = mean / n_values


@njit(nogil=True, cache=True)
def _log2_above_one(x: float) -> float:
    """Compute log2(1 + x); the first terms of its series near 0, where most values are."""
    if -1e-3 < x < 1e-3:
        near: float = x * (1 - x * (0.5 - x / 3)) * 1.4426950408889634
        return near
    return np.log2(1 + x) if x > -1 else -200.0


@njit(nogil=True, cache=True)
def _grid_mean(below_gv: NDArray[np.float64], described: float, mean_g: NDArray[np.float64]) -> None:
    """Average log2(scale + described) over the cells on the grid."""
    for gene in range(below_gv.shape[0]):
        total, previous = 0.0, 0.0
        for v in range(below_gv.shape[1]):
            count = below_gv[gene, v] - previous
            if count > 0:
                total += count * np.log2(2.0 ** ((v + 0.5) / 16.0 - 40.0) + described)
                previous = below_gv[gene, v]
        mean_g[gene] = total / previous


@njit(nogil=True, cache=True)
def _at(below_v: NDArray[np.float64], value: float) -> float:
    """Interpolate the number of cells below a value."""
    place = (value + 40.0) * 16.0
    if place <= 0:
        return 0.0
    cell = int(place)
    if cell >= len(below_v):
        count: float = below_v[-1]
        return count
    left = below_v[cell - 1] if cell > 0 else 0.0
    inside: float = left + (place - cell) * (below_v[cell] - left)
    return inside


def _table(
    atlas: AtlasReader,
    scores: NDArray[np.float64],
    scales: list[NDArray[np.float64]],
    counts: list[CountMeans] | None,
    pseudocounts: float,
) -> pd.DataFrame:
    proba_g = np.maximum(scores[:, 0], scores[:, 1])
    columns: dict[str, Any] = {
        "proba_up": scores[:, 0],
        "proba_de": proba_g,
        "bayes_factor": bayes_factor(proba_g, 1 - proba_g),
        "lfc_mean": scores[:, 3] - scores[:, 4],
        "scale1": scales[0],
        "scale2": scales[1],
        "pseudocounts": np.full(len(proba_g), pseudocounts),
        "proba_de_se": scores[:, 2],
    }
    raw = {} if counts is None else count_columns(*counts)
    return pd.DataFrame(columns | raw, index=pd.Index(atlas.var_names))


def _with_up(table: pd.DataFrame) -> pd.DataFrame:
    """Select the columns of markers from those of a comparison."""
    kept = ["proba_up", "proba_de", "bayes_factor", "lfc_mean", "scale1", "scale2", "pseudocounts", "proba_de_se"]
    raw = [name for name in table.columns if name.startswith(("raw_", "non_zeros"))]
    return table[[*kept, *raw]]


def _by_pairs(
    atlas: AtlasReader, groups: CellGroups, cells: CellSet, options: DifferentialOptions
) -> "list[pd.DataFrame]":
    """Compare a sample of each group with the cells of a common pool that are not in it."""
    batches = correction_batches(atlas, batch_correction=options.batch_correction, seed=options.seed)
    pool_size = _POOL_PER_SAMPLE * CANDIDATES_PER_CELL * options.n_samples
    size = CANDIDATES_PER_CELL * options.n_samples
    samples, pool_m, group_m = sample_groups(atlas, groups, cells, size, pool_size, seed=options.seed)
    everything_l = None
    if samples.cells_ql is not None:
        everything_l = _leaf_counts(atlas, cells)
    tables = []
    for place, row_m in enumerate(samples.rows):
        others_m = pool_m[group_m != place]
        if not len(others_m):
            raise ValueError(f"group {groups.names[place]!r} holds all sampled cells: there is no rest to compare with")
        values: list[SideValues] = [
            decoded_side(atlas, rows, batches, options.n_samples, seeds=(options.seed, side))
            for side, rows in enumerate((row_m, others_m))
        ]
        counts = None
        if everything_l is not None and samples.cells_ql is not None and atlas.leaves and atlas.leaves.has_counts:
            own_l = samples.cells_ql[place]
            counts = [count_means(atlas, own_l), count_means(atlas, everything_l - own_l)]
        table = scored_table(atlas, values, counts, replace(options, test_mode="three"), sketched=False, with_up=True)
        tables.append(_with_up(table))
    return tables


def _leaf_counts(atlas: AtlasReader, cells: CellSet) -> NDArray[np.int64]:
    """Count the chosen cells of each leaf."""
    assert atlas.leaves is not None
    total_l = np.zeros(atlas.leaves.n_leaves, dtype=np.int64)
    for rows in atlas.chunks():
        leaf_n = atlas.read_leaf(rows)
        assert leaf_n is not None
        total_l += np.bincount(leaf_n[cells.mask(rows)], minlength=len(total_l))
    return total_l
