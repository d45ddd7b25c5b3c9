from dataclasses import replace

import numpy as np
import pytest
import zarr

from dist_scvi.loaders.arrays.anndata_layout import new_array, new_root
from dist_scvi.loaders.arrays.pack_manifest import (
    COLLECTION,
    MANIFEST_KEY,
    SUMS,
    Manifest,
    PackSource,
    read_manifest,
    read_sums,
)

MANIFEST = Manifest(
    format_version=1,
    source=PackSource("a.h5ad", "counts", 150, 30, 900),
    n_cells=150,
    n_genes=23,
    n_entries=800,
    count_sum=4000,
    seed=None,
    group_by="donor",
    codec="lz4hc",
    counts_dtype="uint8",
    genes_dtype="uint16",
    chunk_entries=64,
    shard_entries=256,
    block_cells=16,
    shard_cells=64,
)


@pytest.fixture
def path(tmp_path):
    """A store that holds a manifest and sums, and nothing else."""
    root = new_root(tmp_path / "a.zarr", ["g0"])
    root.attrs[MANIFEST_KEY] = MANIFEST.to_dict()
    root.create_group(SUMS)
    for name, values in (("chunk_counts", range(13)), ("block_entries", [4] * 10), ("block_counts", [6] * 10)):
        new_array(root, f"{SUMS}/{name}", (len(values),), np.int64, chunk_rows=2)[:] = np.array(values)
    return tmp_path / "a.zarr"


def test_a_manifest_is_read_back_as_it_was_written(path):
    assert read_manifest(path) == read_manifest(str(path)) == read_manifest(zarr.open_group(path)) == MANIFEST


def test_sums_are_read_back_as_they_were_written(path):
    sums = read_sums(path)
    assert (sums.chunk_counts.tolist(), sums.block_entries.tolist(), sums.block_counts.tolist()) == (
        list(range(13)),
        [4] * 10,
        [6] * 10,
    )


@pytest.mark.parametrize(
    ("name", "values"), [("chunk_counts", [1, 2]), ("block_counts", [0.5] * 10), ("block_entries", None)]
)
def test_sums_of_another_number_or_type_are_refused(path, name, values):
    root = zarr.open_group(path)
    del root[f"{SUMS}/{name}"]
    if values is not None:
        root.create_array(f"{SUMS}/{name}", data=np.array(values))
    with pytest.raises(ValueError, match=rf"{SUMS}/{name} of .*a\.zarr is .* sums of a packed store are needed"):
        read_sums(path)


def test_truncated_sums_are_refused(path):
    file = path / SUMS / "block_counts/c/0"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"{SUMS}/block_counts of .* cannot be read"):
        read_sums(path)


def test_what_was_packed_for_annbatch_is_found_one_level_down(path, tmp_path):
    zarr.create_group(tmp_path / "collection", attributes=COLLECTION)
    path.rename(tmp_path / "collection" / "dataset_0")
    assert read_manifest(tmp_path / "collection") == MANIFEST
    assert read_sums(tmp_path / "collection").chunk_counts.tolist() == list(range(13))


def test_a_store_that_was_not_packed_has_no_manifest(tmp_path):
    root = new_root(tmp_path / "a.zarr", ["g0"])
    assert read_manifest(root) is None
    with pytest.raises(ValueError, match=r"a\.zarr lacks the sums of a packed store"):
        read_sums(root)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (replace(MANIFEST, format_version=2).to_dict(), r"a\.zarr was packed in format 2, this version reads 1"),
        ("lz4hc", r"a\.zarr was packed in format 'lz4hc'"),
        ({"format_version": 1}, r"the manifest of .*a\.zarr is damaged \(source is missing or of another type\)"),
        (MANIFEST.to_dict() | {"source": {"uri": "a"}}, r"the manifest of .*a\.zarr is damaged \(layer is missing"),
        (MANIFEST.to_dict() | {"block_cells": 0}, r"the manifest of .*a\.zarr is damaged \(block_cells is"),
        (MANIFEST.to_dict() | {"n_cells": "9"}, r"the manifest of .*a\.zarr is damaged \(n_cells is"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(path, found, message):
    zarr.open_group(path).attrs[MANIFEST_KEY] = found
    with pytest.raises(ValueError, match=message):
        read_manifest(path)
