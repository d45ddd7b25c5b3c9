"""Open a store of any format: the one place that knows them all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.name_lookup import check_list
from dist_scvi.loaders.stores.annbatch_store import is_annbatch, open_annbatch
from dist_scvi.loaders.stores.collection import open_collection
from dist_scvi.loaders.stores.h5ad_store import open_h5ad
from dist_scvi.loaders.stores.memory_store import MemoryStore
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
) -> CellStore:
    """Open a store of raw counts, or several as one.

    Parameters
    ----------
    source
        A folder or URL (``s3://``, ``gs://``, ``http://``, ``https://``) with an AnnData in Zarr v2 or v3 or a
        collection of annbatch, an ``.h5ad`` file, the folder or URI of a TileDB-SOMA experiment, or an AnnData in
        memory. A list of these is one store, the cells of one below those of the other.
    layer
        Read ``layers/<layer>`` instead of ``X``; ``raw/X`` for the counts in ``raw``; of SOMA, the layer of ``X``.
    genes
        Keep these, in this order; each must be in at least one store, and counts as 0 in others.
    join
        Of several stores, the genes that all have, or that any has.
    source_key
        Of several stores, the name of an obs column that says which one a cell is from, or None for none.
    soma
        What is read of a TileDB-SOMA experiment; needed if it is remote.
    storage_options
        Of a URL, what obstore takes beside the environment: credentials, ``endpoint``, ``region``, ``skip_signature``.

    allow_fractional
        Read counts that are not whole, as of ambient correction or Smart-seq, as float32; they are refused otherwise.
        Those of an AnnData in memory are read in any case, with a warning.

    Raises
    ------
    FileNotFoundError
        If nothing lies there.
    ValueError
        If it is no AnnData, is empty, or its parts disagree.
    """
    check_list("genes", genes)
    several = isinstance(source, (list, tuple))
    sources: Any = source if several else [source]
    stores = [_open_one(one, layer, soma, storage_options) for one in sources]
    for store in stores if allow_fractional else ():
        store.fractional = True
    if not several and genes is None:
        return stores[0]
    return open_collection(stores, join=join, genes=genes, source_key=source_key if several else None)


def _open_one(source: Any, layer: str | None, soma: SomaOptions | None, options: Mapping[str, str] | None) -> CellStore:
    if hasattr(source, "obs_names"):
        return MemoryStore(source, layer=layer)
    if isinstance(source, (int, float, dict)) or source is None:
        raise ValueError(f"{source!r} is no store: a path, a URL or an AnnData is needed")
    remote = "://" in str(source)
    path = Path(source).expanduser()
    if not remote and not path.exists():
        raise FileNotFoundError(f"{path.resolve()} does not exist: a Zarr folder or an .h5ad file is needed (data.uri)")
    where = str(source) if remote else path.resolve()
    if soma is not None and not remote and not is_soma(path):
        raise ValueError(
            f"{where} is no TileDB-SOMA experiment: leave out data.soma (--soma-measurement, --soma-filter)"
        )
    if soma is not None or (not remote and is_soma(path)):
        return open_soma(str(where), layer=layer, options=soma or SomaOptions())
    if remote and str(where).endswith((".h5ad", ".h5")):
        raise ValueError(f"{where} is HDF5, which is not read over a network: copy it, or write it as Zarr")
    try:
        if isinstance(where, Path) and where.is_file():
            return open_h5ad(where, layer=layer)
        if isinstance(where, Path) and is_annbatch(where):
            return open_annbatch(where, layer=layer)
        return open_zarr(where, layer=layer, storage_options=options)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where} is no whole AnnData, a part of it is missing ({error}): write the store again from its source"
        ) from error


def read_names(path: Path) -> list[str]:
    """Read the names that stand in a file, one in a line."""
    return [name for name in map(str.strip, path.read_text().splitlines()) if name]
