"""Latent representation, and posterior predictive counts, of single cells.

Shape letters in this file
    n   cells
    k   latent dimensions
    g   genes
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.group_expression import MAX_VALUES, batch_codes
from dist_scvi.atlas.queries.query_plan import READ_BYTES_PER_S, QueryPlan
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.sample import sample_cells
from dist_scvi.atlas.queries.where import Cells, CellSet, choose_cells
from dist_scvi.expression.predictive import predictive_counts
from dist_scvi.inference.encode_decode import Indices, LatentCells, rows_asked
from dist_scvi.loaders.order.keyed_hash import hash_rows

_BLOCK_CELLS = 256
"""Cells that are drawn together, in blocks of one shape; see `decode`."""
_READ_CELLS = 1 << 16
_BATCH_KEY = 107
_DRAW_S_PER_VALUE = 1.5e-6
_LARGEST_LIBRARY = 1e8


def latent(
    atlas: AtlasReader, where: Cells = None, *, indices: Indices | None = None, return_dist: bool = False
) -> Answer:
    """Return the mean of the posterior of each cell, and its variance if wanted.

    Parameters
    ----------
    where
        Cells: a filter, rows, a mask, or values of obs columns; all by default. They are returned by ascending row.
    indices
        Rows in the order wanted, or a mask, in place of `where`.
    return_dist
        Add the variances.

    Returns
    -------
    Answer
        A row for each cell with ``latent_0``, ... and, with `return_dist`, ``variance_0``, ...; before the softmax of a
        logistic normal.

    Raises
    ------
    ValueError
        If both `where` and `indices` are given, no cell is chosen, or more values than fit into an answer.
    """
    text, rows = chosen_rows(atlas, where, indices)
    n, k = atlas.n_cells if rows is None else len(rows), atlas.spec.model.n_latent
    _check_values(n, k * (1 + return_dist), "latent dimensions")
    if return_dist:
        mean_nk, variance_nk = atlas.read_latent(rows)
        values, names = np.concatenate([mean_nk, variance_nk], axis=1), ["latent", "variance"]
    else:
        values, names = atlas.read_mean(rows), ["latent"]
    columns = [f"{name}_{place}" for name in names for place in range(k)]
    table = pd.DataFrame(values, index=pd.Index(atlas.obs_names(rows), name="cell"), columns=columns)
    parameters = {"where": text, "return_dist": return_dist}
    return Answer("latent", table, "exact", "", {"all": n}, atlas.uri, atlas.digest, 0, parameters)


def sample(
    atlas: AtlasReader,
    n: int,
    *,
    where: Cells = None,
    genes: Sequence[str] | None = None,
    batch: str = "own",
    library_size: float | Literal["latent"] = "latent",
    seed: int = 0,
) -> Answer:
    """Draw counts of cells from the posterior predictive distribution.

    Cells are chosen at random without replacement; beyond the number of cells they are drawn again, with other noise.
    A draw is keyed by the seed and the cell, so that it does not depend on `n`, on the genes requested, or on memory.

    Parameters
    ----------
    n
        Cells to draw.
    where
        Cells to draw from: a filter, rows, a mask, or values of obs columns; all by default.
    genes
        Genes, by name or a column of `var`; all by default.
    batch
        Batch to decode with: ``"own"``, a name, or ``"average"``, which draws one of all batches for each cell.
    library_size
        Total count, or ``"latent"`` for that of each cell. A size factor for models that were trained with these.
    seed
        Seed of the choice of cells and of the draws.

    Returns
    -------
    Answer
        A row for each draw with the counts of the genes; the index is the name of the cell it is drawn of.

    Raises
    ------
    ValueError
        If a gene, batch or column does not exist, a number is out of range, or no cell is chosen.

    Notes
    -----
    ``posterior_predictive_sample`` of scvi-tools 1.4.2, model/base/_rnamixin.py, for chosen cells.
    """
    gene_g, cells = _checked_sample(atlas, n, where, genes, batch, library_size)
    row_n = sample_cells(atlas, cells, min(n, cells.n_cells), seed=seed)
    counts = np.zeros((n, len(gene_g)), np.float32 if atlas.spec.model.gene_likelihood == "normal" else np.int32)
    batches = batch_codes(atlas, batch)
    for start in range(0, n, len(row_n)):  # each further pass over the cells is another draw of each
        draw_seed = seed if not start else int(hash_rows(np.array([start // len(row_n)]), seed, _BATCH_KEY)[0] >> 1)
        for low, high, part in _blocks(atlas, row_n[: n - start]):
            decoded = _as_requested(atlas, part, batches, library_size, draw_seed)
            drawn = predictive_counts(atlas.module, decoded, gene_g, (None,), n_samples=1, seed=draw_seed)
            counts[start + low : start + high] = drawn[: high - low, :, 0]
    index = pd.Index(np.resize(atlas.obs_names(row_n), n), name="cell")
    names = [atlas.var_names[place] for place in gene_g] if genes is None else list(genes)
    table = pd.DataFrame(counts, index=index, columns=names)
    parameters = {"n": n, "where": cells.text, "library_size": library_size}
    sizes = {"drawn": n, "cells": cells.n_cells}
    return Answer("sample", table, "draws", batch, sizes, atlas.uri, atlas.digest, seed, parameters)


def chosen_rows(atlas: AtlasReader, where: Cells, indices: Indices | None) -> tuple[str, NDArray[np.int64] | None]:
    """Return a description of the cells, and their rows: None for all.

    Raises
    ------
    ValueError
        If both arguments are given, or no cell is chosen.
    """
    if indices is None:
        cells = choose_cells(atlas, where)
        return cells.text, None if cells.n_cells == atlas.n_cells else cells.rows(atlas)
    if where is not None:
        raise ValueError("where and indices are given: one of them is needed")
    unique_m, order_n = rows_asked(indices, atlas.n_cells)
    if not len(unique_m):
        raise ValueError("indices is empty: at least one cell is needed")
    return choose_cells(atlas, unique_m).text, unique_m[order_n]


def plan_latent(atlas: AtlasReader, given: dict[str, Any]) -> QueryPlan:
    """Estimate the cost of `latent`."""
    _, rows = chosen_rows(atlas, given["where"], given["indices"])
    n, k = atlas.n_cells if rows is None else len(rows), atlas.spec.model.n_latent
    _check_values(n, k * (1 + given["return_dist"]), "latent dimensions")
    n_bytes = n * k * (3 if given["return_dist"] else 2)
    return QueryPlan("latent", "exact", n, 0, n_bytes, n_bytes / READ_BYTES_PER_S)


def plan_sample(atlas: AtlasReader, given: dict[str, Any]) -> QueryPlan:
    """Estimate the cost of `sample`."""
    n = given["n"]
    asked = (n, given["where"], given["genes"], given["batch"], given["library_size"])
    gene_g, cells = _checked_sample(atlas, *asked)
    n_bytes = 6 * atlas.n_cells + n * (3 * atlas.spec.model.n_latent + 18)
    seconds = n_bytes / READ_BYTES_PER_S + n * len(gene_g) * _DRAW_S_PER_VALUE
    return QueryPlan("sample", "draws", cells.n_cells, n, n_bytes, seconds)


def _check_values(n: int, n_columns: int, what: str) -> None:
    if n * n_columns > MAX_VALUES:
        raise ValueError(
            f"{n:,} cells x {n_columns} {what} are {n * n_columns:,} values: at most {MAX_VALUES:,} are returned, "
            "choose fewer cells by where, or ask in several calls"
        )


def _checked_sample(
    atlas: AtlasReader,
    n: int,
    where: Cells,
    genes: Sequence[str] | None,
    batch: str,
    library_size: float | Literal["latent"],
) -> tuple[NDArray[np.int64], CellSet]:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n={n!r}: a whole number from 1 on is needed")
    if library_size != "latent" and not (
        isinstance(library_size, int | float) and math.isfinite(library_size) and 0 < library_size <= _LARGEST_LIBRARY
    ):
        raise ValueError(
            f"library_size={library_size!r}: a number above 0, at most {_LARGEST_LIBRARY:.0e}, or 'latent', is needed"
        )
    batch_codes(atlas, batch)
    if genes is not None and not len(genes):
        raise ValueError("genes is empty: name at least one")
    listed = [genes] if isinstance(genes, str) else genes
    gene_g = np.arange(len(atlas.var_names)) if listed is None else atlas.gene_index(listed)
    _check_values(n, len(gene_g), "genes")
    return gene_g, choose_cells(atlas, where)


def _blocks(atlas: AtlasReader, row_n: NDArray[np.int64]) -> Iterator[tuple[int, int, LatentCells]]:
    """Read cells in blocks of one shape, the last padded with its first cell."""
    for start in range(0, len(row_n), _READ_CELLS):
        # Many at a time: the rows are in random order, and each read would go through the whole atlas.
        unique_m, order_n = np.unique(row_n[start : start + _READ_CELLS], return_inverse=True)
        cells = atlas.read_cells(unique_m)
        for low in range(0, len(order_n), _BLOCK_CELLS):
            part_n = order_n[low : low + _BLOCK_CELLS]
            padded_n = np.concatenate([part_n, np.full(_BLOCK_CELLS - len(part_n), part_n[0])])
            yield start + low, start + low + len(part_n), cells.take(padded_n)


def _as_requested(
    atlas: AtlasReader,
    cells: LatentCells,
    batches: tuple[int | None, ...],
    library_size: float | Literal["latent"],
    seed: int,
) -> LatentCells:
    """Return the cells with the batch and the library size to draw them with."""
    if library_size != "latent":
        library_n = np.full_like(cells.library_n, library_size)
        cells = replace(cells, library_n=library_n, log_library_variance_n=None)
    if batches == (None,):
        return cells
    # A mean over batches would not be counts: each draw takes one batch.
    code_b = np.array(batches, dtype=np.int32)
    place_n = hash_rows(cells.row_n, seed, _BATCH_KEY) % np.uint64(len(code_b))
    return replace(cells, batch_n=code_b[place_n.astype(np.int64)])
