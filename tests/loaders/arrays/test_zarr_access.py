"""What this package needs of zarr beyond its promises, and metadata that are damaged, hostile or of another version."""

import json
import os
import random
import re
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zarr

from dist_scvi.loaders import open_store
from dist_scvi.loaders.arrays.zarr_access import (
    SUPPORTED,
    absent_chunks,
    check_zarr_version,
    layout_of,
    open_to_write,
    with_native_codecs,
)
from dist_scvi.loaders.checks.verify import verify_store

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("version", ["3.5.0", "3.5.0rc1", "4.0", "10.1.2"])
def test_a_zarr_that_was_never_tested_is_not_supported_yet_rather_than_a_store_damaged(version):
    with pytest.raises(
        ImportError, match=rf"zarr {re.escape(version)} is not supported yet .*pip install 'zarr>=3.1,<3.5'"
    ):
        check_zarr_version(version)


def test_supported_versions_are_those_of_the_package():
    check_zarr_version(zarr.__version__)
    for version in ("3.1.0", "3.4.2", "3.4.10.dev1"):
        check_zarr_version(version)
    with pytest.raises(ImportError, match=r"zarr 2\.18\.3 is no longer supported"):
        check_zarr_version("2.18.3")
    low, high = (".".join(map(str, edge)) for edge in SUPPORTED)
    (declared,) = re.findall(r'"zarr>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert (tuple(map(int, declared[0].split(".")))[:2], declared[1]) >= (SUPPORTED[0], high), (low, high)


@pytest.mark.parametrize("location", ["start", "end"])
def test_the_index_of_a_shard_is_read_at_the_end_that_the_metadata_name(tmp_path, location):
    root = zarr.create_group(tmp_path / "a.zarr")
    sharding = zarr.codecs.ShardingCodec(chunk_shape=(4,), index_location=location)
    array = root.create_array("x", shape=(20,), chunks=(8,), dtype="i4", serializer=sharding, compressors=None)
    assert layout_of(array).index_at_end is (location == "end")


def test_threads_that_open_arrays_at_once_leave_the_configuration_of_zarr_as_it_was(tmp_path):
    root = zarr.create_group(tmp_path / "a.zarr")
    array = root.create_array("x", shape=(4,), chunks=(2,), dtype="i4")
    before = [zarr.config.get(key) for key in ("codec_pipeline.path", "array.write_empty_chunks")]

    def open_both(number):
        if number % 2:
            with_native_codecs(root, array)
        else:
            open_to_write(tmp_path / "a.zarr" / "x")[:2] = 0

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_both, range(400)))
    assert [zarr.config.get(key) for key in ("codec_pipeline.path", "array.write_empty_chunks")] == before
    assert (tmp_path / "a.zarr/x/c/0").exists()


def test_absent_chunks_are_found_by_what_is_there(tmp_path):
    root = zarr.create_group(tmp_path / "a.zarr")
    array = root.create_array("x", shape=(100, 6), chunks=(10, 3), dtype="i4")
    array[20:40] = 1
    array[50:60, :3] = 1
    gaps, n_absent, total = absent_chunks(array)
    assert [(gap.start, gap.stop, gap.key, gap.all_absent) for gap in gaps] == [
        (0, 20, "x/c/0/0", True),
        (40, 50, "x/c/4/0", True),
        (50, 60, "x/c/5/1", False),
        (60, 100, "x/c/6/0", True),
    ]
    assert (n_absent, total) == (15, 20)


def claim(path, change) -> None:
    document = json.loads((path / "zarr.json").read_text())
    change(document["consolidated_metadata"]["metadata"])
    (path / "zarr.json").write_text(json.dumps(document))


def set_shape(*names, size=10**15):
    def change(nodes):
        for name in names:
            nodes[name]["shape"] = [size]

    return change


CLAIMS = {
    "entries": set_shape("X/data", "X/indices"),
    "entries in one chunk": lambda nodes: (
        set_shape("X/data", "X/indices")(nodes),
        [nodes[name]["chunk_grid"]["configuration"].update(chunk_shape=[10**15]) for name in ("X/data", "X/indices")],
    ),
    "cells": set_shape("X/indptr", "obs/_index"),
    "genes": set_shape("var/_index", size=10**12),
    "categories": set_shape("obs/place/categories", size=10**12),
    "negative": set_shape("X/data", size=-5),
    "a text": set_shape("X/data", size="many"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("change", CLAIMS.values(), ids=CLAIMS)
def test_claims_of_any_size_are_refused_in_a_line_and_little_memory(cells, save, change):
    path = save(cells)
    claim(path, change)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r".") as refused:
        open_store(path).categorical("place")
    found, (_, peak) = verify_store(path), tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not found.ok
    assert peak < 100 << 20
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["zarr.json", "X/data/c/0", "pipe.h5ad"])
def test_a_named_pipe_is_refused_and_never_waited_for(cells, save, name):
    path = save(cells)
    target = path.parent / name if name.endswith("h5ad") else path / name
    target.unlink(missing_ok=True)
    os.mkfifo(target)
    with pytest.raises(ValueError, match=r"is a named pipe, a socket or a device|X/data of .* lacks 1 of 1 chunks"):
        open_store(target if name.endswith("h5ad") else path).read(0, 10)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
def test_flipped_bits_of_metadata_are_read_or_refused_by_name_and_nothing_else(cells, save, kind, tmp_path):
    path = save(cells, kind)
    file = path / ("zarr.json" if kind == "zarr3" else ".zmetadata")
    good, draw = file.read_bytes(), random.Random(0)
    for _ in range(150):
        at = draw.randrange(len(good))
        file.write_bytes(good[:at] + bytes([good[at] ^ (1 << draw.randrange(8))]) + good[at + 1 :])
        with suppress(ValueError):  # any other error ends the test
            store = open_store(path)
            store.read(0, 20)
            for key in store.obs_columns():
                store.categorical(key).codes(0, 20)
    file.write_bytes(good)
    shutil.rmtree(tmp_path)
    assert np.isfinite(open_store(path).read(0, 20).counts_e).all()
