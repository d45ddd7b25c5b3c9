"""An atlas, or some of its cells, in other formats: AnnData, h5ad, parquet, dask.

Shape letters in this file
    n   cells
    g   genes
    k   latent dimensions
"""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.atlas.store.atlas_store import AtlasStore
from dist_scvi.atlas.store.names import LIBRARY, QZM, QZV
from dist_scvi.inference.encode_decode import expression_query, normalized_expression
from dist_scvi.loaders.arrays.obs_columns import typed_categories
from dist_scvi.network.model_spec import Covariate
from dist_scvi.scvi_tools.minified_h5ad import LATENT_PREFIX, MINIFY_TYPE, WITHOUT_COUNTS

if TYPE_CHECKING:
    from anndata import AnnData

Rows = NDArray[np.int64] | None
_PART_CELLS = 4096
_PARQUET_CELLS = 1 << 16


def to_anndata(atlas: AtlasStore, genes: Sequence[str] | None = None, rows: Rows = None) -> "AnnData":
    """Return cells as an AnnData in memory, for scanpy.

    Parameters
    ----------
    genes
        Genes whose normalized expression, decoded at the mean of the posterior with each cell's own batch, is X; by
        any column of var. Without them X is empty.
    rows
        Rows of the atlas, in the order wanted; all by default.

    Returns
    -------
    AnnData
        With ``obsm['X_scVI']``, the names of scvi-tools for mean and variance of the posterior, and all columns of obs
        and var.
    """
    from anndata import AnnData

    chosen = [] if genes is None else [atlas.var_names[at] for at in atlas.gene_index(genes)]
    expression_ng = _expression(atlas, chosen, rows)
    mean_nk, variance_nk = atlas.read_latent(rows)
    obs, var = atlas.obs.to_pandas(rows=rows), atlas.var
    if genes is None:
        indptr = np.zeros(len(obs) + 1, dtype=np.int64)
        nothing = (np.zeros(0, np.float32), np.zeros(0, np.int64), indptr)
        empty = sparse.csr_matrix(nothing, shape=(len(obs), len(var)))
        found = AnnData(empty, obs=obs, var=var)
    else:
        found = AnnData(expression_ng, obs=obs, var=var.loc[chosen])
    found.obsm["X_scVI"] = mean_nk
    found.obsm[QZM], found.obsm[QZV] = mean_nk, variance_nk
    found.uns["atlas"] = {"uri": atlas.uri, "digest": atlas.digest}
    return found


def to_minified_anndata(atlas: AtlasStore, rows: Rows = None) -> "AnnData":
    """Return cells as scvi-tools 1.4.2 minifies them: no counts, and the posterior under its names.

    The covariates of the model have the type of the categories that it was trained with.
    """
    found, spec = to_anndata(atlas, None, rows), atlas.spec
    mean_nk, variance_nk = found.obsm[QZM], found.obsm[QZV]
    found.obsm.clear()
    prefix = LATENT_PREFIX[spec.model.model_name]
    found.obsm[f"{prefix}_latent_qzm"], found.obsm[f"{prefix}_latent_qzv"] = mean_nk, variance_nk
    for covariate in (spec.batch, spec.label, *spec.categorical_covariates):
        if covariate is not None and covariate.key in found.obs:
            found.obs[covariate.key] = _typed(found.obs[covariate.key], covariate)
    if spec.layer not in (None, "raw/X"):
        found.layers[spec.layer] = found.X
    found.obs[LIBRARY] = atlas.read_library(rows)
    found.uns = {MINIFY_TYPE: WITHOUT_COUNTS}
    return found


def _typed(column: "pd.Series[Any]", covariate: Covariate) -> "pd.Series[Any]":
    """Return a column whose categories have the type that the model was trained with; an atlas keeps them as text."""
    if covariate.dtype == "str" or not isinstance(column.dtype, pd.CategoricalDtype):
        return column
    return column.cat.rename_categories(typed_categories(list(column.cat.categories), covariate.dtype).tolist())


def to_dask(atlas: AtlasStore, chunk_cells: int = 1 << 16) -> dict[str, Any]:
    """Return lazy arrays of all cells: mean and variance of the posterior, total counts, and columns of obs.

    Nothing is read before it is computed, so that cells may be more than memory holds. A column of categories is its
    codes into ``atlas.obs.categorical(key).vocabulary``, -1 where the value is missing.
    """
    from dask import array
    from dask.delayed import delayed

    da: Any = array

    parts = list(atlas.chunks(chunk_cells))

    def lazy(read: Any, dtype: Any, *width: int) -> Any:
        blocks = [da.from_delayed(delayed(read)(part), (part.stop - part.start, *width), dtype=dtype) for part in parts]
        return da.concatenate(blocks)

    k = atlas.n_latent
    found = {
        QZM: lazy(lambda part: atlas.read_latent(part)[0], np.float32, k),
        QZV: lazy(lambda part: atlas.read_latent(part)[1], np.float32, k),
    }
    for key in atlas.obs.columns():
        numbers = atlas.obs.kind(key) == "numeric"
        dtype = atlas.obs.values(key, slice(0, 1)).dtype if numbers else np.int32
        read = atlas.obs.values if numbers else atlas.obs.codes
        found[key] = lazy(lambda part, read=read, key=key: read(key, part), dtype)
    return found


def write_h5ad(atlas: AtlasStore, out: Path, *, overwrite: bool = False) -> None:
    """Write all cells as an ``.h5ad`` file, as scvi-tools minifies them; all are in memory.

    Raises
    ------
    FileExistsError
        If `out` exists and may not be replaced.
    """
    with replacing(out, overwrite=overwrite) as partial:
        to_minified_anndata(atlas).write_h5ad(partial)


def write_parquet(atlas: AtlasStore, out: Path, *, overwrite: bool = False) -> None:
    """Write all cells as a parquet file, some at a time: name, obs, and latent means ``z0, z1, ...``.

    Raises
    ------
    FileExistsError
        If `out` exists and may not be replaced.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(out, overwrite=overwrite) as partial:
        writer: Any = None
        for rows in atlas.chunks(_PARQUET_CELLS):
            mean_nk, _ = atlas.read_latent(rows)
            latent = pd.DataFrame(mean_nk, columns=[f"z{k}" for k in range(atlas.n_latent)])
            obs = atlas.obs.to_pandas(rows=rows)
            frame = pd.concat([obs.rename_axis("cell").reset_index(), latent], axis=1)
            table = pa.Table.from_pandas(frame, preserve_index=False)
            writer = writer or pq.ParquetWriter(partial, table.schema)
            writer.write_table(table.cast(writer.schema))
        writer.close()


def _expression(atlas: AtlasStore, genes: list[str], rows: Rows) -> NDArray[np.float32]:
    query = expression_query(
        atlas.spec, gene_list=genes, transform_batch=None, library_size=1.0, n_samples=None, seed=0
    )
    n = atlas.n_cells if rows is None else len(rows)
    found_ng = np.empty((n, len(genes)), dtype=np.float32)
    for low in range(0, n, _PART_CELLS) if genes else ():
        high = min(low + _PART_CELLS, n)
        part = slice(low, high) if rows is None else rows[low:high]
        found_ng[low:high] = normalized_expression(atlas.module, atlas.read_cells(part), query)
    return found_ng


@contextmanager
def replacing(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary file alongside `out` and rename it when it is complete."""
    if out.exists() and (not overwrite or not out.is_file()):
        raise FileExistsError(f"{out} exists: give another path, or allow it to be replaced (--overwrite)")
    partial = out.with_name(f".partial-{secrets.token_hex(4)}-{out.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
