"""What a packed store says of itself: how it was made, how it is laid out, and the sums that prove it whole.

The manifest is the attribute ``dist_scvi_pack`` of the AnnData group: that of the store, or of its sub-group
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

FORMAT_VERSION = 1
MANIFEST_KEY = "dist_scvi_pack"
SUMS = f"uns/{MANIFEST_KEY}"
COLLECTION = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
"""Attributes by which annbatch knows a collection of AnnData."""
MEMBER = "dataset_0"


@dataclass(frozen=True, slots=True)
class PackSource:
    """The store that was packed."""

    uri: str
    layer: str | None
    """Its layer, None for ``X``."""
    n_cells: int
    n_genes: int
    n_entries: int
    """Entries stored there, zeros among them."""


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
    """Sum of all counts; of fractional ones, as all sums here, that of their bits (`csr_rows.count_bits`)."""
    seed: int | None
    """Of the order of the cells; None if it is that of the source."""
    group_by: str | None
    """obs column whose categories lie one after another, sorted by name; cells without one come last."""
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
    """Cells of a block: a chunk of obs and of ``X/indptr``, and the cells that `PackSums` sums up together."""
    shard_cells: int
    """Cells of a file of obs and of ``X/indptr``."""

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as plain values, fit for JSON."""
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
    """Read the manifest of a store, or give None if it was not packed.

    Parameters
    ----------
    source
        The store, opened or by its path.

    Raises
    ------
    ValueError
        If there is a manifest of another format, or one that is damaged.
    """
    root = packed_root(source)
    found = root.attrs.get(MANIFEST_KEY)
    if found is None:
        return None
    if not isinstance(found, Mapping) or found.get("format_version") != FORMAT_VERSION:
        version = found.get("format_version") if isinstance(found, Mapping) else found
        raise ValueError(
            f"{root.store_path} was packed in format {version!r}, this version reads {FORMAT_VERSION}: "
            "pack it again, or use the version that packed it"
        )
    try:
        values: dict[str, Any] = {field.name: found[field.name] for field in fields(Manifest)}
        source_values: Any = values["source"]
        return Manifest(**values | {"source": PackSource(**source_values)})
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the manifest of {root.store_path} is damaged ({error}): restore its zarr.json from a copy or pack again"
        ) from error


def read_sums(source: zarr.Group | str | Path) -> PackSums:
    """Read the sums of a packed store.

    Raises
    ------
    ValueError
        If they are not there.
    """
    root = packed_root(source)
    try:
        arrays = {field.name: np.asarray(root[f"{SUMS}/{field.name}"]) for field in fields(PackSums)}
    except KeyError as error:
        raise ValueError(f"{root.store_path} lacks the sums of a packed store ({error}): pack it again") from error
    return PackSums(**arrays)


def pack_digest(source: zarr.Group | str | Path) -> str:
    """Digest what tells one packed store from another: the seed of its order, and its sums over blocks of cells.

    How it is compressed, and where its source lay, does not count.

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
    """Open the AnnData group of a store, which lies one level down in one that was packed for annbatch."""
    root = source if isinstance(source, zarr.Group) else zarr.open_group(source, mode="r")
    member = root.get(MEMBER) if root.attrs.get("encoding-type") == COLLECTION["encoding-type"] else None
    return member if isinstance(member, zarr.Group) else root
