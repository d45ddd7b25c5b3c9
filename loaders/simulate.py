"""A synthetic atlas of raw counts: cell types, batches and donors, written block by block at any size.

Shape letters in this file
    n   cells of one block
    g   genes
    t   cell types
    b   batches
    d   donors
    e   counts above zero
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from dist_scvi.loaders.arrays.anndata_writer import AnnDataZarrWriter
from dist_scvi.loaders.arrays.csr_rows import CsrRows, concatenate

_BLOCK_CELLS = 4096
_DENSE_VALUES = 1 << 19
"""Cells x genes drawn at once: 2 MiB, which fit into the cache of a core."""
_LARGE = 6.0
"""Mean above which a count is drawn as a Poisson number."""
_STEPS = 64
"""Largest count that is found by a linear search; the few larger ones are found by bisection."""
_MARKERS = 20
_SIZES = ("n_cells", "n_genes", "n_types", "n_batches", "donors_per_batch", "n_processes")
_DONOR, _PROFILE, _BLOCK = 1, 2, 3
"""First words of the seeds, so that the random streams are different."""


@dataclass(frozen=True, slots=True)
class _Atlas:
    """Parameters of `simulate`."""

    n_cells: int
    n_genes: int
    n_types: int
    n_batches: int
    donors_per_batch: int
    median_library: float
    batch_effect: float
    seed: int

    @property
    def n_donors(self) -> int:
        return self.n_batches * self.donors_per_batch


@dataclass(frozen=True, slots=True)
class _Parameters:
    """Parameters of the distribution of the cells."""

    ratio_tbg: NDArray[np.float32]
    """Share of a gene in a cell's library, divided by the gene's inverse dispersion."""
    theta_g: NDArray[np.float32]
    """Inverse dispersion."""
    depth_d: NDArray[np.float32]
    """Log of the median library."""
    types_dt: NDArray[np.float64]
    """Cumulated shares of the cell types."""
    stop_d: NDArray[np.int64]
    """Last cell + 1 of each donor."""


@dataclass(frozen=True, slots=True)
class _Block:
    rows: CsrRows
    batch_n: NDArray[np.int32]
    type_n: NDArray[np.int32]
    donor_n: NDArray[np.int32]


def simulate(
    path: str | Path,
    *,
    n_cells: int,
    n_genes: int = 2000,
    n_types: int = 8,
    n_batches: int = 4,
    donors_per_batch: int = 3,
    median_library: float = 1000.0,
    batch_effect: float = 0.3,
    seed: int = 0,
    n_processes: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic atlas as AnnData in Zarr v3, with obs columns ``batch``, ``cell_type`` and ``donor``.

    Cells are sorted by donor, and so by batch, as in real atlases. The same arguments result in the same bytes, for any
    `n_processes`.

    Parameters
    ----------
    path
        Folder to write.
    n_types
        Cell types. Related types share part of their profile; each has its own marker genes.
    donors_per_batch
        Donors of each batch, which differ in cell type composition and depth.
    median_library
        Counts of a median cell.
    batch_effect
        Standard deviation of the log of the factor by which a batch multiplies a gene.
    n_processes
        Processes that draw the counts. They are spawned: a script needs its ``if __name__ == "__main__"``.
    progress
        Called with (cells done, `n_cells`) after every block.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If a number is below 1.
    FileExistsError
        If `path` exists and `overwrite` is false.

    Notes
    -----
    Counts are gamma-Poisson, that is negative binomial with mean library x share and inverse dispersion of the gene,
    the likelihood of scVI (Lopez et al., Nature Methods 2018).
    """
    atlas = _Atlas(n_cells, n_genes, n_types, n_batches, donors_per_batch, median_library, batch_effect, seed)
    for name, number in {**asdict(atlas), "n_processes": n_processes}.items():
        if name in _SIZES and number < 1:
            raise ValueError(f"{name} is {number}: at least 1 is needed")
    with AnnDataZarrWriter(
        path,
        var_names=_names("gene", n_genes, 4),
        categories={
            "batch": _names("batch", n_batches, 2),
            "cell_type": _names("type", n_types, 2),
            "donor": _names("donor", atlas.n_donors, 2),
        },
        overwrite=overwrite,
    ) as writer:
        for block in _blocks(atlas, n_processes):
            first = writer.n_cells + 1
            names = [f"cell{number:08d}" for number in range(first, first + block.rows.n_cells)]
            codes = {"batch": block.batch_n, "cell_type": block.type_n, "donor": block.donor_n}
            writer.append(block.rows, obs_names=names, obs=codes)
            if progress is not None:
                progress(writer.n_cells, n_cells)
    return writer.path


def _names(what: str, n: int, digits: int) -> list[str]:
    digits = max(digits, len(str(n)))
    return [f"{what}{number:0{digits}d}" for number in range(1, n + 1)]


def _blocks(atlas: _Atlas, n_processes: int) -> Iterator[_Block]:
    """Yield all blocks in order; with several processes a few are drawn ahead."""
    # At most two blocks for each process are pending, so that memory is bounded if writing is slower than drawing.
    numbers = iter(range(-(-atlas.n_cells // _BLOCK_CELLS)))
    if n_processes == 1:
        yield from (_draw_block(atlas, number) for number in numbers)
        return
    with ProcessPoolExecutor(n_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        coming: deque[Future[_Block]] = deque()
        coming.extend(pool.submit(_draw_block, atlas, number) for number in islice(numbers, 2 * n_processes))
        while coming:
            block = coming.popleft().result()
            coming.extend(pool.submit(_draw_block, atlas, number) for number in islice(numbers, 1))
            yield block


@lru_cache(maxsize=1)
def _parameters(atlas: _Atlas) -> _Parameters:
    rng = np.random.default_rng([_PROFILE, atlas.seed])
    log_tg = rng.normal(0, 2.0, atlas.n_genes) + _type_effects(atlas, rng)
    log_bg = rng.normal(0, atlas.batch_effect, (atlas.n_batches, atlas.n_genes))
    share_tbg = np.exp(log_tg[:, None, :] + log_bg[None, :, :])
    share_tbg /= share_tbg.sum(axis=2, keepdims=True)
    theta_g = np.exp(rng.normal(0.5, 0.7, atlas.n_genes))
    rng = np.random.default_rng([_DONOR, atlas.seed])
    depth_b = rng.normal(0, 0.3, atlas.n_batches)
    depth_d = np.log(atlas.median_library) + np.repeat(depth_b, atlas.donors_per_batch)
    depth_d += rng.normal(0, 0.1, atlas.n_donors)
    types_dt = np.cumsum(rng.dirichlet(np.full(atlas.n_types, 3.0), atlas.n_donors), axis=1)
    size_d = np.cumsum(rng.gamma(5.0, size=atlas.n_donors))
    stop_d = np.round(size_d / size_d[-1] * atlas.n_cells).astype(np.int64)
    return _Parameters(
        (share_tbg / theta_g).astype(np.float32),
        theta_g.astype(np.float32),
        depth_d.astype(np.float32),
        types_dt,
        stop_d,
    )


def _type_effects(atlas: _Atlas, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return log factors of the genes in each type: a binary tree of shared factors, and markers."""
    log_tg = np.zeros((atlas.n_types, atlas.n_genes))
    types = np.arange(atlas.n_types)
    for level in range((atlas.n_types - 1).bit_length()):
        effect = rng.normal(0, 0.8, (atlas.n_types, atlas.n_genes)) * (
            rng.random((atlas.n_types, atlas.n_genes)) < 0.15
        )
        log_tg += effect[types >> level]
    markers = min(_MARKERS, atlas.n_genes // atlas.n_types)
    own_tm = rng.permutation(atlas.n_genes)[: markers * atlas.n_types].reshape(atlas.n_types, markers)
    log_tg[types[:, None], own_tm] += 2.5
    return log_tg


def _draw_block(atlas: _Atlas, number: int) -> _Block:
    """Return the cells of block `number`, a function of the arguments only."""
    # The seed contains the number of the block, so that blocks do not depend on the process that draws them.
    drawn_from = _parameters(atlas)
    rng = np.random.Generator(np.random.SFC64([_BLOCK, atlas.seed, number]))
    first = number * _BLOCK_CELLS
    cell_n = np.arange(first, min(first + _BLOCK_CELLS, atlas.n_cells))
    donor_n = np.searchsorted(drawn_from.stop_d, cell_n, side="right").astype(np.int32)
    batch_n = donor_n // np.int32(atlas.donors_per_batch)
    below_nt = drawn_from.types_dt[donor_n] < rng.random((len(cell_n), 1))
    type_n = np.minimum(below_nt.sum(axis=1), atlas.n_types - 1).astype(np.int32)
    library_n = np.exp(drawn_from.depth_d[donor_n] + rng.normal(0, 0.4, len(cell_n))).astype(np.float32)
    step = max(1, _DENSE_VALUES // atlas.n_genes)
    parts = []
    for at in range(0, len(cell_n), step):
        here = slice(at, at + step)
        odds_ng = drawn_from.ratio_tbg[type_n[here], batch_n[here]]
        odds_ng *= library_n[here, None]
        parts.append(_draw_counts(odds_ng, drawn_from.theta_g, rng))
    return _Block(concatenate(parts), batch_n, type_n, donor_n)


def _draw_counts(odds_ng: NDArray[np.float32], theta_g: NDArray[np.float32], rng: np.random.Generator) -> CsrRows:
    """Draw negative binomial counts of mean ``odds_ng * theta_g``.

    One exponential number decides whether a count is zero, since P(0) = exp(-theta log(1 + odds)). Only counts above
    zero need the quantiles of the distribution. Counts of large mean are drawn by definition, from a gamma and a
    Poisson distribution.
    """
    n_cells, n_genes = odds_ng.shape
    wait_ng = rng.standard_exponential(odds_ng.shape, dtype=np.float32)
    place_e = np.flatnonzero((wait_ng < theta_g * np.log1p(odds_ng)) | (odds_ng > _LARGE / theta_g))
    odds_e = odds_ng.reshape(-1)[place_e].astype(np.float64)
    theta_e = theta_g[place_e % n_genes].astype(np.float64)
    tail_e = -np.expm1(-wait_ng.reshape(-1)[place_e].astype(np.float64))
    large = odds_e * theta_e > _LARGE
    counts_e = np.empty(len(place_e), dtype=np.uint32)
    counts_e[~large] = _quantiles(tail_e[~large], odds_e[~large], theta_e[~large])
    counts_e[large] = rng.poisson(rng.standard_gamma(theta_e[large]) * odds_e[large])
    place_e, counts_e = place_e[counts_e > 0], counts_e[counts_e > 0]
    indptr = np.searchsorted(place_e, np.arange(n_cells + 1) * n_genes).astype(np.int64)
    gene_type = np.uint16 if n_genes <= 1 << 16 else np.int32
    return CsrRows(counts_e, (place_e % n_genes).astype(gene_type), indptr)


def _quantiles(
    tail_e: NDArray[np.float64], odds_e: NDArray[np.float64], theta_e: NDArray[np.float64]
) -> NDArray[np.uint32]:
    """Return the smallest counts, at least 1, that are exceeded with a probability of at most `tail_e`."""
    counts_e = np.ones(len(tail_e), dtype=np.uint32)
    left = np.arange(len(tail_e))
    success_e = odds_e / (1 + odds_e)
    point_e = np.exp(-theta_e * np.log1p(odds_e))
    above_e = -np.expm1(-theta_e * np.log1p(odds_e))
    for count in range(1, _STEPS + 1):
        point_e = point_e * success_e * (theta_e + (count - 1)) / count
        above_e = above_e - point_e
        more = above_e > tail_e
        left, tail_e, point_e, above_e = left[more], tail_e[more], point_e[more], above_e[more]
        success_e, theta_e = success_e[more], theta_e[more]
        counts_e[left] = count + 1
    counts_e[left] = _bisect(tail_e, success_e, theta_e)
    return counts_e


def _bisect(
    tail_e: NDArray[np.float64], success_e: NDArray[np.float64], theta_e: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the smallest counts above `_STEPS` that are exceeded with a probability of at most `tail_e`."""
    low_e = np.full(len(tail_e), _STEPS)
    high_e = low_e * 2
    while (short := betainc(high_e + 1, theta_e, success_e) > tail_e).any():
        low_e[short] = high_e[short]
        high_e[short] *= 2
    while (open_e := high_e - low_e > 1).any():
        middle_e = (low_e + high_e) // 2
        above = betainc(middle_e + 1, theta_e, success_e) > tail_e
        low_e[above & open_e] = middle_e[above & open_e]
        high_e[~above & open_e] = middle_e[~above & open_e]
    return high_e
