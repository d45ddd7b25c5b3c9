"""What neighbours are searched of: cells of the atlas, points of the latent space, or new cells by their counts.

Shape letters in this file
    q   points
    d   latent dimensions
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.neighbors.search import Points
from dist_scvi.atlas.queries.new_cells import encode_new_cells, open_new_cells
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import CellSet, choose_cells
from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.data import CellData

_ENDINGS = (".h5ad", ".zarr", ".h5")


@dataclass(frozen=True, slots=True, eq=False)
class QueryPoints:
    """Points, and how to name them."""

    kind: str
    """``"cells"`` of the atlas, ``"latent"`` vectors, or ``"counts"``."""
    name_q: NDArray[np.object_]
    points: Points
    variance_q: NDArray[np.float32]
    """Variance of the posterior of each point, summed over dimensions; 0 for latent vectors."""
    notes: tuple[str, ...] = ()


def query_points(
    atlas: AtlasReader, query: Any, *, layer: str | None = None, min_overlap: float = 0.5, with_variance: bool = True
) -> QueryPoints:
    """Locate a query in the latent space.

    Raises
    ------
    ValueError
        If it is of no known kind, a cell or column does not exist, the latent vectors are not finite or have another
        number of dimensions, or the counts do not fit the model.
    """
    if is_counts(query):
        return _of_counts(atlas, query, layer, min_overlap)
    if isinstance(query, str | Mapping | CellSet):
        return _of_rows(atlas, choose_cells(atlas, query).rows(atlas), with_variance=with_variance)
    listed = query if hasattr(query, "dtype") else list(query) if isinstance(query, Iterable) else [query]
    if len(listed) and isinstance(listed[0], str):
        return _of_rows(atlas, atlas.rows_named([str(name) for name in listed]), with_variance=with_variance)
    values = np.asarray(listed)
    if values.dtype == bool or (values.ndim == 1 and np.issubdtype(values.dtype, np.integer)):
        from dist_scvi.inference.encode_decode import rows_asked

        row_m, order = rows_asked(values, atlas.n_cells)
        return _of_rows(atlas, row_m[order], with_variance=with_variance)
    return _of_vectors(atlas, values)


def is_counts(query: Any) -> bool:
    """Whether a query is new cells by their counts: a store, or its path or URL."""
    if isinstance(query, Path | CellStore | CellData) or hasattr(query, "obs_names"):
        return not hasattr(query, "read_latent")
    if not isinstance(query, str):
        return False
    return "://" in query or query.rstrip("/").endswith(_ENDINGS) or (os.path.sep in query and Path(query).exists())


def _of_rows(atlas: AtlasReader, row_q: NDArray[np.int64], *, with_variance: bool) -> QueryPoints:
    if not len(row_q):
        raise ValueError("query names no cell: at least one is needed")
    unique_m, order_q = np.unique(row_q, return_inverse=True)
    if with_variance:
        mean_md, variance_md = atlas.read_latent(unique_m)
        variance_q = variance_md.sum(axis=1)[order_q]
    else:
        mean_md, variance_q = atlas.read_mean(unique_m), np.zeros(len(row_q), np.float32)
    points = Points(mean_md[order_q], row_q)
    return QueryPoints("cells", atlas.obs_names(unique_m)[order_q], points, variance_q)


def _of_vectors(atlas: AtlasReader, values: NDArray[Any]) -> QueryPoints:
    n_latent = atlas.spec.model.n_latent
    if values.ndim == 1 and len(values) == n_latent:
        values = values[None]
    if not np.issubdtype(values.dtype, np.number) or values.ndim != 2 or values.shape[1] != n_latent or not len(values):
        raise ValueError(
            f"query has shape {values.shape} and type {values.dtype}: rows, names or a filter of cells, latent vectors "
            f"of shape (n, {n_latent}), or new cells (an AnnData or the path of a store) are needed"
        )
    finite_q = np.isfinite(values).all(axis=1)
    if not finite_q.all():
        raise ValueError(f"query has latent vectors that are not finite, first at index {int(np.argmin(finite_q))}")
    n = len(values)
    points = Points(np.ascontiguousarray(values, dtype=np.float32), np.full(n, -1, np.int64))
    return QueryPoints("latent", np.arange(n).astype(object), points, np.zeros(n, np.float32))


def _of_counts(atlas: AtlasReader, query: Any, layer: str | None, min_overlap: float) -> QueryPoints:
    cells = open_new_cells(query, atlas.spec, atlas.var, layer=layer, min_overlap=min_overlap)
    chunks = [(part.mean_nd, part.variance_nd.sum(axis=1)) for part in encode_new_cells(atlas.module, cells)]
    mean_qd, variance_q = (np.concatenate(column) for column in zip(*chunks, strict=True))
    points = Points(mean_qd, np.full(len(mean_qd), -1, np.int64))
    return QueryPoints("counts", cells.obs_names(), points, variance_q, (str(cells.overlap),))
