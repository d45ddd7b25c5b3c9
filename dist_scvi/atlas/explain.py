"""Estimate what a query would read and decode, and how long it would take, before it is run.

Shape letters in this file
    n   cells
    g   genes
"""

import inspect
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.annotation.annotate import annotate, plan_annotate
from dist_scvi.atlas.annotation.predict import plan_predict, predict
from dist_scvi.atlas.differential.differential_expression import differential_expression, sketch_obstacle
from dist_scvi.atlas.differential.markers import markers, markers_obstacle
from dist_scvi.atlas.differential.sides import choose_sides, correction_batches
from dist_scvi.atlas.neighbors.neighbors import neighbors, plan_neighbors
from dist_scvi.atlas.queries.cell_values import latent, plan_latent, plan_sample, sample
from dist_scvi.atlas.queries.counterfactual import changed_cells, counterfactual
from dist_scvi.atlas.queries.decode import BLOCK_CELLS, decode_mean, read_block
from dist_scvi.atlas.queries.group_expression import batch_codes, expression, leaves_obstacle, read_query
from dist_scvi.atlas.queries.groups import group_cells
from dist_scvi.atlas.queries.query_plan import READ_BYTES_PER_S, QueryPlan
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.sample import CANDIDATES_PER_CELL
from dist_scvi.atlas.queries.where import choose_cells

_SCAN_S_PER_CELL = 5e-8
"""Seconds to read the identity of a cell and hash it."""
_PAIR_S_PER_VALUE = 6e-8
"""Seconds to sort and compare a decoded value."""
_SKETCH_S_PER_VALUE = 4e-9
"""Seconds to merge a point of a sketch."""


def explain(atlas: AtlasReader, query: str, /, **arguments: Any) -> QueryPlan:
    """Estimate the cost of a query, and determine which engine answers it.

    Parameters
    ----------
    query
        Name of the method, such as ``"expression"``, ``"differential_expression"`` or ``"neighbors"``.
    arguments
        Those of the query.

    Raises
    ------
    ValueError
        If there is no such query or argument, or the query itself would be refused for its cells, genes or columns.
    """
    if query not in _QUERIES:
        raise ValueError(f"query={query!r}: one of {', '.join(map(repr, _QUERIES))} is needed")
    ask, plan = _QUERIES[query]
    try:
        bound = inspect.signature(ask).bind(atlas, **arguments)
    except TypeError as error:
        raise ValueError(f"{query}: {error}") from error
    bound.apply_defaults()
    return plan(atlas, bound.arguments)


def _of_expression(atlas: AtlasReader, given: dict[str, Any]) -> QueryPlan:
    query = read_query(atlas, given["genes"], given["batch"], given["library_size"], given["threshold"])
    cells, batches = choose_cells(atlas, given["where"]), batch_codes(atlas, given["batch"])
    groups = None if given["per_cell"] else group_cells(atlas, given["by"], cells)
    if groups is not None and given["engine"] != "exact" and leaves_obstacle(atlas, groups, query) is None:
        assert groups.group_l is not None
        n_bytes = 12 * int((groups.group_l >= 0).sum()) * len(atlas.var_names)
        return QueryPlan("expression", "leaves", cells.n_cells, 0, n_bytes, n_bytes / READ_BYTES_PER_S)
    n_bytes, decoded = cells.n_cells * _cell_bytes(atlas), cells.n_cells * len(batches)
    seconds = n_bytes / READ_BYTES_PER_S + cells.n_cells * _decode_s(atlas, query.gene_g, batches)
    return QueryPlan("expression", "exact", cells.n_cells, decoded, n_bytes, seconds)


def _of_difference(atlas: AtlasReader, given: dict[str, Any]) -> QueryPlan:
    name, group1, group2 = "differential_expression", given["group1"], given["group2"]
    if given["groupby"] is not None:
        group1, group2 = {given["groupby"]: group1}, None if group2 is None else {given["groupby"]: group2}
    sides = choose_sides(atlas, group1, group2, given["where"])
    n_cells, correct = sum(side.n_cells for side in sides), given["batch_correction"]
    obstacle = sketch_obstacle(atlas, sides, batch_correction=correct)
    if given["engine"] == "sketch" or (given["engine"] == "auto" and not obstacle):
        n_leaves = sum(0 if side.leaf_l is None else len(side.leaf_l) for side in sides)
        return _sketched(atlas, name, n_cells, n_leaves)
    n_batches = len(correction_batches(atlas, batch_correction=correct, seed=given["seed"]))
    exact = given["engine"] == "exact"
    decoded = n_cells * n_batches if exact else 2 * given["n_samples"]
    return _paired(atlas, name, n_cells, decoded, "exact" if exact else "pairs")


def _of_markers(atlas: AtlasReader, given: dict[str, Any]) -> QueryPlan:
    cells = choose_cells(atlas, given["where"])
    groups = group_cells(atlas, given["by"], cells)
    obstacle = markers_obstacle(atlas, groups, batch_correction=given["batch_correction"])
    if given["engine"] != "pairs" and not obstacle:
        assert cells.leaf_l is not None
        return _sketched(atlas, "markers", cells.n_cells, 2 * len(cells.leaf_l))
    return _paired(atlas, "markers", cells.n_cells, 2 * given["n_samples"] * len(groups.names), "pairs")


def _of_counterfactual(atlas: AtlasReader, given: dict[str, Any]) -> QueryPlan:
    query = read_query(atlas, given["genes"], "own", 1.0, None)
    cells = changed_cells(atlas, given["from_"], given["to"], given["key"], given["where"])[1]
    # After the change the normalizer is no longer the stored one: all genes are decoded once.
    decode_s = _decode_s(atlas, query.gene_g, (None,)) + _decode_s(atlas, query.gene_g, (0,))
    n_bytes = cells.n_cells * _cell_bytes(atlas)
    seconds = n_bytes / READ_BYTES_PER_S + cells.n_cells * decode_s
    return QueryPlan("counterfactual", "exact", cells.n_cells, 2 * cells.n_cells, n_bytes, seconds)


def _sketched(atlas: AtlasReader, query: str, n_cells: int, n_leaves: int) -> QueryPlan:
    n_values = n_leaves * len(atlas.var_names)
    n_bytes = n_values * (2 * 32 + 3 * 8 + 2 * 4)
    seconds = n_bytes / READ_BYTES_PER_S + 128 * n_values * _SKETCH_S_PER_VALUE
    return QueryPlan(query, "sketch", n_cells, 0, n_bytes, seconds)


def _paired(atlas: AtlasReader, query: str, n_cells: int, decoded: int, engine: str) -> QueryPlan:
    n_genes = len(atlas.var_names)
    n_bytes = 6 * atlas.n_cells + min(n_cells, decoded * CANDIDATES_PER_CELL) * _cell_bytes(atlas)
    seconds = n_bytes / READ_BYTES_PER_S + atlas.n_cells * _SCAN_S_PER_CELL
    seconds += decoded * (_decode_s(atlas, np.arange(n_genes), (0,)) + n_genes * _PAIR_S_PER_VALUE)
    return QueryPlan(query, engine, n_cells, decoded, n_bytes, seconds)


def _cell_bytes(atlas: AtlasReader) -> int:
    """Return the bytes that decoding reads per cell: mean, variance code, library, normalizer, row, leaf and batch."""
    return 3 * atlas.spec.model.n_latent + 18


def _decode_s(atlas: AtlasReader, gene_g: NDArray[np.int64], batches: tuple[int | None, ...]) -> float:
    """Measure the time to decode a cell, on a block of cells."""
    n = min(BLOCK_CELLS, atlas.n_cells)
    block = read_block(atlas, slice(0, n), np.zeros(n, dtype=np.int32))
    began = time.perf_counter()
    decode_mean(atlas, block, gene_g, batches[:1])
    return (time.perf_counter() - began) / n * len(batches)


_QUERIES: dict[str, tuple[Callable[..., Any], Callable[[AtlasReader, dict[str, Any]], QueryPlan]]] = {
    "expression": (expression, _of_expression),
    "differential_expression": (differential_expression, _of_difference),
    "markers": (markers, _of_markers),
    "counterfactual": (counterfactual, _of_counterfactual),
    "neighbors": (neighbors, plan_neighbors),
    "annotate": (annotate, plan_annotate),
    "predict": (predict, plan_predict),
    "latent": (latent, plan_latent),
    "sample": (sample, plan_sample),
}
"""Each query, and the function that estimates its cost from its arguments."""
