"""Open a store of any format; the only module that imports all formats."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.name_lookup import check_list
from dist_scvi.loaders.stores.annbatch_store import is_annbatch, open_annbatch
from dist_scvi.loaders.stores.collection import open_collection
from dist_scvi.loaders.stores.h5ad_store import open_h5ad
from dist_scvi.loaders.stores.memory_store import FrameTable, MemoryStore
from dist_scvi.loaders.stores.soma_store import SomaOptions, is_soma, open_soma
from dist_scvi.loaders.stores.zarr_store import open_zarr

if TYPE_CHECKING:
    from anndata import AnnData


def open_store(
    source: "str | Path | AnnData | Sequence[str | Path | AnnData]",
    *,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    join: Literal["inner", "outer"] = "inner",
    source_key: str | None = "source",
    soma: SomaOptions | None = None,
    storage_options: Mapping[str, str] | None = None,
    allow_fractional: bool = False,
    skip_missing: bool = False,
) -> CellStore:
    """Open a store of raw counts, or several as one.

    Parameters
    ----------
    source
        A folder or URL (``s3://``, ``gs://``, ``http://``, ``https://``) with an AnnData in Zarr v2 or v3 or a
        collection of annbatch, an ``.h5ad`` file, the folder or URI of a TileDB-SOMA experiment, or an AnnData in
        memory. A list of these is opened as one store, with their cells in this order.
    layer
        Read ``layers/<layer>`` instead of ``X``; ``raw/X`` for the counts in ``raw``; for SOMA, the layer of ``X``.
    genes
        Genes to keep, in this order; each has to be in at least one store, and is 0 in stores without it.
    join
        For several stores, the genes that all have, or that any has.
    source_key
        For several stores, the name of an obs column with the store of each cell, or None for no such column.
    soma
        Options for a TileDB-SOMA experiment; required if it is remote.
    storage_options
        For a URL, options of obstore in addition to the environment: credentials, ``endpoint``, ``region``,
        ``skip_signature``.
    allow_fractional
        Read counts that are not whole, as from ambient correction or Smart-seq, as float32; otherwise they are refused.
        For an AnnData in memory they are always accepted, with a warning.
    skip_missing
        Leave out `genes` that are in no store, with a log message; otherwise they are refused.

    Raises
    ------
    FileNotFoundError
        If `source` does not exist.
    ValueError
        If it is not an AnnData, is empty, or its parts are inconsistent.
    """
    check_list("genes", genes)
    several = isinstance(source, (list, tuple))
    sources: Any = source if several else [source]
    stores = [_open_one(one, layer, soma, storage_options) for one in sources]
    for store in stores if allow_fractional else ():
        store.fractional = True
    if not several and genes is None:
        return stores[0]
    key = source_key if several else None
    return open_collection(stores, join=join, genes=genes, source_key=key, skip_missing=skip_missing)


def _open_one(source: Any, layer: str | None, soma: SomaOptions | None, options: Mapping[str, str] | None) -> CellStore:
    if hasattr(source, "obs_names"):
        return _open_object(source, layer)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(  # noqa: TRY004
            f"an object of type {type(source).__name__} is no store: a path, a URL or an AnnData is needed"
        )
    remote = "://" in str(source)
    path = Path(source).expanduser()
    if not remote and not path.exists():
        raise FileNotFoundError(f"{path.resolve()} does not exist: a Zarr folder or an .h5ad file is needed (data.uri)")
    where = str(source) if remote else path.resolve()
    if not remote and not (path.is_dir() or path.is_file()):
        raise ValueError(f"{where} is a named pipe, a socket or a device: a Zarr folder or an .h5ad file is needed")
    if soma is not None and not remote and not is_soma(path):
        raise ValueError(
            f"{where} is no TileDB-SOMA experiment: leave out data.soma (--soma-measurement, --soma-filter)"
        )
    if soma is not None or (not remote and is_soma(path)):
        return open_soma(str(where), layer=layer, options=soma or SomaOptions())
    if remote and str(where).endswith((".h5ad", ".h5")):
        raise ValueError(f"{where} is HDF5, which is not read over a network: copy it, or write it as Zarr")
    if isinstance(where, Path) and where.is_file():
        return open_h5ad(where, layer=layer)
    if isinstance(where, Path) and is_annbatch(where):
        return open_annbatch(where, layer=layer)
    return open_zarr(where, layer=layer, storage_options=options)


def _open_object(adata: Any, layer: str | None) -> CellStore:
    """Open an AnnData object; the counts of a backed one are read from its file when they are needed."""
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        raise ValueError(  # noqa: TRY004
            f"an object of type {type(adata).__name__} is no store: give the paths of its files, or an AnnData"
        )
    if not adata.isbacked:
        return MemoryStore(adata, layer=layer)
    if adata.is_view:
        raise ValueError(
            f"the AnnData is a view of some cells of {adata.filename}, which is not in memory: load it with "
            "adata.to_memory(), or give the whole AnnData"
        )
    genes = adata.raw.var_names if layer == "raw/X" and adata.raw is not None else adata.var_names
    return open_h5ad(Path(adata.filename).resolve(), layer=layer, obs=FrameTable(adata.obs), var_names=list(genes))


def read_names(path: Path) -> list[str]:
    """Return the names in a text file with one name per line."""
    return [name for name in map(str.strip, path.read_text().splitlines()) if name]
