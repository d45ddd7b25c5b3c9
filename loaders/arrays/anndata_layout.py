"""The layout of AnnData in Zarr v3: groups and arrays with the attributes of anndata, a checksum in every chunk."""

import os
import shutil
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, ZstdCodec

from dist_scvi.loaders.arrays.zarr_access import SETTINGS

QZM, QZV, LIBRARY = "scvi_latent_qzm", "scvi_latent_qzv", "observed_lib_size"
"""Keys of the minified cells of scvi-tools: latent mean and variance in obsm, total count in obs."""
SOURCE_ROW = "source_row"
"""obs column with the row of each cell in the store that it was read from."""

PARTS = frozenset(
    {"X", "layers", "obs", "obsm", "obsp", "raw", "uns", "var", "varm", "varp"}
    | {"zarr.json", ".zattrs", ".zgroup", ".zmetadata", "dataset_0"}
)
"""Names at the top level of an AnnData in Zarr v2 or v3, and of an annbatch collection with one member."""

_STRING: dict[str, Any] = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
_ARRAY: dict[str, Any] = {"encoding-type": "array", "encoding-version": "0.2.0"}
# The checksum is that of zstd: zarrs 0.2.3 skips crc32c when it reads a part of a chunk or shard, and returns wrong
# values if a byte was flipped. A zstd frame is always decoded, and so verified, as a whole.
_CODECS: list[BytesBytesCodec] = [BloscCodec(cname="lz4", clevel=3), ZstdCodec(level=1, checksum=True)]


def new_root(path: Path, var_names: Sequence[str]) -> zarr.Group:
    """Create the AnnData group `path` with its genes and empty parts."""
    root = zarr.create_group(path, zarr_format=3, attributes={"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for part in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        root.create_group(part, attributes={"encoding-type": "dict", "encoding-version": "0.1.0"})
    var = root.create_group("var")
    new_strings(var, "_index", len(var_names))[:] = np.asarray(var_names, dtype=object)
    finish_table(var, [])
    return root


def new_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    *,
    chunk_rows: int,
    shard_rows: int | None = None,
    codecs: Sequence[BytesBytesCodec] = _CODECS,
) -> "zarr.Array[Any]":
    """Create a numeric array, chunked by rows.

    The fill value, which lost chunks are read as, is NaN, -1 or the largest unsigned number, never 0.
    """
    kind = np.dtype(dtype)
    lost = {"f": float("nan"), "u": np.iinfo(kind).max if kind.kind == "u" else 0, "b": False}.get(kind.kind, -1)
    with SETTINGS:  # so that no other thread has another pipeline set
        return group.create_array(
            name,
            shape=shape,
            dtype=kind,
            chunks=(chunk_rows, *shape[1:]),
            shards=(shard_rows, *shape[1:]) if shard_rows else None,
            compressors=codecs,
            attributes=_ARRAY,
            fill_value=lost,
            config={"write_empty_chunks": True},  # so that an absent chunk is always a lost one
        )


def new_strings(
    group: zarr.Group,
    name: str,
    length: int,
    *,
    chunk_rows: int = 65_536,
    codecs: Sequence[BytesBytesCodec] = _CODECS,
) -> "zarr.Array[Any]":
    """Create an array of strings."""
    with SETTINGS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=zarr.errors.UnstableSpecificationWarning)
        return group.create_array(
            name,
            shape=(length,),
            dtype="string",
            chunks=(max(1, min(chunk_rows, length)),),
            compressors=codecs,
            attributes=_STRING,
            config={"write_empty_chunks": True},
        )


def new_categorical(
    table: zarr.Group,
    key: str,
    categories: Sequence[str],
    length: int,
    *,
    chunk_rows: int,
    shard_rows: int | None = None,
) -> "zarr.Array[Any]":
    """Create a categorical column and return its codes, -1 for a missing value."""
    column = table.create_group(
        key, attributes={"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
    )
    new_strings(column, "categories", len(categories))[:] = np.asarray(categories, dtype=object)
    return new_array(
        column, "codes", (length,), code_type(len(categories)), chunk_rows=chunk_rows, shard_rows=shard_rows
    )


def code_type(n_categories: int) -> DTypeLike:
    """Return the smallest signed type for the codes of `n_categories`, as pandas does."""
    return np.int8 if n_categories <= 127 else np.int16 if n_categories <= 32_767 else np.int32


def finish_table(table: zarr.Group, columns: Sequence[str]) -> None:
    """Mark `table` as a data frame whose index is ``_index`` and whose columns are `columns`."""
    table.attrs.update(
        {
            "encoding-type": "dataframe",
            "encoding-version": "0.2.0",
            "_index": "_index",
            "column-order": list(columns),
        }
    )


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that a store cannot be written to.

    Raises
    ------
    FileExistsError
        If `path` exists and may not be replaced, it is a file, or it is not a Zarr folder and contains something that a
        store would replace.
    """
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(
            f"{path} already exists: choose another path, or allow it to be replaced (overwrite=True, --overwrite)"
        )
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file and is not replaced: choose another path")
    if not (path / "zarr.json").exists() and not (path / ".zgroup").exists():
        taken = sorted(PARTS & {entry.name for entry in path.iterdir()})
        if taken:
            raise FileExistsError(
                f"{path} is not a Zarr folder and holds {', '.join(taken)}, which a store would replace: choose "
                "another path"
            )


def replace_folder(folder: Path, path: Path, *, parts: Collection[str] = PARTS) -> None:
    """Move the finished `folder` to `path`, replacing an earlier one; other files in the earlier folder are kept.

    Called again after a kill, it continues: at any time the complete old or new folder exists, with the other files.

    Parameters
    ----------
    parts
        Names at the top level of `path` that belong to the earlier folder, in addition to those that `folder` has.
        They are replaced as a whole: rows added to the old cells do not match the new ones.
    """
    old = path.with_name(f"{path.name}.replaced")
    if folder.exists():
        if path.exists() or old.exists():  # a kill between the two renames leaves only `old`
            _link_others(path if path.exists() else old, folder, parts)
        if path.exists():
            _remove_replaced(old, path, parts)
            path.rename(old)
        folder.rename(path)
    _remove_replaced(old, path, parts)


def _remove_replaced(old: Path, path: Path, parts: Collection[str]) -> None:
    if old.exists():
        _link_others(old, path, parts)  # what was added to it while it was being replaced
        shutil.rmtree(old)


def _link_others(old: Path, new: Path, parts: Collection[str]) -> None:
    """Link into `new` the entries of `old` that are neither one of `parts` nor in `new`."""
    unfinished = new / ".linking"
    for entry in old.iterdir():
        if entry.name in parts or entry.name == unfinished.name or os.path.lexists(new / entry.name):
            continue
        if unfinished.is_dir() and not unfinished.is_symlink():  # of a call that was killed
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink(missing_ok=True)
        _link(entry, unfinished)
        unfinished.rename(new / entry.name)


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, or all files of a folder: faster than a copy, and a change is visible in both places."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        for entry in source.iterdir():
            _link(entry, target / entry.name)
        shutil.copystat(source, target)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a disk without hard links
        shutil.copy2(source, target, follow_symlinks=False)
