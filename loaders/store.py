"""What a store of cells is, and how one is opened."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .columns import Categorical, Numeric
from .rows import CsrRows

if TYPE_CHECKING:
    from anndata import AnnData


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

    def read(self, start: int, stop: int) -> CsrRows:
        """Read the counts of rows ``[start, stop)``.

        Raises
        ------
        ValueError
            If the rows are damaged or are not raw counts; the message names store, array, row, and what to do.
        """
        ...

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> CsrRows:
        """Read the rows of each range ``[start, stop)``, one below the other; ranges rise and do not overlap.

        A store that can reads them side by side, so this is the way to read a window.
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


def open_store(source: "str | Path | AnnData", *, layer: str | None = None) -> CellStore:
    """Open a store of raw counts.

    Parameters
    ----------
    source
        A folder with an AnnData in Zarr v2 or v3, an ``.h5ad`` file, or an AnnData in memory.
    layer
        Read ``layers/<layer>`` instead of ``X``.

    Raises
    ------
    FileNotFoundError
        If nothing lies there.
    ValueError
        If it is no AnnData, is empty, or its parts disagree.
    """
    if not isinstance(source, (str, Path)):
        from .memory_store import MemoryStore

        return MemoryStore(source, layer=layer)
    if "://" in str(source):
        raise ValueError(f"{source} is remote: stores are read from local disks, copy it and give the path")
    path = Path(source).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: a Zarr folder or an .h5ad file is needed (data.uri)")
    from .h5ad_store import open_h5ad
    from .zarr_store import open_zarr

    try:
        return open_zarr(path, layer=layer) if path.is_dir() else open_h5ad(path, layer=layer)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no whole AnnData, a part of it is missing ({error}): write the store again from its source"
        ) from error


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
