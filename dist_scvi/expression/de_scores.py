"""Differential expression from samples of two groups: probabilities, effect sizes and decisions.

Temporary arrays are no larger than a block of genes. Maths: scvi-tools 1.4.2, model/base/_differential.py
(Lopez et al. 2018, doi:10.1038/s41592-018-0229-2; Boyeau et al. 2019, doi:10.1101/794289).

Shape letters in this file
    g   genes
    s   samples of a group
    p   pairs, a sample of each group
    c   components of a mixture
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Change = Callable[[NDArray[Any], NDArray[Any], float], NDArray[Any]]
"""Returns the effect, shape (p, g), of two samples of that shape and the pseudocount."""
Domain = Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
"""Returns masks of increase and of decrease for effects of shape (p, g)."""
Columns = dict[str, NDArray[Any]]
"""Columns of the result, each of shape (g,)."""

_EPS = 1e-8
_LEAST_PSEUDOCOUNT, _LEAST_DELTA = 1e-10, 0.1
_BLOCK_VALUES = 1 << 22


@dataclass(frozen=True, slots=True)
class ChangeTest:
    """Options of the test for a change; names and defaults of scvi-tools."""

    delta: float | None = 0.25
    """Least effect; None estimates it from the effects of all genes."""
    pseudocounts: float | None = None
    """Added to the scales; None estimates it from the genes that are not expressed."""
    threshold_counts: float = 0.01
    """A gene whose mean count in a group is below this is not expressed there."""
    change_fn: Change | Literal["log-fold"] | None = None
    m1_domain_fn: Domain | None = None
    test_mode: Literal["two", "three"] = "three"
    """``"two"`` for one hypothesis of increase or decrease, ``"three"`` for separate hypotheses."""
    cred_interval_lvls: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.test_mode not in ("two", "three"):
            raise ValueError(f"test_mode={self.test_mode!r}: 'two' or 'three' is needed")
        if self.delta is not None and not 0 <= self.delta < np.inf:
            raise ValueError(f"delta={self.delta}: a number >= 0 is needed, or None to find one")
        if self.pseudocounts is not None and not 0 < self.pseudocounts < np.inf:
            raise ValueError(f"pseudocounts={self.pseudocounts}: a number > 0 is needed, or None to find one")
        for level in self.cred_interval_lvls:
            if not 0 <= level < 1:
                raise ValueError(f"cred_interval_lvls holds {level}: levels in [0, 1) are needed")
        if isinstance(self.change_fn, str) and self.change_fn != "log-fold":
            raise ValueError(f"change_fn={self.change_fn!r}: 'log-fold' or a function is needed")
        for name, function, n in (("change_fn", self.change_fn, 3), ("m1_domain_fn", self.m1_domain_fn, 1)):
            if callable(function) and not _takes(function, n):
                raise ValueError(f"{name} does not take {n} argument{'s' * (n > 1)}: see the docstring")

    @property
    def is_elementwise(self) -> bool:
        """Whether genes may be processed in blocks: a user's function may depend on all genes together."""
        return not callable(self.change_fn) and self.m1_domain_fn is None


@dataclass(frozen=True, slots=True)
class Pairs:
    """Samples of two groups, and the pairs of them that are compared."""

    first_sg: NDArray[np.float32]
    second_sg: NDArray[np.float32]
    first_p: NDArray[np.int64]
    """Sample of the first group in each pair."""
    second_p: NDArray[np.int64]

    def blocks(self, *, whole: bool = False) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Yield the two samples of every pair, each of shape (p, genes of a block); with `whole` in one block."""
        n_genes = self.first_sg.shape[1]
        width = n_genes if whole else max(1, _BLOCK_VALUES // len(self.first_p))
        for start in range(0, n_genes, width):
            genes = slice(start, start + width)
            yield self.first_sg[self.first_p, genes], self.second_sg[self.second_p, genes]


def pair_samples(
    first_batch_s: NDArray[np.int32],
    second_batch_s: NDArray[np.int32],
    *,
    within_batch: bool,
    n_pairs: int | None,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose the pairs of samples that are compared.

    Parameters
    ----------
    first_batch_s, second_batch_s
        Batch that each sample was decoded with.
    within_batch
        Pair only samples of one batch.
    n_pairs
        Random pairs, over all batches; None pairs the samples in order, up to the end of the shorter group.
    """
    parts = []
    batches = np.unique(first_batch_s).tolist() if within_batch else [None]
    for batch in batches:
        first = np.flatnonzero(first_batch_s == batch) if within_batch else np.arange(len(first_batch_s))
        second = np.flatnonzero(second_batch_s == batch) if within_batch else np.arange(len(second_batch_s))
        if n_pairs is None:
            n = min(len(first), len(second))
            parts.append((first[:n], second[:n]))
        else:
            n = max(1, n_pairs // len(batches))
            parts.append((rng.choice(first, n), rng.choice(second, n)))
    return np.concatenate([first for first, _ in parts]), np.concatenate([second for _, second in parts])


def vanilla_scores(pairs: Pairs) -> Columns:
    """Compare the hypotheses that the expression of a gene is higher in the first group, or is not."""
    higher_g = np.concatenate([np.mean(first > second, axis=0) for first, second in pairs.blocks()])
    lower_g = 1.0 - higher_g
    return {"proba_m1": higher_g, "proba_m2": lower_g, "bayes_factor": bayes_factor(higher_g, lower_g)} | _means(pairs)


def change_scores(pairs: Pairs, test: ChangeTest, pseudocounts: float) -> Columns:
    """Compare the hypotheses that a gene changes by more than delta, or does not, and describe its change.

    Parameters
    ----------
    pseudocounts
        The pseudocount, given or estimated by `pseudocount_offset`. As in scvi-tools, the columns that describe the
        change use a thousandth of it.

    Raises
    ------
    ValueError
        If a user's function returns an array of another shape than required.
    """
    whole = not test.is_elementwise
    delta = test.delta
    if delta is None:
        blocks = pairs.blocks(whole=whole)
        means = [_effect(test, *block, pseudocounts).mean(axis=0, dtype=np.float64) for block in blocks]
        delta = estimate_delta(np.concatenate(means))
    parts = []
    for first, second in pairs.blocks(whole=whole):
        part = _change_probabilities(_effect(test, first, second, pseudocounts), test, delta)
        described = describe(_effect(test, first, second, 1e-3 * pseudocounts), test.cred_interval_lvls)
        parts.append(part | {f"lfc_{name}": value for name, value in described.items()})
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    proba_g = found.pop("proba_de")
    tested = {
        "proba_de": proba_g,
        "proba_not_de": 1.0 - proba_g,
        "bayes_factor": bayes_factor(proba_g, 1.0 - proba_g),
    }
    chosen = {"pseudocounts": np.full(len(proba_g), pseudocounts), "delta": np.full(len(proba_g), delta)}
    return tested | _means(pairs) | chosen | found


def log_fold_change(
    first_pg: NDArray[np.float32], second_pg: NDArray[np.float32], pseudocounts: float
) -> NDArray[np.float64]:
    """Return log2 of the ratio of two scales, in double precision as scvi-tools with numpy 2."""
    change_pg: NDArray[np.float64] = np.log2(first_pg + np.float64(pseudocounts))
    change_pg -= np.log2(second_pg + np.float64(pseudocounts))
    return change_pg


def describe(effect_pg: NDArray[Any], levels: tuple[float, ...] = ()) -> Columns:
    """Return mean, median, standard deviation and extremes of each gene, and its narrowest interval at each level."""
    columns: Columns = {
        "mean": effect_pg.mean(axis=0, dtype=np.float64),
        "median": np.median(effect_pg, axis=0),
        "std": effect_pg.std(axis=0, dtype=np.float64),
        "min": effect_pg.min(axis=0),
        "max": effect_pg.max(axis=0),
    }
    sorted_pg = np.sort(effect_pg, axis=0) if levels else effect_pg
    for level in levels:
        name = f"confidence_interval_{str(level)[:5]}"
        columns[f"{name}_min"], columns[f"{name}_max"] = _narrowest_interval(sorted_pg, level)
    return columns


def pseudocount_offset(pairs: Pairs, silent_first_g: NDArray[np.bool_], silent_second_g: NDArray[np.bool_]) -> float:
    """Estimate a pseudocount that shrinks the changes of genes that are not expressed to zero.

    Parameters
    ----------
    silent_first_g, silent_second_g
        Genes that are not expressed in each group.

    Notes
    -----
    scvi-tools 1.4.2, estimate_pseudocounts_offset: the 0.9 quantile over silent genes of the largest sample of each,
    the larger one of the two groups, divided by the number of genes; at least 1e-10.
    """
    tops = [(first.max(axis=0), second.max(axis=0)) for first, second in pairs.blocks()]
    return offset_of_silent([*map(np.concatenate, zip(*tops, strict=True))], [silent_first_g, silent_second_g])


def offset_of_silent(tops: Sequence[NDArray[Any]], silent: Sequence[NDArray[np.bool_]]) -> float:
    """Estimate the pseudocount from the largest scale of each gene and the genes not expressed, in each group."""
    offsets = [_LEAST_PSEUDOCOUNT]
    for top_g, silent_g in zip(tops, silent, strict=True):
        if silent_g.any():
            offsets.append(float(np.quantile(top_g[silent_g], 0.9)) / len(silent_g))
    return max(offsets)


def estimate_delta(mean_g: NDArray[np.float64], coef: float = 0.6) -> float:
    """Estimate the least effect to count as a change from the mean effects of all genes.

    Notes
    -----
    scvi-tools 1.4.2, estimate_delta: `coef` times the mean distance from zero of the lowest and the highest of three
    normal components, at least 0.1. There the fit starts at random, so that with heavy tails the result differs from
    call to call; here it starts at quantiles.
    """
    mean_c = mixture_means(mean_g)
    return max(_LEAST_DELTA, coef * float(np.abs(mean_c[[0, -1]]).mean()))


def mixture_means(value_g: NDArray[np.float64], n_components: int = 3) -> NDArray[np.float64]:
    """Fit a mixture of normals to numbers and return its means, sorted.

    The fit starts at evenly spaced quantiles, so that two calls agree.

    Raises
    ------
    ValueError
        If there are fewer numbers than components, or a number is not finite.
    """
    if len(value_g) < n_components or not np.isfinite(value_g).all():
        raise ValueError(
            f"delta=None: there are effects of {len(value_g)} genes; at least {n_components} are needed, all finite: "
            "give delta as a number"
        )
    # Imported here: scikit-learn takes half a second to import, and most queries pass delta.
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    quantile_c1 = np.quantile(value_g, (np.arange(n_components) + 0.5) / n_components)[:, None]
    if quantile_c1[0, 0] == quantile_c1[-1, 0]:  # no clusters to separate
        return np.sort(quantile_c1[:, 0])
    sorted_g1 = np.sort(value_g)[:, None]  # the last bits of the fit depend on the order of its input
    begun = KMeans(n_components, init=quantile_c1, n_init=1, random_state=0).fit(sorted_g1).cluster_centers_
    mixture = GaussianMixture(n_components, means_init=begun, random_state=0).fit(sorted_g1)
    return np.sort(mixture.means_[:, 0])


def flag_by_fdr(proba_g: NDArray[np.float64], target: float) -> NDArray[np.bool_]:
    """Flag the most probable genes, as many as keep the expected share of false discoveries within `target`."""
    order = np.argsort(-proba_g, kind="stable")
    expected_g = np.cumsum(1.0 - proba_g[order]) / np.arange(1, len(proba_g) + 1)
    flag_g = np.zeros(len(proba_g), dtype=bool)
    flag_g[order[: np.count_nonzero(expected_g <= target)]] = True
    return flag_g


def _takes(function: Callable[..., Any], n_arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * n_arguments)
    except ValueError:  # many of numpy's functions have no signature
        return True
    except TypeError:
        return False
    return True


def _effect(test: ChangeTest, first_pg: NDArray[Any], second_pg: NDArray[Any], pseudocounts: float) -> NDArray[Any]:
    if test.change_fn is None or isinstance(test.change_fn, str):
        return log_fold_change(first_pg, second_pg, pseudocounts)
    effect_pg = np.asarray(test.change_fn(first_pg, second_pg, pseudocounts))
    if effect_pg.shape != first_pg.shape:
        raise ValueError(
            f"change_fn gives an array of shape {effect_pg.shape}: that of the samples, {first_pg.shape}, is needed"
        )
    return effect_pg


def _change_probabilities(effect_pg: NDArray[Any], test: ChangeTest, delta: float) -> Columns:
    if test.m1_domain_fn is None:
        plus_pg, minus_pg = effect_pg >= delta, effect_pg < -delta
    else:
        masks = [np.asarray(mask) for mask in test.m1_domain_fn(effect_pg)]
        if [mask.shape for mask in masks] != [effect_pg.shape] * 2:
            raise ValueError(
                f"m1_domain_fn gives shapes {[mask.shape for mask in masks]}: two masks of shape {effect_pg.shape} are "
                "needed, of increase and of decrease"
            )
        plus_pg, minus_pg = masks
    plus_g, minus_g = plus_pg.mean(axis=0), minus_pg.mean(axis=0)
    return {"proba_de": plus_g + minus_g if test.test_mode == "two" else np.maximum(plus_g, minus_g)}


def _narrowest_interval(sorted_pg: NDArray[Any], level: float) -> tuple[NDArray[Any], NDArray[Any]]:
    step = int(level * len(sorted_pg))
    at_g = (sorted_pg[step:] - sorted_pg[: len(sorted_pg) - step]).argmin(axis=0)
    gene_g = np.arange(sorted_pg.shape[1])
    return sorted_pg[at_g, gene_g], sorted_pg[at_g + step, gene_g]


def _means(pairs: Pairs) -> Columns:
    groups = {"scale1": pairs.first_sg, "scale2": pairs.second_sg}
    return {name: sample_sg.mean(axis=0, dtype=np.float64) for name, sample_sg in groups.items()}


def bayes_factor(proba_g: NDArray[np.float64], other_g: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the ratio of the probabilities of two hypotheses."""
    return np.log(proba_g + _EPS) - np.log(other_g + _EPS)
