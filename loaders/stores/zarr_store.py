"""AnnData in Zarr v2 and v3, decompressed by the native threads of zarrs."""

import asyncio
import math
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ShardingCodec

from dist_scvi.loaders.arrays.chunked_array import ChunkedArray, decoder_of
from dist_scvi.loaders.arrays.obs_table import attribute
from dist_scvi.loaders.arrays.pack_manifest import pack_digest, read_manifest
from dist_scvi.loaders.arrays.remote import open_objects, storage_errors, zarr_store_of
from dist_scvi.loaders.stores.anndata_store import AnnDataStore


def open_zarr(
    where: str | Path, *, layer: str | None = None, storage_options: Mapping[str, str] | None = None
) -> AnnDataStore:
    """Open the AnnData in the Zarr folder, or below the URL, `where`.

    Raises
    ------
    ValueError
        If it is no Zarr group or no AnnData, or a chunk of the counts is missing: Zarr itself would read zeros there.
        Below a URL a chunk that is missing is noticed when it is read.
    """
    root = open_root(where, storage_options)
    objects = open_objects(where, storage_options=storage_options)
    one_gene = False

    def array(name: str) -> Any:
        # What is all 0 may have been left out: chunks of obs, and the genes where there is but one.
        opened: Any = root[name]
        lost_is_seen = not ((name.startswith("obs/") or one_gene) and opened.fill_value == 0)
        if lost_is_seen and not objects.remote:
            complete_array(root, name)
        decode = decoder_of(opened)
        if decode is None:  # zarrs takes no store with time limits of its own
            return opened if objects.remote else native_array(root, name)
        return ChunkedArray(opened, objects, decode, absent_is_fill=not lost_is_seen)

    version = partial(objects.version, "zarr.json" if root.metadata.zarr_format == 3 else ".zgroup")
    with storage_errors(where):
        one_gene = _n_genes(root) == 1
        manifest = read_manifest(root)
        shuffled = manifest is not None and manifest.seed is not None and manifest.group_by is None
        return AnnDataStore(
            root,
            array,
            uri=str(where),
            layer=layer,
            version=version,
            shuffled=shuffled,
            packed=None if manifest is None else partial(pack_digest, root),
        )


def open_root(where: str | Path, storage_options: Mapping[str, str] | None = None) -> zarr.Group:
    """Open the Zarr group in the folder, or below the URL, `where` for reading.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        with storage_errors(where):
            return zarr.open_group(zarr_store_of(where, storage_options), mode="r")
    except (FileNotFoundError, KeyError, ValueError, TypeError, AttributeError) as error:  # of metadata that is damaged
        raise ValueError(f"{where} is no Zarr group ({error}): give the folder that anndata wrote") from error


def _n_genes(root: zarr.Group) -> int:
    """Give the number of genes by the metadata, 0 if it does not tell."""
    names = attribute(root["var"], "_index") if "var" in root else None
    index = root["var"].get(names) if isinstance(names, str) else None  # type: ignore[union-attr]
    return int(index.shape[0]) if isinstance(index, zarr.Array) else 0


def native_array(root: zarr.Group, name: str) -> Any:
    """Open the numeric array `name`, to be decompressed by native threads.

    Raises
    ------
    ValueError
        If it is no array.
    """
    opened = root[name]
    if not isinstance(opened, zarr.Array):
        raise ValueError(f"{name} of {root.store_path} is a group where an array is needed: the store is damaged")  # noqa: TRY004
    if _has_crc32c(opened.metadata.codecs if opened.metadata.zarr_format == 3 else ()):
        return opened
    # The pipeline is chosen when an array object is made and stays with it: nothing is changed for other users of zarr.
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Array is unsupported by ZarrsCodecPipeline")
        return root[name]


def complete_array(root: zarr.Group, name: str) -> Any:
    """Open the numeric array `name`, of which no chunk may be missing.

    Raises
    ------
    ValueError
        If it is no array or lacks a chunk; the message names the first.
    """
    array = native_array(root, name)
    length = array.shards or array.chunks
    grid = tuple(-(-size // step) for size, step in zip(array.shape, length, strict=True))
    # Zarr counts the chunks of a shard one by one, also those behind the end of the array.
    chunks_per_file = math.prod(step // chunk for step, chunk in zip(length, array.chunks, strict=True))
    lacking = math.prod(grid) - array.nchunks_initialized // chunks_per_file
    if lacking <= 0:
        return array
    for place in np.ndindex(grid):
        key = f"{array.path}/{array.metadata.encode_chunk_key(place)}"
        if not _exists(array.store, key):
            break
    low, high = place[0] * length[0], min((place[0] + 1) * length[0], array.shape[0]) - 1
    hint = "; counts that are truly all 0 need zarr's setting array.write_empty_chunks" if array.ndim > 1 else ""
    raise ValueError(
        f"{name} of {root.store_path} lacks {lacking} of {math.prod(grid)} chunks, the first is {key} "
        f"(entries {low} to {high}): restore it from a copy or write the store again{hint}"
    )


def _has_crc32c(codecs: Iterable[object]) -> bool:
    """Find a checksum that zarrs 0.2.3 skips where it reads a part of a chunk; zarr itself checks it, more slowly."""
    return any(
        isinstance(codec, Crc32cCodec) or (isinstance(codec, ShardingCodec) and _has_crc32c(codec.codecs))
        for codec in codecs
    )


def _exists(store: Any, key: str) -> bool:
    """Ask an async store from any context, also from a notebook whose event loop is running."""
    with ThreadPoolExecutor(1) as thread:
        return bool(thread.submit(lambda: asyncio.run(store.exists(key))).result())
