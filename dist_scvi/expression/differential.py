"""Differential expression: sample cells first, decode only these, and compare.

scvi-tools 1.4.2, model/base/_de_core.py and _differential.py. There every cell of a group is decoded for every batch
before samples are drawn; here time and memory grow with the number of samples, not of cells.

Shape letters in this file
    n   cells
    g   genes
    k   latent dimensions
    q   groups of cells
    m   cells of a group, or some of them
    s   samples of a group
    c   candidates for samples
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.expression.de_groups import (
    CellChoice,
    CountMeans,
    Groups,
    RawMoments,
    count_columns,
    decoding_batches,
    draw_numbers,
    groups_by_cells,
    groups_by_column,
    inliers,
    marked_cells,
    rows_at,
)
from dist_scvi.expression.de_scores import (
    Change,
    ChangeTest,
    Domain,
    Pairs,
    change_scores,
    flag_by_fdr,
    pair_samples,
    pseudocount_offset,
    vanilla_scores,
)
from dist_scvi.expression.source import CountSource, ExpressionSource, ObsSource
from dist_scvi.inference.importance import Importance, importance_of

log = logging.getLogger(__name__)

_PASS_CELLS, _ENVELOPE_CELLS = 1024, 10_000
_CHOICE_KEY, _PAIR_KEY, _ENVELOPE_KEY, _WEIGHT_KEY = 1, 2, 3, 4
"""Keys of independent random streams: an option that draws from one does not change what is drawn from another."""


def differential_expression(  # noqa: PLR0913 - the arguments of scvi-tools
    source: ExpressionSource,
    groupby: str | None = None,
    group1: str | Sequence[str] | None = None,
    group2: str | None = None,
    idx1: CellChoice | None = None,
    idx2: CellChoice | None = None,
    mode: Literal["vanilla", "change"] = "vanilla",
    delta: float | None = 0.25,
    *,
    all_stats: bool = True,
    batch_correction: bool = False,
    batchid1: str | Sequence[str] | None = None,
    batchid2: str | Sequence[str] | None = None,
    fdr_target: float = 0.05,
    weights: Literal["uniform", "importance"] | None = "uniform",
    filter_outlier_cells: bool = False,
    importance_weighting_kwargs: dict[str, Any] | None = None,
    n_samples_overall: int = 5000,
    use_permutation: bool = False,
    m_permutation: int = 10_000,
    change_fn: Change | Literal["log-fold"] | None = None,
    m1_domain_fn: Domain | None = None,
    pseudocounts: float | None = None,
    threshold_counts: float = 0.01,
    test_mode: Literal["two", "three"] = "three",
    cred_interval_lvls: Sequence[float] | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Compare the expression of groups of cells, gene by gene.

    Parameters
    ----------
    source
        The cells and their model.
    groupby
        obs column of the groups.
    group1, group2
        Categories to compare, by default all, and the one to compare with, by default all other cells.
    idx1, idx2
        The two groups as row numbers, mask, or query over obs, in place of a column. `idx2` is by default all others.
    mode
        ``"vanilla"`` tests whether a gene is higher in the first group, ``"change"`` whether it differs by `delta`.
    delta
        Least change that counts; None estimates it.
    all_stats
        Add means of the raw counts.
    batch_correction
        Decode every cell with each batch instead of its own.
    batchid1, batchid2
        The batches to decode each group with, by default all. Either the same for both, and then samples are compared
        within a batch, or none in common.
    fdr_target
        Share of false discoveries allowed in the genes flagged by mode ``"change"``.
    weights
        ``"importance"`` prefers draws of the posterior that explain the whole group.
    filter_outlier_cells
        Leave out the tenth of each group that is farthest from its centre in latent space. The centre is estimated
        from, and samples are drawn from, at most 10,000 cells of a group; raw counts are of the whole group.
    importance_weighting_kwargs
        Fields of `ImportanceSampling`.
    n_samples_overall
        Samples of each group, over all batches.
    use_permutation, m_permutation
        Compare this many random pairs of samples instead of each sample with one other.
    change_fn
        Effect of two arrays of samples, (pairs, genes), and a pseudocount; by default the binary logarithm of their
        ratio. A function receives arrays of all genes at once.
    m1_domain_fn
        Returns two masks, of increase and of decrease, for an array of effects.
    pseudocounts
        Added to the scales; None estimates it from genes with a mean count below `threshold_counts`.
    threshold_counts
        See `pseudocounts`.
    test_mode
        ``"three"`` treats increase and decrease as two hypotheses, ``"two"`` as one.
    cred_interval_lvls
        Levels of credible intervals of the change, in [0, 1).
    seed
        Seed of the choice of cells. The cells chosen from a group do not depend on which other groups are compared.
    on_progress
        Called after each comparison with the number done and the number of all.

    Returns
    -------
    pandas.DataFrame
        For each comparison the genes, most different first; columns as in scvi-tools 1.4.2.

    Raises
    ------
    ValueError
        If a group, batch or argument is invalid, or counts are needed that the source does not have.
    """
    _check(mode=mode, fdr_target=fdr_target, n_samples=n_samples_overall, pairs=m_permutation, seed=seed)
    levels = () if cred_interval_lvls is None else tuple(cred_interval_lvls)
    test = ChangeTest(delta, pseudocounts, threshold_counts, change_fn, m1_domain_fn, test_mode, levels)
    if mode == "vanilla" and not (test.is_elementwise and pseudocounts is None and not levels):
        raise ValueError("change_fn, m1_domain_fn, pseudocounts and cred_interval_lvls are of mode='change': set it")
    groups = _groups(source, groupby, group1, group2, idx1, idx2)
    sampler = _Sampler(
        source,
        decoding_batches(source.batch_categories, batchid1, batchid2, batch_correction=batch_correction),
        n_samples_overall,
        seed,
        filter_outlier_cells,
        importance_of(source, weights, importance_weighting_kwargs),
    )
    comparison = _Comparison(
        groups,
        _moments(source, groups, all_stats, mode, pseudocounts),
        sampler,
        test if mode == "change" else None,
        m_permutation if use_permutation else None,
        all_stats,
    )
    # The second group is sampled once, not once per comparison; the rest of a group differs between comparisons.
    shared = None if groups.second is None else sampler.sample(groups.member_n(0, 1), 1)
    frames: list[pd.DataFrame] = []
    for first in groups.first:
        frame = pd.DataFrame(comparison.columns(first, shared), index=pd.Index(source.var_names))
        frame = frame.sort_values("bayes_factor" if mode == "vanilla" else "proba_de", ascending=False)
        if mode == "change":
            frame[f"is_de_fdr_{fdr_target}"] = flag_by_fdr(frame["proba_de"].to_numpy(), fdr_target)
        if idx1 is None:
            names = groups.names[first], "Rest" if groups.second is None else groups.names[groups.second]
            frame["comparison"] = " vs ".join(names)
            frame["group1"], frame["group2"] = names
        frames.append(frame)
        if on_progress is not None:
            on_progress(len(frames), len(groups.first))
    return pd.concat(frames)


@dataclass(frozen=True, slots=True, eq=False)
class _Samples:
    scale_sg: NDArray[np.float32]
    batch_s: NDArray[np.int32]
    """Batch that each was decoded with; -1 for the cell's own."""


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Samples cells of a group and decodes their scale. Sides 0 and 1 are the two groups of a comparison."""

    source: ExpressionSource
    batches: tuple[tuple[int | None, ...], tuple[int | None, ...]]
    """Batches to decode each side with."""
    n_samples: int
    seed: int
    filter_outliers: bool
    importance: Importance | None

    def sample(self, member_n: NDArray[np.bool_], side: int) -> _Samples:
        """Sample the scale of the cells in the mask `member_n`."""
        if self.filter_outliers:
            member_n = self._without_outliers(member_n, side)
        batches = self.batches[side]
        n_each = max(2, self.n_samples // len(batches))
        row_s, draw_s = self._choose(member_n, side, n_each)
        scale_sg = np.empty((len(row_s), len(self.source.var_names)), dtype=np.float32)
        for place, batch in enumerate(batches):
            start, stop = place * n_each, (place + 1) * n_each
            order = start + np.argsort(row_s[start:stop], kind="stable")  # neighbouring rows are read together
            for part in np.split(order, range(_PASS_CELLS, n_each, _PASS_CELLS)):
                scale_sg[part] = self.source.scale(row_s[part], draw_s[part], batch)
        codes = np.array([-1 if batch is None else batch for batch in batches], dtype=np.int32)
        return _Samples(scale_sg, np.repeat(codes, n_each))

    def _choose(
        self, member_n: NDArray[np.bool_], side: int, n_each: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choose cells with replacement, `n_each` for each batch; return row and draw of each."""
        batches, n_members = self.batches[side], int(np.count_nonzero(member_n))
        # As many candidates as samples, as in scvi-tools: importance weights choose among them with replacement.
        places = [self._rng(_CHOICE_KEY, side, batch).integers(n_members, size=n_each) for batch in batches]
        row_c = rows_at(member_n, np.concatenate(places))
        draw_c = draw_numbers(row_c, side)
        if self.importance is None:
            return row_c, draw_c
        rng = self._rng(_WEIGHT_KEY, side, None)
        anchor_a = rng.choice(n_members, min(n_members, self.importance.sampling.max_cells), replace=False)
        anchors = self.importance.anchors(rows_at(member_n, np.sort(anchor_a)))
        chosen_s = self.importance.choose(row_c, draw_c, batches, anchors, n_each, rng)
        return row_c[chosen_s], draw_c[chosen_s]

    def _without_outliers(self, member_n: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
        rng, n_members = self._rng(_ENVELOPE_KEY, side, None), int(np.count_nonzero(member_n))
        row_m = rows_at(member_n, np.sort(rng.choice(n_members, min(n_members, _ENVELOPE_CELLS), replace=False)))
        kept_m = inliers(self.source.latent_mean(row_m), rng)
        if kept_m is None:
            log.warning(
                "filter_outlier_cells: %d cells are too few or too alike to tell outliers; all are kept", n_members
            )
            return member_n
        kept_n = np.zeros_like(member_n)
        kept_n[row_m[kept_m]] = True
        return kept_n

    def _rng(self, purpose: int, side: int, batch: int | None) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, side, 0 if batch is None else batch + 1])


@dataclass(frozen=True, slots=True, eq=False)
class _Comparison:
    """Computes the comparison of one group; its samples are freed afterwards."""

    groups: Groups
    moments: RawMoments | None
    sampler: _Sampler
    test: ChangeTest | None
    """None is mode vanilla."""
    n_pairs: int | None
    all_stats: bool

    def columns(self, first: int, shared: _Samples | None) -> dict[str, NDArray[Any]]:
        """Return the columns of the comparison of group `first` with the samples `shared`, or with all other cells."""
        sampler = self.sampler
        samples = sampler.sample(self.groups.member_n(first, 0), 0)
        others = shared or sampler.sample(self.groups.member_n(first, 1), 1)
        within_batch = sampler.batches[0] != (None,) and set(sampler.batches[0]) == set(sampler.batches[1])
        chosen = pair_samples(
            samples.batch_s,
            others.batch_s,
            within_batch=within_batch,
            n_pairs=self.n_pairs,
            rng=np.random.default_rng([sampler.seed, _PAIR_KEY]),
        )
        pairs = Pairs(samples.scale_sg, others.scale_sg, *chosen)
        counts = self._counts(first)
        if self.test is None:
            columns = vanilla_scores(pairs)
        else:
            pseudocounts = self.test.pseudocounts
            if pseudocounts is None:
                silent = [means.count_g < self.test.threshold_counts for means in counts]
                pseudocounts = pseudocount_offset(pairs, *silent)
            columns = change_scores(pairs, self.test, pseudocounts)
        return columns | count_columns(*counts) if self.all_stats else columns

    def _counts(self, first: int) -> list[CountMeans]:
        return [self.moments.means(self.groups.counted_q(first, side)) for side in (0, 1)] if self.moments else []


def _groups(
    source: ExpressionSource,
    groupby: str | None,
    group1: str | Sequence[str] | None,
    group2: str | None,
    idx1: CellChoice | None,
    idx2: CellChoice | None,
) -> Groups:
    if idx1 is not None:
        for name, value in (("groupby", groupby), ("group1", group1), ("group2", group2)):
            if value is not None:
                raise ValueError(f"idx1 and {name}={value!r} both say who is compared: give one of them")
        query: Callable[[str], NDArray[np.bool_]] | None = source.obs_query if isinstance(source, ObsSource) else None
        first_n = marked_cells("idx1", idx1, source.n_cells, query)
        second_n = None if idx2 is None else marked_cells("idx2", idx2, source.n_cells, query)
        return groups_by_cells(first_n, second_n)
    if idx2 is not None:
        raise ValueError("idx2 is given without idx1: idx1 is needed, the group that is compared with it")
    if groupby is None:
        raise ValueError("nothing says who is compared: groupby is needed, an obs column, or idx1")
    code_n, categories = source.group_codes(groupby)
    return groups_by_column(code_n, categories, group1, group2, groupby=groupby)


def _moments(
    source: ExpressionSource,
    groups: Groups,
    all_stats: bool,  # noqa: FBT001
    mode: str,
    pseudocounts: float | None,
) -> RawMoments | None:
    needs = {"all_stats=True": all_stats, "pseudocounts=None": mode == "change" and pseudocounts is None}
    if not any(needs.values()):
        return None
    if isinstance(source, CountSource):
        return source.raw_moments(groups.counted_n(), len(groups.names) + 1)
    raise ValueError(
        f"{' and '.join(name for name, needed in needs.items() if needed)}: the counts are needed, which are not kept "
        "here; set all_stats=False, and in mode='change' pseudocounts to a number, such as 1e-10"
    )


def _check(*, mode: str, fdr_target: float, n_samples: int, pairs: int, seed: int) -> None:
    if mode not in ("vanilla", "change"):
        raise ValueError(f"mode={mode!r}: 'vanilla' or 'change' is needed")
    if not 0 < fdr_target < 1:
        raise ValueError(f"fdr_target={fdr_target}: a share between 0 and 1 is needed")
    for name, value, least in (("n_samples_overall", n_samples, 2), ("m_permutation", pairs, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least} is needed")
