"""AnnData in HDF5 (``.h5ad``), read contiguously."""

from functools import partial
from pathlib import Path
from typing import Any

import h5py

from dist_scvi.loaders.arrays.objects import LocalObjects
from dist_scvi.loaders.stores.anndata_store import AnnDataStore


def open_h5ad(path: Path, *, layer: str | None = None) -> AnnDataStore:
    """Open the ``.h5ad`` file `path`.

    Raises
    ------
    ValueError
        If it is no HDF5 file or no AnnData.
    """
    try:
        root: Any = h5py.File(path, mode="r")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be opened as HDF5 ({error}): an .h5ad file or a Zarr folder is needed"
        ) from error
    version = partial(LocalObjects(path.parent).version, path.name)
    return AnnDataStore(root, lambda name: root[name], uri=str(path), layer=layer, version=version)
