from dataclasses import replace

import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal

from dist_scvi.loaders import open_store
from dist_scvi.loaders.arrays.pack_manifest import read_manifest, read_sums
from dist_scvi.loaders.pack import job
from dist_scvi.loaders.pack.gather import (
    begin_gathering,
    create_store,
    finish_store,
    unfinished,
    write_shard,
    write_table,
)
from dist_scvi.loaders.pack.scatter import open_columns
from tests.loaders.pack.test_job import JOB
from tests.loaders.pack.test_scatter import move
from tests.loaders.store_contract import dense


@pytest.fixture
def begun(tmp_path, pristine, monkeypatch):
    """Moves rows, and gives the plan to put them together and their source."""
    monkeypatch.setattr(job, "_CHUNK_ENTRIES", (32, 64))

    def begin(adata=pristine, **changes):
        job = replace(JOB, genes=tuple(adata.var_names), obs_columns=("place", "age"), **changes)
        for name in ("pieces", "done"):
            (tmp_path / name).mkdir()
        move(tmp_path / "pieces", adata, job)
        plan = begin_gathering(job, tmp_path)
        source = open_columns(open_store(adata), job)
        create_store(plan, source)
        return plan, source

    return begin


def write_all(plan, source) -> None:
    shards, tables = unfinished(plan)
    assert sum(write_table(plan, number) for number in tables) == 0
    assert sum(write_shard(plan, number) for number in shards) == (150 if plan.n_entries else 0)
    finish_store(plan, source.job)


def test_every_file_holds_its_stretch_of_the_new_order(begun, expected_ng):
    plan, source = begun()
    assert (plan.n_entries, plan.chunk_entries, plan.shard_entries) == ((expected_ng > 0).sum(), 64, 256)
    assert (plan.n_shards, plan.n_tables) == (-(-plan.n_entries // 256), 3)
    write_all(plan, source)
    store = open_store(plan.path)
    row_n = np.asarray(store.numeric("source_row").stored[0:150])
    rows = store.read(0, 150)
    assert_array_equal(dense(rows, 23), expected_ng[row_n])
    for low, high in zip(rows.indptr, rows.indptr[1:], strict=False):
        assert (np.diff(rows.genes_e[low:high].astype(int)) > 0).all()
    assert list(store.obs_names(0, 150)) == [f"cell{row}" for row in row_n]


def test_shards_are_whole_files_and_data_and_indices_share_their_grid(begun):
    plan, source = begun()
    write_all(plan, source)
    root = zarr.open_group(plan.path, mode="r")
    data, indices = root["X/data"], root["X/indices"]
    assert (data.chunks, data.shards) == (indices.chunks, indices.shards) == ((64,), (256,))
    assert [type(codec).__name__ for codec in data.metadata.codecs[0].codecs] == [
        "BytesCodec",
        "BloscCodec",
        "Crc32cCodec",
    ]
    for name, n_files in (("X/data", plan.n_shards), ("X/indices", plan.n_shards), ("X/indptr", 3), ("obs/age", 3)):
        assert len(list((plan.path / name / "c").iterdir())) == n_files
    assert (root["obs/place/codes"].chunks, root["obs/place/codes"].shards, root["X/indptr"].chunks) == (
        (16,),
        (64,),
        (16,),
    )


def test_the_sums_are_those_of_what_was_written(begun):
    plan, source = begun()
    write_all(plan, source)
    root, sums = zarr.open_group(plan.path, mode="r"), read_sums(plan.path)
    counts_e, indptr = root["X/data"][:].astype(int), root["X/indptr"][:]
    assert_array_equal(sums.chunk_counts, np.add.reduceat(counts_e, np.arange(0, len(counts_e), 64)))
    assert_array_equal(sums.block_entries, np.diff(indptr[[*range(0, 150, 16), 150]]))
    assert_array_equal(sums.block_counts, np.add.reduceat(counts_e, indptr[:-1:16]))
    manifest = read_manifest(plan.path)
    assert (manifest.n_entries, manifest.count_sum) == (len(counts_e), counts_e.sum())
    assert (manifest.chunk_entries, manifest.shard_entries, manifest.block_cells, manifest.shard_cells) == (
        64,
        256,
        16,
        64,
    )


def test_the_cells_of_all_shards_are_all_cells(begun):
    plan, _ = begun()
    assert sum(map(plan.cells_of_shard, range(plan.n_shards))) == 150


def test_what_is_done_is_not_done_again_and_what_was_left_over_is_removed(begun):
    plan, source = begun()
    write_shard(plan, 1)
    write_table(plan, 0)
    assert unfinished(plan) == ([0, *range(2, plan.n_shards)], [1, 2])
    (plan.path / "obs" / "_index" / "c" / "0.123.partial").write_text("half")
    create_store(plan, source)
    assert not list(plan.path.rglob("*.partial"))
    assert (plan.path / "X" / "data" / "c" / "1").exists()


@pytest.mark.parametrize(
    ("largest", "kind"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32)]
)
def test_counts_take_the_smallest_type_that_holds_the_largest(begun, cells, largest, kind):
    cells.X.data[cells.X.data > 255] = 255
    cells.X.data[cells.X.indptr[140]] = largest
    plan, source = begun(cells)
    write_all(plan, source)
    assert zarr.open_group(plan.path, mode="r")["X/data"].dtype == kind
    assert open_store(plan.path).read(0, 150).counts_e.max() == largest


def test_row_starts_are_wide_where_there_are_more_entries_than_int32_counts(begun):
    plan, source = begun()
    kinds = []
    for n_entries in ((1 << 31) - 1, 1 << 31):
        (plan.folder / "store").rename(plan.folder / f"{n_entries}")
        create_store(replace(plan, n_entries=n_entries), source)
        kinds.append(zarr.open_array(plan.path / "X" / "indptr").dtype)
    assert kinds == [np.int32, np.int64]


def test_cells_without_any_count_are_kept(begun, cells):
    cells.X.data[:] = 0
    plan, source = begun(cells)
    write_all(plan, source)
    store = open_store(plan.path)
    assert (store.n_cells, store.n_entries, len(store.read(0, 150).counts_e)) == (150, 0, 0)


def test_columns_without_any_value_are_kept_and_do_not_count_as_lost(begun, cells):
    cells.obs["place"] = cells.obs["place"].cat.set_categories([])
    cells.obs["age"] = np.nan
    plan, source = begun(cells)
    write_all(plan, source)
    store = open_store(plan.path)
    assert (store.categorical("place").codes(0, 150) == -1).all()
    assert np.isnan(store.numeric("age").stored[0:150]).all()


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obs/age", "obs/place/codes"])
def test_a_lost_file_is_refused(begun, name):
    plan, source = begun()
    write_all(plan, source)
    (plan.path / name / "c" / "1").unlink()
    with pytest.raises(ValueError, match=rf"{name}.* of .* lacks 1 of \d+ chunks"):
        read_all(open_store(plan.path))


@pytest.mark.parametrize("name", ["X/data", "X/indices"])
def test_a_flipped_byte_is_refused_wherever_it_lies(begun, name):
    plan, source = begun()
    write_all(plan, source)
    for file in sorted((plan.path / name / "c").iterdir())[::2]:
        content = file.read_bytes()
        for at in range(0, len(content), 37):
            file.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
            with pytest.raises(ValueError, match=name):
                open_store(plan.path).read(0, 150)
        file.write_bytes(content)


def read_all(store) -> None:
    store.read(0, 150)
    store.categorical("place").codes(0, 150)
    store.numeric("age").values(0, 150)


def test_work_that_was_changed_meanwhile_is_refused(begun):
    plan, source = begun()
    counts = next((plan.folder / "pieces").glob("*/*/counts.npy"))
    np.save(counts, np.load(counts) + np.uint8(1))
    with pytest.raises(
        ValueError, match=r"150 cells and \d+ counts were written of 150 cells and \d+ counts: the files in"
    ):
        write_all(plan, source)
