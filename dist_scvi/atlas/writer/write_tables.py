"""Last pass of minification: metadata, tables and model, and the manifest that makes the atlas complete.

Shape letters in this file
    n   cells
    c   neighbourhoods
    l   leaves
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from dist_scvi.atlas.store.manifest import ColumnInfo, LeafInfo, Manifest, NeighbourhoodInfo
from dist_scvi.atlas.store.names import (
    CELLS,
    LEAVES,
    LOG_VARIANCE_CODE,
    MODEL,
    N_CELLS,
    N_SKETCH,
    NEIGHBOURHOODS,
    QUANTILES,
    QZM,
    QZV,
)
from dist_scvi.atlas.writer.plan import LEAF_GENE_BYTES, N_QUANTILES, SKETCH_CELLS, AtlasPlan
from dist_scvi.atlas.writer.work import AtlasWork, Listed
from dist_scvi.atlas.writer.write_cells import RowOrder, cells_mark, own_columns, statistics_name
from dist_scvi.atlas.writer.write_leaves import COUNT_LAYERS, SCALE_LAYERS, leaf_sizes, leaves_mark, quantile_levels
from dist_scvi.atlas.writer.zarr_tree import ZarrTree
from dist_scvi.loaders.arrays.obs_columns import Categorical

_ANNDATA = {"encoding-type": "anndata", "encoding-version": "0.1.0"}


@dataclass(frozen=True, slots=True)
class Described:
    """Description of an atlas in its manifest, besides its files."""

    model: str
    source: dict[str, Any]
    lineage: dict[str, Any]
    dropped: dict[str, str]
    budget_bytes: int
    var: pd.DataFrame


def write_tables(plan: AtlasPlan, work: AtlasWork, order: RowOrder, described: Described) -> bytes:
    """Write the remaining files of the atlas, and return its manifest."""
    trees = (_cells(plan, described.var), _leaves(plan, order, described.var), _neighbourhoods(plan, work, order))
    listed: Listed = {}
    for number in range(-(-plan.n_cells // plan.chunk_rows)):
        listed |= work.done(cells_mark(number)) or {}
    for number in range(-(-plan.leaves.n_leaves // plan.leaf_rows)):
        listed |= work.done(leaves_mark(number)) or {}
    for tree in trees:
        for name, content in tree.files().items():
            listed |= work.write(name, content)
    listed |= work.write_model(MODEL, plan.module, plan.spec)
    arrays = {name: info for tree in trees for name, info in tree.arrays.items()}
    manifest = Manifest(
        n_cells=plan.n_cells,
        n_genes=plan.n_genes,
        n_latent=plan.spec.model.n_latent,
        arrays=arrays,
        obs={column.key: _column_info(column.source) for column in plan.kept},
        var=tuple(described.var.columns),
        dropped_obs=described.dropped,
        model=described.model,
        source=described.source,
        lineage=described.lineage,
        log_variance=order.log_variance,
        leaves=LeafInfo(
            columns=tuple(column.key for column in plan.leaves.columns),
            n_leaves=plan.leaves.n_leaves,
            budget_bytes=described.budget_bytes,
            bytes=plan.leaves.n_leaves * plan.n_genes * LEAF_GENE_BYTES,
            sketch_cells=SKETCH_CELLS,
            levels=tuple(quantile_levels().tolist()),
            counts=plan.has_counts,
        ),
        neighbourhoods=NeighbourhoodInfo(n=len(plan.centroids_ck), seed=plan.seed),
        bytes_per_cell=_bytes_per_cell(plan, listed),
        files=listed,
    )
    return manifest.to_bytes()


def _column_info(source: Any) -> ColumnInfo:
    if isinstance(source, Categorical):
        return ColumnInfo(kind="categorical", n_categories=len(source.vocabulary))
    return ColumnInfo(kind="numeric")


def _bytes_per_cell(plan: AtlasPlan, listed: Listed) -> dict[str, float]:
    """Log the bytes per cell: for queries, in obs, and of all arrays by cell."""
    own = sum(kind.itemsize for name, kind in own_columns(plan).items() if name != "leaf")
    n_latent = plan.spec.model.n_latent
    total = sum(size for name, (size, _) in listed.items() if name.startswith(f"{CELLS}/"))
    return {
        "query": float(3 * n_latent + own),
        "obs": float(sum(column.dtype.itemsize for column in plan.kept)),
        "total": round(total / plan.n_cells, 1),
    }


def _cells(plan: AtlasPlan, var: pd.DataFrame) -> ZarrTree:
    tree, n, k, rows = ZarrTree(CELLS, _ANNDATA), plan.n_cells, plan.spec.model.n_latent, plan.chunk_rows
    for part in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        tree.new_dict(part)
    tree.write_table("var", plan.spec.var_names, var)
    tree.new_array(f"obsm/{QZM}", (n, k), "<f2", rows)
    tree.new_array(f"obsm/{QZV}", (n, k), "<f2", rows)
    tree.new_array(f"obsm/{LOG_VARIANCE_CODE}", (n, k), "u1", rows)
    tree.root.create_group("obs")
    tree.new_texts("obs/_index", n, plan.name_rows)
    for name, kind in own_columns(plan).items():
        tree.new_array(f"obs/{name}", (n,), kind, rows)
    for column in plan.kept:
        if isinstance(column.source, Categorical):
            tree.new_categorical(f"obs/{column.key}", column.source.vocabulary, n, rows)
        else:
            tree.new_array(f"obs/{column.key}", (n,), column.dtype, rows)
    tree.finish_table("obs", [*(column.key for column in plan.kept), *own_columns(plan)])
    return tree


def _leaves(plan: AtlasPlan, order: RowOrder, var: pd.DataFrame) -> ZarrTree:
    tree, n_leaves, n_genes = ZarrTree(LEAVES, _ANNDATA), plan.leaves.n_leaves, plan.n_genes
    for part in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        tree.new_dict(part)
    tree.write_table("var", plan.spec.var_names, var)
    layers = (COUNT_LAYERS if plan.has_counts else {}) | SCALE_LAYERS
    for name, kind in layers.items():
        tree.new_array(name, (n_leaves, n_genes), kind, plan.leaf_rows)
    tree.new_array(QUANTILES, (n_leaves, n_genes, N_QUANTILES), "<f2", plan.leaf_rows)
    tree.root.create_group("obs")
    tree.write_texts("obs/_index", [str(leaf) for leaf in range(n_leaves)])
    codes_lc = plan.leaves.codes()
    for at, column in enumerate(plan.leaves.columns):
        tree.new_categorical(f"obs/{column.key}", column.vocabulary, n_leaves, n_leaves)
        codes: Any = tree.root[f"obs/{column.key}/codes"]
        codes[...] = codes_lc[:, at].astype(codes.dtype)
    size_l = leaf_sizes(plan, order)
    tree.write_array(f"obs/{N_CELLS}", size_l)
    tree.write_array(f"obs/{N_SKETCH}", np.minimum(size_l, SKETCH_CELLS).astype(np.int32))
    tree.finish_table("obs", [*(column.key for column in plan.leaves.columns), N_CELLS, N_SKETCH])
    return tree


def _neighbourhoods(plan: AtlasPlan, work: AtlasWork, order: RowOrder) -> ZarrTree:
    n, n_leaves = len(plan.centroids_ck), plan.leaves.n_leaves
    radius_c, pairs, cells = np.zeros(n, dtype="<f4"), [], []
    for number in range(-(-plan.n_cells // plan.chunk_rows)):
        with np.load(io.BytesIO(work.scratch.read(statistics_name(number))), allow_pickle=False) as found:
            radius_c[found["number_c"]] = found["radius_c"]
            pairs.append(found["pair"])
            cells.append(found["cells"])
    place_c, leaf_p = np.divmod(np.concatenate(pairs), n_leaves)
    counts_cl = sparse.coo_array((np.concatenate(cells), (place_c, leaf_p)), (n, n_leaves)).tocsr()
    tree = ZarrTree(NEIGHBOURHOODS)
    tree.write_array("centroid", plan.centroids_ck)
    tree.write_array("offset", order.offset_c)
    tree.write_array("radius", radius_c)
    tree.write_array("leaf_indptr", counts_cl.indptr.astype("<i8"))
    tree.write_array("leaf_index", counts_cl.indices.astype("<u4"))
    tree.write_array("leaf_cells", counts_cl.data.astype("<u4"))
    return tree
