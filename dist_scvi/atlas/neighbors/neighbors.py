"""The nearest cells of an atlas to its own cells, to points of the latent space, or to new cells.

Shape letters in this file
    q   points whose neighbours are searched
    k   neighbours of a point
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.neighbors.query_points import QueryPoints, is_counts, query_points
from dist_scvi.atlas.neighbors.search import Found, NeighborSearch, Points
from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.query_plan import READ_BYTES_PER_S, QueryPlan
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import Cells, CellSet, choose_cells

METRICS = ("euclidean", "posterior")
ENGINES = ("auto", "index", "exact")
MAX_ROWS = 1 << 25
"""Most rows of an answer."""
EXACT_POINTS = 256
"""Points for which "auto" is exact."""
_SAMPLE = 64
"""Points on which recall is measured."""
_RECALL = 0.995
"""Recall on the sample that the index has to reach; 0.99 is promised, and the sample has an error."""
_FEWEST, _TRIED = 4, 3


@dataclass(frozen=True, slots=True, eq=False)
class Neighbors:
    """The neighbours of some points, and how they were found."""

    found: Found
    engine: str
    recall: float
    note: str


def neighbors(
    atlas: AtlasReader,
    query: Any,
    k: int = 15,
    *,
    where: Cells = None,
    metric: Literal["euclidean", "posterior"] = "euclidean",
    engine: Literal["auto", "index", "exact"] = "auto",
    names: bool = True,
    layer: str | None = None,
    min_overlap: float = 0.5,
    seed: int = 0,
) -> Answer:
    """Find the nearest cells of the atlas, in the latent space.

    Distances are between means of posteriors, before the softmax of a logistic normal. A cell of the atlas is not its
    own neighbour.

    Parameters
    ----------
    query
        Cells of the atlas (rows, a mask, a list of names, a filter, or values of obs columns), latent vectors of shape
        (q, latent dimensions), or new cells: an AnnData, a store, or its path or URL.
    k
        Neighbours of each point.
    where
        Cells that may be neighbours; all by default.
    metric
        ``"euclidean"`` between the means, or ``"posterior"``: the root of the expected squared distance between a draw
        of the posterior of the point and one of the cell, which ranks uncertain cells lower.
    engine
        ``"exact"`` reads every neighbourhood of the latent space that may have a neighbour, by bounds. ``"index"``
        reads the nearest ones alone, as many as reach a recall of 0.995 on a sample of the points. ``"auto"`` is exact
        for at most 256 points.
    names
        Return the names of the cells; reading them takes most of the time of a large batch.
    layer, min_overlap
        For new cells, the layer of their raw counts and the least share of the genes of the model.
    seed
        Seed of the sample on which recall is measured.

    Returns
    -------
    Answer
        With columns `query`, `rank` from 1 on, `cell`, `row` of the atlas, and `distance`; ``parameters["recall"]``
        states the share of true neighbours.

    Raises
    ------
    ValueError
        If the query or `where` chooses no cell, `k` exceeds the cells, latent vectors are not finite, or the genes of
        new cells do not match.
    """
    cells = _checked(atlas, k, where, metric, engine)
    asked = query_points(atlas, query, layer=layer, min_overlap=min_overlap, with_variance=metric == "posterior")
    _check_size(asked, k, cells)
    search = NeighborSearch(atlas, cells, with_variance=metric == "posterior")
    result = find_neighbors(search, asked.points, k, engine=engine, seed=seed)
    square_qk = result.found.square_qk
    if metric == "posterior":
        square_qk = square_qk + asked.variance_q[:, None]
    table = _table(atlas, asked.name_q, result.found.row_qk, np.sqrt(square_qk), names=names)
    parameters = {
        "query": asked.kind,
        "k": k,
        "where": cells.text,
        "metric": metric,
        "recall": result.recall,
    }
    sizes = {"query": len(asked.points), "searched": cells.n_cells}
    notes = (result.note, *asked.notes)
    return Answer("neighbors", table, result.engine, "", sizes, atlas.uri, atlas.digest, seed, parameters, notes)


def find_neighbors(search: NeighborSearch, points: Points, k: int, *, engine: str, seed: int) -> Neighbors:
    """Search by the engine requested, and state the recall."""
    if engine == "exact" or (engine == "auto" and len(points) <= EXACT_POINTS):
        return Neighbors(search.find(points, k), "exact", 1.0, "exact: recall is 1")
    place = np.sort(np.random.default_rng(seed).permutation(len(points))[:_SAMPLE])
    sample = points.take(place)
    truth = search.find(sample, k)
    n_lists = _FEWEST
    while True:
        recall = _recall(search.find(sample, k, n_lists=n_lists), truth)
        if recall >= _RECALL:
            break
        if n_lists >= search.n_lists:
            return Neighbors(search.find(points, k), "exact", 1.0, "exact: recall is 1")
        n_lists *= 2
    note = f"recall {recall:.4f}, measured on {len(place)} of {len(points):,} points against the exact search"
    return Neighbors(search.find(points, k, n_lists=n_lists), "index", recall, note)


def plan_neighbors(atlas: AtlasReader, given: dict[str, Any]) -> QueryPlan:
    """Estimate the cost of `neighbors`, by searching the neighbours of a few cells of the atlas."""
    cells = _checked(atlas, given["k"], given["where"], given["metric"], given["engine"])
    n_points = _number(atlas, given)
    posterior = given["metric"] == "posterior"
    search = NeighborSearch(atlas, cells, with_variance=posterior)
    row_q = np.linspace(0, atlas.n_cells - 1, _TRIED).astype(np.int64)
    points = Points(atlas.read_mean(row_q), np.full(_TRIED, -1, np.int64))
    search.find(points, given["k"])  # compiles, and verifies the files
    began = time.perf_counter()
    search.find(points, given["k"])
    each = (time.perf_counter() - began) / _TRIED
    cell_bytes = (3 if posterior else 2) * atlas.spec.model.n_latent
    n_bytes = min(2 * atlas.n_cells, n_points * search.compared // (2 * _TRIED)) * cell_bytes
    seconds = each * n_points + n_bytes / READ_BYTES_PER_S
    exact = given["engine"] == "exact" or (given["engine"] == "auto" and n_points <= EXACT_POINTS)
    encoded = n_points if is_counts(given["query"]) else 0
    return QueryPlan("neighbors", "exact" if exact else "index", cells.n_cells, encoded, n_bytes, seconds)


def _checked(atlas: AtlasReader, k: int, where: Cells, metric: str, engine: str) -> CellSet:
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: {' or '.join(map(repr, METRICS))} is needed")
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r}: {', '.join(map(repr, ENGINES))} are there")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k={k!r}: a whole number from 1 on is needed")
    cells = choose_cells(atlas, where)
    if k > cells.n_cells:
        raise ValueError(f"k={k} neighbours are requested of {cells.n_cells:,} cells ({cells.text}): lower k")
    return cells


def _check_size(asked: QueryPoints, k: int, cells: CellSet) -> None:
    if asked.kind == "cells" and k >= cells.n_cells:
        raise ValueError(
            f"k={k} neighbours are requested of {cells.n_cells:,} cells ({cells.text}), less the cell itself: lower k"
        )
    if len(asked.points) * k > MAX_ROWS:
        raise ValueError(
            f"{len(asked.points):,} points x k={k} are {len(asked.points) * k:,} rows: at most {MAX_ROWS:,} are "
            "returned, ask in several calls"
        )


def _number(atlas: AtlasReader, given: dict[str, Any]) -> int:
    """Count the points of a query without encoding new cells."""
    if is_counts(given["query"]):
        from dist_scvi.atlas.queries.new_cells import open_new_cells

        options = {"layer": given["layer"], "min_overlap": given["min_overlap"]}
        return open_new_cells(given["query"], atlas.spec, atlas.var, **options).n_cells
    return len(query_points(atlas, given["query"], with_variance=False).points)


def _recall(found: Found, truth: Found) -> float:
    """Return the share of true neighbours that were found; a cell as near as the last true one counts."""
    near_qk = found.square_qk <= truth.square_qk[:, -1:]
    return float(near_qk.mean())


def _table(
    atlas: AtlasReader,
    name_q: NDArray[np.object_],
    row_qk: NDArray[np.int64],
    distance_qk: NDArray[np.float32],
    *,
    names: bool,
) -> pd.DataFrame:
    n, k = row_qk.shape
    columns: dict[str, Any] = {"query": np.repeat(name_q, k), "rank": np.tile(np.arange(1, k + 1), n)}
    row_n = row_qk.ravel()
    if names:
        unique_m, order_n = np.unique(row_n, return_inverse=True)
        columns["cell"] = atlas.obs_names(unique_m)[order_n]
    return pd.DataFrame({**columns, "row": row_n, "distance": distance_qk.ravel()})
