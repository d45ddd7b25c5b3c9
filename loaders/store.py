"""What a store of cells is, and how one is opened."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .columns import Categorical, Numeric, Ranges
from .rows import CsrRows, GeneChoice

if TYPE_CHECKING:
    from anndata import AnnData

    from .soma_store import SomaOptions


@runtime_checkable
class CellStore(Protocol):
    """Raw counts and obs of many cells, read by row range.

    A store is opened once per process and never loaded. It refuses what it cannot read rightly: see `read`.
    """

    uri: str
    """Where it lies, for messages and records."""
    n_cells: int
    n_entries: int
    """Stored entries of the whole count matrix."""
    var_names: NDArray[np.object_]
    """Gene names, shape (g,), unique."""
    chunk_cells: int
    """Rows that are decompressed together: a read of fewer costs as much."""
    shuffled: bool
    """Whether the rows lie in a random order, as those of a packed store do."""
    layer: str | None
    """Name of the layer that is read, None for ``X``."""

    def read(self, start: int, stop: int) -> CsrRows:
        """Read the counts of rows ``[start, stop)``.

        Raises
        ------
        ValueError
            If the rows are damaged or are not raw counts; the message names store, array, row, and what to do.
        """
        ...

    def read_ranges(
        self, ranges: Ranges, order: NDArray[np.int64] | None = None, choice: GeneChoice | None = None
    ) -> CsrRows:
        """Read the rows of each range ``[start, stop)``; ranges rise and do not overlap.

        A store that can reads them side by side and straight to their places, so this is the way to read a window.

        Parameters
        ----------
        order
            Which of the rows of all ranges, joined, to give, in this order; a row may be given several times. None for
            all as they are.
        choice
            Genes to keep; None for all. What is wrong with the others may go unseen.
        """
        ...

    def obs_columns(self) -> list[str]:
        """Names of the obs columns."""
        ...

    def categorical(self, key: str) -> Categorical:
        """Open an obs column as categories; numbers and booleans are taken by their names."""
        ...

    def numeric(self, key: str) -> Numeric:
        """Open an obs column as numbers."""
        ...

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names of the cells ``[start, stop)``."""
        ...

    def layers(self) -> list[str]:
        """Names of the layers, of which one can be read instead of ``X``."""
        ...

    def close(self) -> None:
        """Let go of open files."""
        ...


def open_store(
    source: "str | Path | AnnData | Sequence[str | Path | AnnData]",
    *,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    join: Literal["inner", "outer"] = "inner",
    source_key: str | None = "source",
    soma: "SomaOptions | None" = None,
    storage_options: Mapping[str, str] | None = None,
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

    Raises
    ------
    FileNotFoundError
        If nothing lies there.
    ValueError
        If it is no AnnData, is empty, or its parts disagree.
    """
    from .collection import open_collection

    if isinstance(genes, str):
        raise ValueError(f"genes={genes!r} is one text: a list of names is needed")  # noqa: TRY004
    several = isinstance(source, (list, tuple))
    sources: Any = source if several else [source]
    stores = [_open_one(one, layer, soma, storage_options) for one in sources]
    if not several and genes is None:
        return stores[0]
    return open_collection(stores, join=join, genes=genes, source_key=source_key if several else None)


def _open_one(
    source: Any, layer: str | None, soma: "SomaOptions | None", options: Mapping[str, str] | None
) -> CellStore:
    from .annbatch_store import is_annbatch, open_annbatch
    from .h5ad_store import open_h5ad
    from .memory_store import MemoryStore
    from .soma_store import SomaOptions, is_soma, open_soma
    from .zarr_store import open_zarr

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


def check_var_names(names: Any, where: str) -> NDArray[np.object_]:
    """Return gene names as an array of strings.

    Raises
    ------
    ValueError
        If two genes share a name.
    """
    var_names = np.asarray([str(name) for name in names], dtype=object)
    unique, count = np.unique(var_names, return_counts=True)
    if len(unique) < len(var_names):
        twice = ", ".join(unique[count > 1][:3])
        raise ValueError(
            f"{where} has {len(var_names) - len(unique)} duplicated gene names ({twice}): genes are told apart by "
            "name, call adata.var_names_make_unique() and save again"
        )
    return var_names


def check_not_empty(n_cells: int, n_genes: int, where: str) -> None:
    """Refuse a matrix without cells or genes.

    Raises
    ------
    ValueError
        If there is nothing to train on.
    """
    if n_cells == 0 or n_genes == 0:
        raise ValueError(
            f"{where} is empty ({n_cells} cells x {n_genes} genes): at least one cell and one gene are needed"
        )
