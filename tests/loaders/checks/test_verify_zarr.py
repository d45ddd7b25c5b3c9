from functools import partial

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from dist_scvi.loaders import open_store
from dist_scvi.loaders.arrays.pack_manifest import COLLECTION, MANIFEST_KEY, MEMBER, SUMS, Manifest, PackSource
from dist_scvi.loaders.checks.lost_rows import Losses
from dist_scvi.loaders.checks.verify import verify_store
from dist_scvi.loaders.checks.verify_zarr import ZarrParts, open_parts, packed_sums
from dist_scvi.loaders.pack.pack import pack_store
from dist_scvi.loaders.simulate import simulate

BLOCK, CHUNK = 16, 64


@pytest.fixture
def packed(cells, save, rewrite):
    """A store with the manifest and the sums of a packed one, whose counts carry no checksum."""
    path = save(cells)
    for name in ("data", "indices", "indptr"):
        rewrite(path, f"X/{name}", chunks=CHUNK, codecs=None)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    data, indptr = root["X/data"][:].astype(np.int64), root["X/indptr"][:]
    starts = np.append(indptr[:-1:BLOCK], len(data))
    sizes = {"n_cells": 150, "n_genes": 23, "n_entries": len(data)}
    layout = {"chunk_entries": CHUNK, "shard_entries": CHUNK, "block_cells": BLOCK, "shard_cells": 64}
    kinds = {"codec": "lz4", "counts_dtype": "uint16", "genes_dtype": "uint16", "seed": 0, "group_by": None}
    source = PackSource(uri="a", layer=None, **sizes)
    manifest = Manifest(format_version=1, source=source, count_sum=int(data.sum()), **sizes, **layout, **kinds)
    root.attrs[MANIFEST_KEY] = manifest.to_dict()
    root.create_array(f"{SUMS}/chunk_counts", data=np.add.reduceat(data, np.arange(0, len(data), CHUNK)))
    root.create_array(f"{SUMS}/block_entries", data=np.diff(starts))
    root.create_array(f"{SUMS}/block_counts", data=np.add.reduceat(data, starts[:-1]))
    return path


def found_in(path) -> list[tuple[str, int, int]]:
    return [(one.array, one.start, one.stop) for one in verify_store(path).lost]


def test_sums_that_agree_find_nothing(packed):
    assert found_in(packed) == []


def test_another_count_is_found_by_the_sums_without_any_checksum(packed, cells):
    root = zarr.open_group(packed, mode="r+", use_consolidated=False)
    root["X/data"][200] += 8.0
    (one,) = verify_store(packed).lost
    indptr = cells.X.indptr
    row = int(np.searchsorted(indptr, 200, side="right")) - 1
    block = row // BLOCK * BLOCK
    rows = [at for at in range(block, block + BLOCK) if max(indptr[at], 192) < min(indptr[at + 1], 256)]
    assert (one.array, list(range(one.start, one.stop))) == ("X/data", rows)
    assert "in chunk 3" in one.found
    assert one.found.endswith("were packed: restore it from a copy or pack the store again")


def test_entries_that_moved_to_another_block_are_found_by_the_sums(packed):
    root = zarr.open_group(packed, mode="r+", use_consolidated=False)
    root["X/indptr"][32] += 1
    assert found_in(packed) == [("X", 16, 48)]


def test_another_number_of_entries_is_found_by_the_sums(packed):
    root = zarr.open_group(packed, mode="r+", use_consolidated=False)
    root[f"{SUMS}/block_entries"][2] += 1
    assert found_in(packed) == [("X", 32, 48)]


def test_lost_rows_are_not_found_a_second_time_by_the_sums(packed):
    root = zarr.open_group(packed, mode="r+", use_consolidated=False)
    root["X/data"][200] = 0.5
    ((array, start, stop),) = found_in(packed)
    assert (array, stop - start) == ("X", 1)


def test_sums_of_another_store_are_told(packed):
    root = zarr.open_group(packed, mode="r+", use_consolidated=False)
    root.attrs[MANIFEST_KEY] = dict(root.attrs[MANIFEST_KEY]) | {"n_cells": 151}
    losses = Losses("", 9)
    assert packed_sums(open_parts(packed, None), losses) is None
    assert losses.found[0].found.startswith("it tells of 151 cells, there are 150")


def test_lost_sums_are_told_and_another_layer_needs_none(packed):
    root = zarr.open_group(packed, mode="r+", use_consolidated=False)
    del root[SUMS]
    (one,) = verify_store(packed).lost
    assert one.array == "uns/dist_scvi_pack"
    assert "is not there: 18 sums of a packed store are needed" in one.found
    assert verify_store(packed, layer="twice").ok


def test_a_collection_of_one_store_is_looked_into(packed, tmp_path):
    zarr.create_group(tmp_path / "collection", attributes=COLLECTION)
    packed.rename(tmp_path / "collection" / MEMBER)
    parts = open_parts(tmp_path / "collection", None)
    assert (parts.n_cells, parts.folder.name, parts.counts[0]) == (150, MEMBER, "X/data")
    zarr.open_group(parts.folder, mode="r+", use_consolidated=False)["X/data"][200] = 0.5
    (one,) = verify_store(tmp_path / "collection").lost
    assert (one.array, one.found[:10]) == ("X", "holds 0.5 ")


@pytest.mark.parametrize("lost", ["zarr.json", "obs", "X/data"])
def test_a_store_without_its_metadata_has_no_parts(cells, save, lost):
    path = save(cells)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    root.attrs["reset"] = True
    if lost == "zarr.json":
        (path / lost).write_text("{")
    else:
        (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
        del root[lost]
    assert open_parts(path, None) is None


def test_a_layer_has_parts_of_its_own(cells, save):
    assert open_parts(save(cells), "twice").counts == (
        "layers/twice/data",
        "layers/twice/indices",
        "layers/twice/indptr",
    )
    assert open_parts(save(cells), "none") is None
    assert open_parts(save(cells, "h5ad"), None) is None


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    span=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    gap=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_entries_are_given_the_rows_that_hold_them_also_beside_lost_row_starts(lengths, span, gap):
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    if indptr[-1] == 0:
        return
    low, high = sorted(at % indptr[-1] for at in span)
    high += 1
    unknown = sorted(at % len(indptr) for at in gap)
    torn = indptr.copy()
    torn[slice(*unknown)] = -1
    if (torn < 0).all():
        return
    parts = ZarrParts(zarr.group({}), None, ("X/indptr",), "", len(lengths))
    parts.root.create_array("X/indptr", data=torn)
    first, last = parts.rows(low, high, [tuple(unknown)])
    truth = {row for row in range(len(lengths)) if max(indptr[row], low) < min(indptr[row + 1], high)}
    beside = set(range(unknown[0] - 1, unknown[1])) if unknown[0] < unknown[1] else set()
    assert truth - beside <= set(range(first, last))
    assert {row for row in set(range(first, last)) - beside if lengths[row]} <= truth


@pytest.mark.parametrize(
    ("codecs", "shards", "bare"),
    [
        (None, None, True),
        ([BloscCodec(cname="lz4")], None, True),
        ([ZstdCodec(level=1)], 128, True),
        ([ZstdCodec(level=1, checksum=True)], None, False),
        ([BloscCodec(cname="lz4"), Crc32cCodec()], 128, False),
        ([GzipCodec()], None, False),
    ],
)
def test_arrays_without_a_checksum_are_told(cells, save, rewrite, codecs, shards, bare):
    path = save(cells)
    rewrite(path, "X/data", chunks=32, shards=shards, codecs=codecs)
    (line,) = verify_store(path).unproven
    assert line.startswith("X/data, X/indices") is bare


@pytest.mark.parametrize("name", ["obs/donor/codes", "obs/source_row", "X/data", "X/indptr"])
def test_an_empty_file_is_a_loss_and_not_a_chunk_of_missing_values(tmp_path, name):
    simulate(tmp_path / "a.zarr", n_cells=60, n_genes=20, seed=0)
    pack_store(partial(open_store, tmp_path / "a.zarr"), tmp_path / "p.zarr")
    (tmp_path / "p.zarr" / name / "c" / "0").write_bytes(b"")
    found = verify_store(tmp_path / "p.zarr")
    assert not found.ok
    assert name in {one.array for one in found.lost}
