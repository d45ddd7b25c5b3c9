"""Random values keyed by cell and gene: a value does not depend on which other cells are drawn with it.

Shape letters in this file
    n   cells
    g   genes
    e   entries of an array, flattened
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, ndtri, pdtr

from dist_scvi.loaders.order.keyed_hash import hash_rows

_CELL_KEY, _GENE_KEY = 104, 105
_NORMAL, _ACCEPT, _BOOST = 0, 1, 2
_BITS, _TINY = 52, 1e-30
_MOST_COUNTS = 1 << 27
"""Bound of a count; scvi-tools 1.4.2 bounds the rate of its Poisson by 1e8."""


@dataclass(frozen=True, slots=True, eq=False)
class EntryNoise:
    """Independent noise for each cell and gene.

    It is keyed by the index of a gene in the model, so that a choice of genes does not change their values.
    """

    seed: int
    row_n: NDArray[np.int64]
    gene_g: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        return len(self.row_n), len(self.gene_g)

    def uniform(self, *keys: int, at_e: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Draw uniformly from the open interval (0, 1): shape (n, g), or for the entries `at_e` of it alone."""
        cell_n, gene_g = hash_rows(self.row_n, self.seed, _CELL_KEY, *keys), hash_rows(self.gene_g, _GENE_KEY)
        cells, genes = (np.s_[:, None], np.s_[:]) if at_e is None else (at_e // len(gene_g), at_e % len(gene_g))
        # The keys are hashed once for each row and gene; an entry then needs one further hash only.
        bits = hash_rows((cell_n[cells] ^ gene_g[genes]).view(np.int64))
        return ((bits >> np.uint64(64 - _BITS)).astype(np.float64) + 0.5) / (1 << _BITS)

    def normal(self, *keys: int, at_e: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Draw standard normals; arguments as for `uniform`."""
        normal: NDArray[np.float64] = ndtri(self.uniform(*keys, at_e=at_e))
        return normal


def negative_binomial(
    uniform: NDArray[np.float64], mean: NDArray[np.float64], theta: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the counts of a negative binomial at the quantiles `uniform`; all arrays are of one shape."""
    share = theta / (theta + mean)

    def cdf(count_e: NDArray[np.int64], at_e: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(betainc(theta.flat[at_e], count_e + 1.0, share.flat[at_e]), dtype=np.float64)

    return _quantile(uniform, np.exp(-theta * np.log1p(mean / theta)), cdf)


def poisson(uniform: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the counts of a Poisson at the quantiles `uniform`; both arrays are of one shape."""

    def cdf(count_e: NDArray[np.int64], at_e: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(pdtr(count_e, mean.flat[at_e]), dtype=np.float64)

    return _quantile(uniform, np.exp(-mean), cdf)


def _quantile(
    uniform: NDArray[np.float64],
    zero: NDArray[np.float64],
    cdf: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]],
) -> NDArray[np.int64]:
    """Return the least counts at which `cdf` reaches `uniform`; `zero` is its value at 0.

    Most counts are 0 and need no search. The others are bracketed by doubling and found by bisection.
    """
    found = np.zeros(uniform.shape, dtype=np.int64)
    at_e = np.flatnonzero(uniform.ravel() > zero.ravel())
    wanted_e = uniform.flat[at_e]
    low_e, high_e = np.zeros_like(at_e), np.ones_like(at_e)  # not reached at low, reached at high
    below_e = np.arange(len(at_e))
    while len(below_e):
        below_e = below_e[cdf(high_e[below_e], at_e[below_e]) < wanted_e[below_e]]
        below_e = below_e[high_e[below_e] < _MOST_COUNTS]
        low_e[below_e] = high_e[below_e]
        high_e[below_e] *= 2
    apart_e = np.flatnonzero(high_e - low_e > 1)
    while len(apart_e):
        middle_e = (low_e[apart_e] + high_e[apart_e]) // 2
        reached_e = cdf(middle_e, at_e[apart_e]) >= wanted_e[apart_e]
        high_e[apart_e[reached_e]] = middle_e[reached_e]
        low_e[apart_e[~reached_e]] = middle_e[~reached_e]
        apart_e = apart_e[high_e[apart_e] - low_e[apart_e] > 1]
    found.flat[at_e] = high_e
    return found


def gamma(noise: EntryNoise, shape: NDArray[np.float64], *keys: int) -> NDArray[np.float64]:
    """Draw from gamma distributions of scale 1, shape (n, g).

    Notes
    -----
    Marsaglia and Tsang 2000, doi:10.1145/358407.358414; attempts are repeated until all entries are accepted.
    """
    shape_e = np.broadcast_to(shape, noise.shape).ravel()
    boosted_e = shape_e < 1  # the method needs a shape of at least 1: drawn at shape + 1 and scaled down below
    d_e = shape_e + boosted_e - 1 / 3
    drawn_e, open_e, attempt = np.empty(len(d_e)), np.arange(len(d_e)), 0
    while len(open_e):
        # Keyed by the attempt: a rejected entry does not shift the noise of the others.
        normal_e = noise.normal(*keys, attempt, _NORMAL, at_e=open_e)
        log_uniform_e = np.log(noise.uniform(*keys, attempt, _ACCEPT, at_e=open_e))
        cube_e = np.maximum(1 + normal_e / np.sqrt(9 * d_e[open_e]), _TINY) ** 3
        accepted_e = log_uniform_e < normal_e**2 / 2 + d_e[open_e] * (1 - cube_e + np.log(cube_e))
        drawn_e[open_e] = d_e[open_e] * cube_e
        open_e, attempt = open_e[~accepted_e], attempt + 1
    small_e = np.flatnonzero(boosted_e)
    drawn_e[small_e] *= noise.uniform(*keys, 0, _BOOST, at_e=small_e) ** (1 / shape_e[small_e])
    return drawn_e.reshape(noise.shape)
