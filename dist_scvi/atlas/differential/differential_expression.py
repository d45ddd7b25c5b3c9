"""Differential expression of two groups of cells of an atlas, with the columns of scvi-tools.

Maths: scvi-tools 1.4.2, model/base/_differential.py (Lopez et al. 2018, doi:10.1038/s41592-018-0229-2; Boyeau et al.
2019, doi:10.1101/794289). There pairs of samples are drawn at random; here all pairs are formed.

Shape letters in this file
    g   genes
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.differential.all_pairs import PairScores, average_scores, compare_pairs
from dist_scvi.atlas.differential.replicates import replicate_columns
from dist_scvi.atlas.differential.sides import (
    SideValues,
    choose_sides,
    correction_batches,
    count_means,
    decoded_side,
    largest_scale,
    sketched_side,
)
from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.sample import CANDIDATES_PER_CELL, sample_sets
from dist_scvi.atlas.queries.where import Cells, CellSet
from dist_scvi.expression.de_groups import CountMeans, count_columns
from dist_scvi.expression.de_scores import bayes_factor, estimate_delta, flag_by_fdr, offset_of_silent

Engine = Literal["auto", "sketch", "pairs", "exact"]

N_SAMPLES = 1000
EXACT_BYTES = 4 << 30
"""Largest number of decoded values of both sides in the exact engine."""
SKETCH_ERROR = 0.0016
"""Mean error of a probability from 32 quantiles in place of all values, on real decoders; on a drawn one it is 0.0011:
benchmarks/results/atlas.json."""


@dataclass(frozen=True, slots=True)
class DifferentialOptions:
    """Definition of a difference, and how it is estimated."""

    mode: Literal["vanilla", "change"] = "vanilla"
    delta: float | None = 0.25
    fdr: float = 0.05
    batch_correction: bool = False
    engine: Engine = "auto"
    n_samples: int = N_SAMPLES
    pseudocounts: float | None = None
    threshold_counts: float = 0.01
    test_mode: Literal["two", "three"] = "three"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, ("vanilla", "change")),
            ("engine", self.engine, ("auto", "sketch", "pairs", "exact")),
            ("test_mode", self.test_mode, ("two", "three")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, known))} is needed")
        if self.delta is not None and not 0 <= self.delta < np.inf:
            raise ValueError(f"delta={self.delta}: a number >= 0 is needed, or None to find one")
        if not 0 < self.fdr < 1:
            raise ValueError(f"fdr={self.fdr}: a share between 0 and 1 is needed")
        if self.pseudocounts is not None and not 0 < self.pseudocounts < np.inf:
            raise ValueError(f"pseudocounts={self.pseudocounts}: a number > 0 is needed, or None to find one")
        if not 2 <= self.n_samples <= 1 << 20:
            raise ValueError(f"n_samples={self.n_samples}: from 2 to {1 << 20} cells of each side are needed")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: a whole number from 0 is needed")


def differential_expression(  # noqa: PLR0913 - the arguments of scvi-tools
    atlas: AtlasReader,
    group1: Cells,
    group2: Cells = None,
    mode: Literal["vanilla", "change"] = "vanilla",
    delta: float | None = 0.25,
    fdr: float = 0.05,
    *,
    where: Cells = None,
    groupby: str | None = None,
    batch_correction: bool = False,
    engine: Engine = "auto",
    replicate: str | None = None,
    n_samples: int = N_SAMPLES,
    pseudocounts: float | None = None,
    threshold_counts: float = 0.01,
    test_mode: Literal["two", "three"] = "three",
    seed: int = 0,
) -> Answer:
    """Compare the expression of two groups of cells, gene by gene.

    Parameters
    ----------
    group1, group2
        Cells as a filter, rows, a mask, or values of obs columns; without `group2` all others. With `groupby` they are
        categories of this obs column.
    mode
        ``"vanilla"``: the probability that a gene is higher in the first group; ``"change"``: that it differs by
        `delta`.
    delta
        Smallest log2 fold change of a difference; None estimates it.
    fdr
        Share of false discoveries allowed in the genes flagged by mode ``"change"``.
    where
        Only these cells, in both groups.
    batch_correction
        Decode the cells with all batches instead of their own, and form pairs within a batch. Of more than 64 batches
        64 are drawn.
    engine
        ``"sketch"`` compares the quantiles of leaves and decodes nothing; both groups must be unions of leaves, each
        cell with its own batch. ``"pairs"`` decodes `n_samples` cells of each group and forms all pairs. ``"exact"``
        does so with every cell. ``"auto"`` takes the first that can answer of sketch and pairs.
    replicate
        Obs column of independent samples, such as donors: adds a test between them on the sums of counts of each.
    n_samples
        Cells of each group for ``"pairs"``. Of fewer cells several draws each are taken.
    pseudocounts
        Added to the scales; None estimates it from genes with a mean count below `threshold_counts`.
    threshold_counts
        See `pseudocounts`.
    test_mode
        ``"three"`` takes increase and decrease as two hypotheses, ``"two"`` as one.
    seed
        Seed of the cells and draws.

    Returns
    -------
    Answer
        A row for each gene, most different first, with the columns of scvi-tools 1.4.2, and the standard errors
        ``proba_de_se`` or ``proba_m1_se`` and ``lfc_mean_se``. With `replicate` also ``replicate_lfc``,
        ``replicate_se``, ``replicate_pvalue`` and ``replicate_fdr``.

    Raises
    ------
    ValueError
        If a column, value, gene or batch does not exist, a group is empty, groups share cells, or the engine cannot
        answer.
    """
    options = DifferentialOptions(
        mode, delta, fdr, batch_correction, engine, n_samples, pseudocounts, threshold_counts, test_mode, seed
    )
    if groupby is not None:
        group1, group2 = _category(groupby, group1), None if group2 is None else _category(groupby, group2)
    sides = choose_sides(atlas, group1, group2, where)
    names = ("group1", "group2") if groupby is None else (sides[0].text, sides[1].text)
    used = _engine(atlas, sides, options)
    values, counts, notes = _values(atlas, sides, options, used)
    table = scored_table(atlas, values, counts, options, sketched=used == "sketch")
    if replicate is not None:
        for name, column_g in replicate_columns(atlas, sides, replicate).items():
            table[name] = column_g
    table = table.sort_values("bayes_factor" if mode == "vanilla" else "proba_de", ascending=False, kind="stable")
    if mode == "change":
        table[f"is_de_fdr_{fdr}"] = flag_by_fdr(table["proba_de"].to_numpy(), fdr)
    table["comparison"] = f"{sides[0].text} vs {sides[1].text}"
    table["group1"], table["group2"] = sides[0].text, sides[1].text
    parameters = asdict(options) | {"where": str(where), "replicate": replicate}
    sizes = {name: side.n_cells for name, side in zip(names, sides, strict=True)}
    batch = "average" if batch_correction else "own"
    return Answer(
        "differential_expression", table, used, batch, sizes, atlas.uri, atlas.digest, seed, parameters, notes
    )


def _category(groupby: str, group: Cells) -> Cells:
    """Read a group as one or more categories of a column."""
    names = [group] if isinstance(group, str) or not isinstance(group, Sequence) else list(group)
    if any(isinstance(name, CellSet) or name is None for name in names):
        raise ValueError(f"groupby={groupby!r}: group1 and group2 are names of its categories")
    return {groupby: names}


def _engine(atlas: AtlasReader, sides: tuple[CellSet, CellSet], options: DifferentialOptions) -> str:
    obstacle = sketch_obstacle(atlas, sides, batch_correction=options.batch_correction)
    if options.engine == "sketch" and obstacle:
        raise ValueError(f"engine='sketch': {obstacle}; use engine='pairs'")
    if options.engine == "exact":
        n_batches = atlas.spec.n_batch if options.batch_correction else 1
        n_bytes = 4 * len(atlas.var_names) * n_batches * sum(side.n_cells for side in sides)
        if n_bytes > EXACT_BYTES:
            raise ValueError(
                f"engine='exact': all values of {sides[0].n_cells:,} and {sides[1].n_cells:,} cells are "
                f"{n_bytes / 2**30:.1f} GiB, at most {EXACT_BYTES >> 30} are held; use 'pairs' with more n_samples"
            )
    if options.engine != "auto":
        return options.engine
    return "pairs" if obstacle else "sketch"


def sketch_obstacle(atlas: AtlasReader, sides: Sequence[CellSet], *, batch_correction: bool) -> str | None:
    """Return the reason why sketches cannot answer, if there is one."""
    if atlas.leaves is None:
        return "this atlas has no leaves"
    if any(side.leaf_l is None for side in sides):
        return f"the groups are no unions of leaves, which are of {', '.join(atlas.leaves.columns)}"
    if batch_correction and atlas.spec.n_batch > 1:
        return "batch_correction=True: the sketches are of each cell's own batch"
    return None


def _values(
    atlas: AtlasReader, sides: tuple[CellSet, CellSet], options: DifferentialOptions, engine: str
) -> tuple[list[SideValues], list[CountMeans] | None, tuple[str, ...]]:
    """Collect the values and counts of both sides, and notes about them."""
    notes = [
        f"{name} has {side.n_cells} cells: all are used, with several draws of each"
        for name, side in zip(("group1", "group2"), sides, strict=True)
        if engine == "pairs" and side.n_cells < options.n_samples
    ]
    leaves = atlas.leaves
    if engine == "sketch":
        assert leaves is not None
        cells_ql = np.zeros((2, leaves.n_leaves), dtype=np.int64)
        for place, side in enumerate(sides):
            assert side.leaf_l is not None
            cells_ql[place, side.leaf_l] = leaves.n_cells[side.leaf_l]
        values = [sketched_side(atlas, side) for side in sides]
    else:
        batches = correction_batches(atlas, batch_correction=options.batch_correction, seed=options.seed)
        exact = engine == "exact"
        size = max(side.n_cells for side in sides) if exact else CANDIDATES_PER_CELL * options.n_samples
        samples = sample_sets(atlas, list(sides), size, seed=options.seed)
        values = [
            decoded_side(atlas, row_m, batches, None if exact else options.n_samples, seeds=(options.seed, number))
            for number, row_m in enumerate(samples.rows)
        ]
        found = samples.cells_ql
        if found is None:
            return values, None, tuple(notes)
        cells_ql = found
        if options.batch_correction and len(batches) < atlas.spec.n_batch:
            notes.append(f"{len(batches)} of {atlas.spec.n_batch} batches were drawn to correct with")
    assert leaves is not None
    if not leaves.has_counts:
        return values, None, tuple(notes)
    if any(side.leaf_l is None for side in sides):
        notes.append("raw counts of a group that is no union of leaves are estimated from those of its leaves")
    elif not options.batch_correction:
        # The same pseudocount by sketch and by pairs: the maximum of a sample depends on its size.
        tops = [largest_scale(atlas, side.leaf_l) for side in sides if side.leaf_l is not None]
        values = [SideValues(value.parts, value.mean_g, top_g) for value, top_g in zip(values, tops, strict=True)]
    return values, [count_means(atlas, cells_l) for cells_l in cells_ql], tuple(notes)


def scored_table(
    atlas: AtlasReader,
    values: list[SideValues],
    counts: list[CountMeans] | None,
    options: DifferentialOptions,
    *,
    sketched: bool,
    with_up: bool = False,
) -> pd.DataFrame:
    """Compare the values of two sides and return the columns of scvi-tools; `with_up` adds that of an increase."""
    scales = {"scale1": values[0].mean_g, "scale2": values[1].mean_g}
    raw = {} if counts is None else count_columns(*counts)
    error = SKETCH_ERROR if sketched else 0.0
    if options.mode == "vanilla":
        scores = _compared(values, 0.0, 1e-30)
        higher_g = scores.plus_g
        columns: dict[str, Any] = {
            "proba_m1": higher_g,
            "proba_m2": 1 - higher_g,
            "bayes_factor": bayes_factor(higher_g, 1 - higher_g),
            "proba_m1_se": np.sqrt(scores.plus_variance_g + error**2),
        }
        return pd.DataFrame(columns | scales | raw, index=pd.Index(atlas.var_names))
    pseudocounts = options.pseudocounts
    if pseudocounts is None:
        if counts is None:
            raise ValueError(
                "pseudocounts=None: it is found from the counts, which this atlas does not have; give a number, such "
                "as 1e-10"
            )
        silent = [means.count_g < options.threshold_counts for means in counts]
        pseudocounts = offset_of_silent([value.top_g for value in values], silent)
    delta = options.delta
    if delta is None:
        delta = estimate_delta(_compared(values, 0.0, pseudocounts, described=1.0).mean_g)
    scores = _compared(values, delta, pseudocounts)
    columns = _change_columns(scores, options, delta, pseudocounts, scales, error)
    up = {"proba_up": scores.plus_g} if with_up else {}
    return pd.DataFrame(columns | up | raw, index=pd.Index(atlas.var_names))


def _compared(values: list[SideValues], delta: float, pseudocounts: float, *, described: float = 1e-3) -> PairScores:
    """Form all pairs within each batch, and average over batches."""
    return average_scores(
        [
            compare_pairs(first, second, delta, pseudocounts, described * pseudocounts)
            for first, second in zip(values[0].parts, values[1].parts, strict=True)
        ]
    )


def _change_columns(
    scores: PairScores,
    options: DifferentialOptions,
    delta: float,
    pseudocounts: float,
    scales: dict[str, NDArray[np.float64]],
    error: float,
) -> dict[str, Any]:
    if options.test_mode == "two":
        proba_g, variance_g = scores.plus_g + scores.minus_g, scores.both_variance_g
    else:
        up_g = scores.plus_g >= scores.minus_g
        proba_g = np.where(up_g, scores.plus_g, scores.minus_g)
        variance_g = np.where(up_g, scores.plus_variance_g, scores.minus_variance_g)
    n_genes = len(proba_g)
    return {
        "proba_de": proba_g,
        "proba_not_de": 1 - proba_g,
        "bayes_factor": bayes_factor(proba_g, 1 - proba_g),
        **scales,
        "pseudocounts": np.full(n_genes, pseudocounts),
        "delta": np.full(n_genes, delta),
        "lfc_mean": scores.mean_g,
        "lfc_median": scores.median_g,
        "lfc_std": np.sqrt(scores.variance_g),
        "lfc_min": scores.min_g,
        "lfc_max": scores.max_g,
        "proba_de_se": np.sqrt(variance_g + error**2),
        "lfc_mean_se": np.sqrt(scores.mean_variance_g),
    }
