"""Abundance of groups of cells by sample, and its contrast between two conditions.

Shape letters in this file
    s   samples
    q   groups
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.groups import CellGroups, group_cells
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import Cells, check_column, choose_cells, near_values

_NAMES_JOINED_BY = " | "


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two categories of an obs column: the tested one and the reference."""

    key: str
    tested: str
    reference: str


@dataclass(frozen=True, slots=True, eq=False)
class SampleCounts:
    """Cells of each group in each sample."""

    samples: pd.DataFrame
    """Values of the obs columns that identify each sample."""
    names: tuple[str, ...]
    """Names of the groups."""
    groups: pd.DataFrame
    """Values of the obs columns of each group."""
    count_sq: NDArray[np.int64]


def abundance(
    atlas: AtlasReader,
    by: str | Sequence[str],
    groups: str | Sequence[str] = (),
    *,
    contrast: str | Sequence[str] | None = None,
    where: Cells = None,
    level: float = 0.95,
) -> Answer:
    """Count the cells of each group in each sample, or compare their shares between two conditions.

    Parameters
    ----------
    by
        Obs column, or columns, that identify the samples, such as the donor.
    groups
        Obs columns whose observed combinations are the groups; by default the labels that the model was trained with.
    contrast
        Obs column, tested category and reference, as in ``["condition", "stim", "ctrl"]``; or only a column that has
        two categories, of which the second is tested against the first.
    where
        Only these cells: a filter, rows, a mask, or values of obs columns. Shares are of these cells.
    level
        Confidence level of the intervals.

    Returns
    -------
    Answer
        Without `contrast` a row for each sample and group: `n` cells of the `total`, `fraction`, and the ends `low` and
        `high` of its Wilson interval, which covers the sampling of cells within the sample. With `contrast` a row for
        each group: the mean fractions `fraction1` of the tested and `fraction2` of the reference samples, `effect`, the
        difference of their mean log2 odds, with `se`, `low`, `high`, `pvalue` and `fdr`.

    Raises
    ------
    ValueError
        If a column or category does not exist, no cell is chosen, or a condition has fewer than two samples.

    Notes
    -----
    Cells of a sample are not independent, so conditions are compared with the samples as replicates: a t-test on
    log-odds, as propeller does (Phipson et al. 2022, doi:10.1093/bioinformatics/btac582), without its moderation of
    variances. It is Welch's test, or paired where the same samples occur in both conditions. 0.5 is added to the cells
    inside and outside of a group (Haldane 1956, doi:10.1111/j.1469-1809.1955.tb01285.x). `fdr` is that of Benjamini and
    Hochberg. For the density of samples in the latent space see ``SCVI.differential_abundance``.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: a share between 0 and 1 is needed")
    cells, chosen = choose_cells(atlas, where), _read_contrast(atlas, contrast)
    samples, grouped = _keys(by), _keys(groups) or _label_key(atlas)
    shared = sorted({*samples, *([chosen.key] if chosen else [])} & {*grouped})
    if not samples or shared:
        raise ValueError(
            f"by={by!r}: obs columns of samples are needed, other than those of the groups ({', '.join(grouped)})"
        )
    keys = list(dict.fromkeys([*samples, *([chosen.key] if chosen else []), *grouped]))
    found = group_cells(atlas, keys, cells)
    counts = _count_samples(found, grouped)
    n_counted = int(counts.count_sq.sum())
    notes = [f"{cells.n_cells - n_counted:,} cells without a value in {', '.join(keys)} are left out"]
    notes = notes if n_counted < cells.n_cells else []
    if chosen is None:
        table, engine = _fractions(counts, level), "leaves" if found.group_l is not None else "exact"
    else:
        table, engine, more = _compare(counts, chosen, samples, level)
        notes += more
    parameters = {
        "by": samples,
        "groups": grouped,
        "contrast": None if chosen is None else [chosen.key, chosen.tested, chosen.reference],
        "where": cells.text,
        "level": level,
    }
    n_cells = dict(zip(counts.names, counts.count_sq.sum(axis=0).tolist(), strict=True))
    return Answer("abundance", table, engine, "", n_cells, atlas.uri, atlas.digest, 0, parameters, tuple(notes))


def _keys(columns: str | Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _label_key(atlas: AtlasReader) -> list[str]:
    label = atlas.spec.label
    if label is None:
        raise ValueError("groups is empty: name the obs column of the groups (the model was trained without labels)")
    return [label.key]


def _read_contrast(atlas: AtlasReader, contrast: str | Sequence[str] | None) -> Contrast | None:
    if contrast is None:
        return None
    parts = _keys(contrast)
    if len(parts) not in (1, 3):
        raise ValueError(
            f"contrast={contrast!r}: an obs column, its tested category and its reference are needed, as in "
            "['condition', 'stim', 'ctrl']"
        )
    check_column(atlas.obs, parts[0], atlas.uri)
    if atlas.obs.kind(parts[0]) != "categorical":
        raise ValueError(f"obs column '{parts[0]}' holds numbers: a contrast needs a column of categories")
    present = atlas.obs.categorical(parts[0]).vocabulary
    if len(parts) == 1:
        if len(present) != 2:
            raise ValueError(
                f"obs column '{parts[0]}' has {len(present)} categories ({', '.join(present[:10])}): name the tested "
                "category and the reference, as in ['condition', 'stim', 'ctrl']"
            )
        parts += [present[1], present[0]]
    tested, reference = str(parts[1]), str(parts[2])
    for value in (tested, reference):
        if value not in present:
            raise ValueError(f"obs column '{parts[0]}' has no value {value!r}: {near_values(value, present)}")
    if tested == reference:
        raise ValueError(f"contrast={contrast!r} compares {tested!r} with itself: name two categories")
    return Contrast(parts[0], tested, reference)


def _count_samples(found: CellGroups, grouped: list[str]) -> SampleCounts:
    """Arrange the observed combinations as samples by groups; a combination without cells counts 0."""
    columns = [key for key in found.by if key not in grouped]
    sample_n, sample_s = _numbered(found.table[columns])
    group_n, group_q = _numbered(found.table[grouped])
    count_sq = np.zeros((len(sample_s), len(group_q)), dtype=np.int64)
    count_sq[sample_n, group_n] = found.n_cells
    names = tuple(_NAMES_JOINED_BY.join(map(str, values)) for values in group_q.itertuples(index=False))
    return SampleCounts(sample_s, names, group_q, count_sq)


def _numbered(values: pd.DataFrame) -> tuple[NDArray[np.integer], pd.DataFrame]:
    """Return the number of each row among the different rows, and these in order."""
    number_n = values.groupby(list(values.columns), sort=True).ngroup().to_numpy()
    return number_n, values.drop_duplicates().sort_values(list(values.columns)).reset_index(drop=True)


def _fractions(counts: SampleCounts, level: float) -> pd.DataFrame:
    """Return the share of each group in each sample."""
    n_samples, n_groups = counts.count_sq.shape
    sample_n, group_n = np.repeat(np.arange(n_samples), n_groups), np.tile(np.arange(n_groups), n_samples)
    n, total = counts.count_sq.ravel(), counts.count_sq.sum(axis=1)[sample_n]
    low, high = wilson_interval(n, total, level)
    parts = [
        counts.samples.loc[sample_n].reset_index(drop=True),
        counts.groups.loc[group_n].reset_index(drop=True),
        pd.DataFrame({"n": n, "total": total, "fraction": n / total, "low": low, "high": high}),
    ]
    table = pd.concat(parts, axis=1)
    table.insert(table.columns.get_loc("n"), "group", np.array(counts.names, dtype=object)[group_n])  # type: ignore[arg-type]
    return table


def wilson_interval(
    n: NDArray[np.int64], total: NDArray[np.int64], level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    z = special.ndtri((1 + level) / 2)
    share, width = n / total, z * np.sqrt(n * (1 - n / total) / total**2 + z**2 / (4 * total**2))
    middle, scale = share + z**2 / (2 * total), 1 + z**2 / total
    # Rounding can leave the ends of 0 and of all cells slightly outside of [0, 1].
    return np.where(n == 0, 0.0, (middle - width) / scale), np.where(n == total, 1.0, (middle + width) / scale)


def _compare(
    counts: SampleCounts, contrast: Contrast, samples: list[str], level: float
) -> tuple[pd.DataFrame, str, list[str]]:
    """Compare the log-odds of each group between the samples of both conditions."""
    condition_s = counts.samples[contrast.key].astype(str).to_numpy()
    used = [np.flatnonzero(condition_s == value) for value in (contrast.tested, contrast.reference)]
    replicates = [key for key in samples if key != contrast.key]
    identity_s = pd.MultiIndex.from_frame(counts.samples[replicates]) if replicates else pd.RangeIndex(len(condition_s))
    both = identity_s[used[0]].intersection(identity_s[used[1]])
    notes = []
    if len(both) >= 2:
        left_out = len(used[0]) + len(used[1]) - 2 * len(both)
        notes = [f"paired by {', '.join(replicates)}: {len(both)} samples occur in both conditions"]
        notes += [f"{left_out} samples that occur in one condition are left out"] if left_out else []
        used = [rows[identity_s[rows].get_indexer(both)] for rows in used]
    elif len(both):
        notes = [f"{len(both)} sample occurs in both conditions and is treated as two"]
    for rows, value in zip(used, (contrast.tested, contrast.reference), strict=True):
        if len(rows) < 2:
            raise ValueError(
                f"{contrast.key} == {value!r} has {len(rows)} samples of {', '.join(samples)}: a contrast between "
                "samples needs at least two a side"
            )
    count_q = sum(counts.count_sq[rows].sum(axis=0) for rows in used)
    seen_q = np.flatnonzero(count_q)
    odds = [log2_odds(counts.count_sq[rows])[:, seen_q] for rows in used]
    found = compare_odds(odds[0], odds[1], level, paired=len(both) >= 2)
    shares = [(counts.count_sq[rows] / counts.count_sq[rows].sum(axis=1, keepdims=True)).mean(axis=0) for rows in used]
    table = counts.groups.loc[seen_q].reset_index(drop=True)
    table["group"] = np.array(counts.names, dtype=object)[seen_q]
    table = table.assign(fraction1=shares[0][seen_q], fraction2=shares[1][seen_q], **found)
    table = table.assign(n_samples1=len(used[0]), n_samples2=len(used[1]))
    notes.append("shares add up to 1: a group that grows lowers all others, so look at the largest effects first")
    return (
        table.sort_values("pvalue", kind="stable").reset_index(drop=True),
        "paired" if len(both) >= 2 else "welch",
        notes,
    )


def log2_odds(count_sq: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log2 odds of a cell of each sample being in each group, with 0.5 added to both counts."""
    total_s = count_sq.sum(axis=1, keepdims=True)
    odds_sq: NDArray[np.float64] = np.log2((count_sq + 0.5) / (total_s - count_sq + 0.5))
    return odds_sq


def compare_odds(
    first_sq: NDArray[np.float64], second_sq: NDArray[np.float64], level: float, *, paired: bool
) -> dict[str, NDArray[np.float64]]:
    """Return effect, standard error, interval, p-value and false discovery rate of each group by a t-test."""
    from scipy.stats import false_discovery_control  # takes two seconds to import

    effect_q = first_sq.mean(axis=0) - second_sq.mean(axis=0)
    if paired:
        n = len(first_sq)
        variance_q = (first_sq - second_sq).var(axis=0, ddof=1) / n
        df_q = np.full(len(effect_q), n - 1.0)
    else:
        parts = [side.var(axis=0, ddof=1) / len(side) for side in (first_sq, second_sq)]
        variance_q = parts[0] + parts[1]
        spread_q = parts[0] ** 2 / (len(first_sq) - 1) + parts[1] ** 2 / (len(second_sq) - 1)
        df_q = np.divide(variance_q**2, spread_q, out=np.ones_like(variance_q), where=spread_q > 0)
    se_q = np.sqrt(variance_q)
    # Without any variance the test has no scale: the effect is then certain, or there is none.
    ratio_q = np.divide(effect_q, se_q, out=np.where(effect_q == 0, 0.0, np.inf), where=se_q > 0)
    pvalue_q = 2 * special.stdtr(df_q, -np.abs(ratio_q))
    half_q = special.stdtrit(df_q, (1 + level) / 2) * se_q
    return {
        "effect": effect_q,
        "se": se_q,
        "low": effect_q - half_q,
        "high": effect_q + half_q,
        "pvalue": pvalue_q,
        "fdr": false_discovery_control(pvalue_q),
    }
