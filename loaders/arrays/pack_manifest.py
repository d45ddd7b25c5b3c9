"""The manifest of a packed store: its parameters and layout, and the sums by which its content is verified.

The manifest is the attribute ``dist_scvi_pack`` of the AnnData group: the root of the store, or its sub-group
``dataset_0`` if it was packed for annbatch. It is JSON with the fields of `Manifest`, and those of `PackSource` under
``source``. The sums are int64 arrays of the same group: ``uns/dist_scvi_pack/chunk_counts``, ``block_entries`` and
``block_counts``, the fields of `PackSums`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.obs_columns import read_range
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.loaders.arrays.zarr_access import open_node, open_zarr_group, uri_of

FORMAT_VERSION = 1
MANIFEST_KEY = "dist_scvi_pack"
SUMS = f"uns/{MANIFEST_KEY}"
COLLECTION = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
"""Attributes by which annbatch recognises a collection of AnnData."""
MEMBER = "dataset_0"


@dataclass(frozen=True, slots=True)
class PackSource:
    """The store that was packed."""

    uri: str
    layer: str | None
    """Layer that was packed, None for ``X``."""
    n_cells: int
    n_genes: int
    n_entries: int
    """Entries stored in the source, including zeros."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """How a packed store was made and how it is laid out."""

    format_version: int
    source: PackSource
    n_cells: int
    n_genes: int
    n_entries: int
    """Counts above zero; no others are stored."""
    count_sum: int
    """Sum of all counts; for fractional counts, as in all sums here, the sum of their bits (`csr_rows.count_bits`)."""
    seed: int | None
    """Seed of the order of the cells; None if it is the order of the source."""
    group_by: str | None
    """obs column whose categories are written one after another, sorted by name; cells without one come last."""
    codec: str
    counts_dtype: str
    """Type of ``X/data``."""
    genes_dtype: str
    """Type of ``X/indices``."""
    chunk_entries: int
    """Entries that are decompressed together, in ``X/data`` and ``X/indices``."""
    shard_entries: int
    """Entries of a file."""
    block_cells: int
    """Cells of a block: a chunk of obs and of ``X/indptr``, and the cells of one sum in `PackSums`."""
    shard_cells: int
    """Cells of a file of obs and of ``X/indptr``."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PackSums:
    """Sums over the parts of ``X``."""

    chunk_counts: NDArray[np.int64]
    """Sum of the counts in each chunk of ``X/data``."""
    block_entries: NDArray[np.int64]
    """Entries in each block of cells."""
    block_counts: NDArray[np.int64]
    """Sum of the counts in each block of cells."""


def read_manifest(source: zarr.Group | str | Path) -> Manifest | None:
    """Return the manifest of a store, or None if it was not packed.

    Parameters
    ----------
    source
        The store: an open group or a path.

    Raises
    ------
    ValueError
        If the manifest has another format or is damaged.
    """
    root = packed_root(source)
    found = root.attrs.get(MANIFEST_KEY)
    if found is None:
        return None
    if not isinstance(found, Mapping) or found.get("format_version") != FORMAT_VERSION:
        version = found.get("format_version") if isinstance(found, Mapping) else found
        raise ValueError(
            f"{uri_of(root)} was packed in format {printable(repr(version))}, this version reads {FORMAT_VERSION}: "
            "pack it again, or use the version that packed it"
        )
    packed_from: Any = found.get("source")
    sound = isinstance(packed_from, Mapping)
    wrong = (_misfit(packed_from, PackSource) or _misfit(found, Manifest)) if sound else "source"
    if wrong is not None:
        raise ValueError(
            f"the manifest of {uri_of(root)} is damaged ({wrong} is missing or of another type): restore its zarr.json "
            "from a copy or pack again"
        )
    values: dict[str, Any] = {field.name: found[field.name] for field in fields(Manifest)}
    values["source"] = PackSource(**{field.name: packed_from[field.name] for field in fields(PackSource)})
    return Manifest(**values)


def _misfit(found: Mapping[str, Any], record: type[Manifest] | type[PackSource]) -> str | None:
    """Return the first field that is missing, of another type, or an impossible size."""
    plain: list[tuple[str, Any]] = [(field.name, field.type) for field in fields(record) if field.name != "source"]
    for name, kind in plain:
        least = (
            1 if (name.endswith("_entries") and name != "n_entries") or name in ("block_cells", "shard_cells") else 0
        )
        if name not in found or not isinstance(found[name], kind) or (kind is int and found[name] < least):
            return name
    return None


def read_sums(source: zarr.Group | str | Path) -> PackSums:
    """Read the sums of a packed store.

    Raises
    ------
    ValueError
        If they are missing, damaged, or their number differs from the manifest.
    """
    root = packed_root(source)
    manifest = read_manifest(root)
    if manifest is None:
        raise ValueError(f"{uri_of(root)} lacks the sums of a packed store: pack it first")
    n_blocks, n_chunks = (
        -(-size // step)
        for size, step in ((manifest.n_cells, manifest.block_cells), (manifest.n_entries, manifest.chunk_entries))
    )
    lengths = {"chunk_counts": n_chunks, "block_entries": n_blocks, "block_counts": n_blocks}
    arrays = {}
    for name, length in lengths.items():
        array = open_node(root, f"{SUMS}/{name}")
        if not isinstance(array, zarr.Array) or array.shape != (length,) or array.dtype != np.int64:
            found = f"{array.dtype} of shape {array.shape}" if isinstance(array, zarr.Array) else "not there"
            raise ValueError(
                f"{SUMS}/{name} of {uri_of(root)} is {found}: {length} sums of a packed store are needed; restore it "
                "from a copy or pack again"
            )
        arrays[name] = read_range(array, 0, length, uri_of(root))
    return PackSums(**arrays)


def pack_digest(source: zarr.Group | str | Path) -> str:
    """Return a digest that identifies the content of a packed store: the seed of its order, and its sums over blocks.

    Compression and the path of the source are not included.

    Raises
    ------
    ValueError
        If the manifest or the sums are missing or damaged.
    """
    manifest, sums = read_manifest(source), read_sums(source)
    assert manifest is not None
    order = (manifest.seed, manifest.group_by, manifest.n_entries, manifest.count_sum, manifest.block_cells)
    found = sha256(repr(order).encode())
    for array in (sums.block_entries, sums.block_counts):
        found.update(array.tobytes())
    return found.hexdigest()


def packed_root(source: zarr.Group | str | Path) -> zarr.Group:
    """Open the AnnData group of a store; in a store packed for annbatch it is a sub-group."""
    root = source if isinstance(source, zarr.Group) else open_zarr_group(source)
    if root is None:
        raise ValueError(f"{source} is no Zarr group: a packed store is needed")
    member = open_node(root, MEMBER) if root.attrs.get("encoding-type") == COLLECTION["encoding-type"] else None
    return member if isinstance(member, zarr.Group) else root
