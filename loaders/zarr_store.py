"""AnnData in Zarr v2 and v3, decompressed by the native threads of zarrs."""

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zarr

from .anndata_store import AnnDataStore


def open_zarr(path: Path, *, layer: str | None = None) -> AnnDataStore:
    """Open the AnnData in the Zarr folder `path`.

    Raises
    ------
    ValueError
        If it is no Zarr group or no AnnData, or a chunk of the counts is missing: Zarr itself would read zeros there.
    """
    root = open_root(path)

    def array(name: str) -> Any:
        # Where all codes of a chunk are 0 it is rightly absent.
        return native_array(root, name) if name.startswith("obs/") else complete_array(root, name)

    return AnnDataStore(root, array, uri=str(path), layer=layer)


def open_root(path: Path) -> zarr.Group:
    """Open the Zarr group in the folder `path` for reading.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        return zarr.open_group(path, mode="r")
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is a folder but no Zarr group ({error}): give the folder that anndata wrote") from error


def native_array(root: zarr.Group, name: str) -> Any:
    """Open the numeric array `name`, to be decompressed by native threads.

    Raises
    ------
    ValueError
        If it is no array.
    """
    # The pipeline is chosen when an array object is made and stays with it: nothing is changed for other users of zarr.
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Array is unsupported by ZarrsCodecPipeline")
        opened = root[name]
    if not isinstance(opened, zarr.Array):
        raise ValueError(f"{name} of {root.store_path} is a group where an array is needed: the store is damaged")  # noqa: TRY004
    return opened


def complete_array(root: zarr.Group, name: str) -> Any:
    """Open the numeric array `name`, of which no chunk may be missing.

    Raises
    ------
    ValueError
        If it is no array or lacks a chunk; the message names the first.
    """
    array = native_array(root, name)
    if array.nchunks_initialized >= array.nchunks:
        return array
    length = (array.shards or array.chunks)[0]
    for number in range(-(-array.shape[0] // length)):
        place = (number,) + (0,) * (array.ndim - 1)
        key = f"{array.path}/{array.metadata.encode_chunk_key(place)}"
        if not _exists(array.store, key):
            break
    low, high = number * length, min((number + 1) * length, array.shape[0]) - 1
    raise ValueError(
        f"{name} of {root.store_path} lacks {array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks, the first "
        f"is {key} (entries {low} to {high}): restore it from a copy or write the store again"
    )


def _exists(store: Any, key: str) -> bool:
    """Ask an async store from any context, also from a notebook whose event loop is running."""
    with ThreadPoolExecutor(1) as thread:
        return bool(thread.submit(lambda: asyncio.run(store.exists(key))).result())
