"""AnnData in Zarr v2 and v3, decompressed in native threads."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import zarr

from dist_scvi.loaders.arrays.anndata_tree import index_path
from dist_scvi.loaders.arrays.chunked_array import ChunkedArray, decoder_of
from dist_scvi.loaders.arrays.pack_manifest import pack_digest, read_manifest
from dist_scvi.loaders.arrays.remote import open_objects, storage_errors
from dist_scvi.loaders.arrays.zarr_access import (
    absent_chunks,
    open_node,
    open_zarr_group,
    reading_metadata,
    uri_of,
    with_native_codecs,
)
from dist_scvi.loaders.stores.anndata_store import AnnDataStore

_TABLES = ("obs/", "var/", "raw/var/")
_LARGEST_CHUNK = 1 << 31
"""Most bytes of a chunk: codecs do not support more, and zarr would allocate any size that a damaged shape claims."""


def open_zarr(
    where: str | Path, *, layer: str | None = None, storage_options: Mapping[str, str] | None = None
) -> AnnDataStore:
    """Open the AnnData in the Zarr folder, or below the URL, `where`.

    Raises
    ------
    ValueError
        If it is not a Zarr group or not an AnnData, or a chunk is missing whose values cannot all be 0. Below a URL a
        missing chunk is detected only when it is read.
    """
    root = open_root(where, storage_options)
    tree = ZarrTree(root, str(where))
    objects = open_objects(where, storage_options=storage_options)
    with storage_errors(where):
        one_gene = _has_one_gene(tree)

        def open_array(path: str) -> Any:
            array = open_array_of(root, path)
            absent_is_fill = may_be_left_out(array, path, one_gene=one_gene)
            # Not for a URL: the check lists all objects of the array.
            if not objects.remote:
                tree.check_chunks(array, absent_is_fill=absent_is_fill)
            decode = decoder_of(array)
            if decode is None:
                return with_native_codecs(root, array)
            return ChunkedArray(array, objects, decode, absent_is_fill=absent_is_fill)

        version = partial(objects.version, "zarr.json" if root.metadata.zarr_format == 3 else ".zgroup")
        manifest = read_manifest(root)
        shuffled = manifest is not None and manifest.seed is not None and manifest.group_by is None
        packed = None if manifest is None else partial(pack_digest, root)
        return AnnDataStore(tree, open_array, layer=layer, version=version, shuffled=shuffled, packed=packed)


def open_root(where: str | Path, storage_options: Mapping[str, str] | None = None) -> zarr.Group:
    """Open the Zarr group in the folder, or below the URL, `where` for reading.

    Raises
    ------
    ValueError
        If there is none, or its metadata are damaged.
    """
    root = open_zarr_group(where, storage_options)
    if root is None:
        raise ValueError(f"{where} is no Zarr group: the folder that anndata wrote is needed")
    return root


class ZarrTree:
    """The groups and arrays of a Zarr group; see `anndata_tree.Tree`."""

    def __init__(self, root: zarr.Group, uri: str) -> None:
        self.uri, self.root = uri, root
        self.lacking: dict[str, str] = {}
        """Arrays of which some chunks are not stored, with a description."""

    def kind(self, path: str) -> Literal["group", "array"] | None:
        """Return the kind of the node at `path`; see `Tree`."""
        node = open_node(self.root, path)
        return None if node is None else "array" if isinstance(node, zarr.Array) else "group"

    def attribute(self, path: str, name: str) -> Any:
        """Return an attribute; see `Tree`."""
        node = open_node(self.root, path) if path else self.root
        with reading_metadata(f"{path or 'the root'} of {self.uri}"):
            return None if node is None else node.attrs.get(name)

    def names(self, path: str) -> list[str]:
        """Return the names of the members of a group; see `Tree`."""
        node = open_node(self.root, path) if path else self.root
        with reading_metadata(f"{path or 'the root'} of {self.uri}"):
            return sorted(node.keys()) if isinstance(node, zarr.Group) else []

    def check_chunks(self, array: "zarr.Array[Any]", *, absent_is_fill: bool) -> None:
        """Refuse an array that lacks chunks, or record it in `lacking` if they may be chunks of zeros.

        Raises
        ------
        ValueError
            If it lacks a chunk, or all of them; the message names the first.
        """
        gaps, n_absent, total = absent_chunks(array)
        if not n_absent:
            return
        if absent_is_fill and (n_absent < total or array.path.startswith(_TABLES)):
            self.lacking[array.path] = (
                f"{n_absent} of {total} chunks are not stored and are read as zeros, as anndata does: zarr leaves out "
                f"chunks of zeros, but one that was lost looks the same (the first is {gaps[0].key})"
            )
            return
        raise ValueError(
            f"{array.path} of {self.uri} lacks {n_absent} of {total} chunks, the first is {gaps[0].key} "
            f"(entries {gaps[0].start} to {gaps[0].stop - 1}): restore it from a copy or write the store again"
        )


def may_be_left_out(array: "zarr.Array[Any]", path: str, *, one_gene: bool) -> bool:
    """Return whether absent chunks of `array` can be chunks of zeros, which zarr omits by default.

    Only if the fill value is 0, which this package never uses. Not in ``data`` and ``indices`` of a sparse matrix: a
    chunk of these contains values other than 0, except for a matrix of one gene, so that zeros would be invented.
    """
    entries = path.endswith(("/data", "/indices")) and not path.startswith(_TABLES)
    return array.fill_value == 0 and array.dtype.kind in "iufb" and (one_gene or not entries)


def _has_one_gene(tree: ZarrTree) -> bool:
    index = open_node(tree.root, index_path(tree, "var")) if tree.kind("var") == "group" else None
    return isinstance(index, zarr.Array) and index.shape == (1,)


def open_array_of(root: zarr.Group, path: str) -> "zarr.Array[Any]":
    """Open an array of a group.

    Raises
    ------
    ValueError
        If there is none.
    """
    node = open_node(root, path)
    if not isinstance(node, zarr.Array):
        found = "is missing" if node is None else "is a group where an array is needed"
        raise ValueError(  # noqa: TRY004
            f"{path} of {uri_of(root)} {found}: the store is damaged, write it again from its source"
        )
    chunk_bytes = math.prod(node.chunks) * max(1, node.dtype.itemsize)
    if chunk_bytes > _LARGEST_CHUNK:
        raise ValueError(
            f"{path} of {uri_of(root)} claims chunks of {chunk_bytes:,} bytes, at most {_LARGEST_CHUNK:,} are read: "
            "the store is damaged, or should be written in smaller chunks"
        )
    return node


def complete_array(root: zarr.Group, name: str) -> Any:
    """Open the array `name`, of which no chunk may be missing.

    Raises
    ------
    ValueError
        If it is not an array or lacks a chunk; the message names the first.
    """
    array = open_array_of(root, name)
    ZarrTree(root, uri_of(root)).check_chunks(array, absent_is_fill=False)
    return with_native_codecs(root, array)
