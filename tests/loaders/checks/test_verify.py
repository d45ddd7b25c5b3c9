import json
import shutil

import h5py
import numpy as np
import pytest
import zarr
from scipy import sparse

from dist_scvi.loaders import open_store
from dist_scvi.loaders.arrays import anndata_writer
from dist_scvi.loaders.checks import scan_duplicates, verify
from dist_scvi.loaders.checks.verify import Verification, format_verification, verify_store
from dist_scvi.loaders.simulate import simulate

N_CELLS = 1500
PARTS = ("X/data", "X/indices", "X/indptr")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A store in many chunks and shards, each with a checksum."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"_SHARD_ENTRIES": 1 << 13, "_CHUNK_ROWS": 64, "_SHARD_ROWS": 256}.items():
            patch.setattr(anndata_writer, name, size)
        return simulate(tmp_path_factory.mktemp("sound") / "cells.zarr", n_cells=N_CELLS, n_genes=80, median_library=30)


@pytest.fixture
def path(sound, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(sound, tmp_path / "cells.zarr")


def flip(file, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 16
    file.write_bytes(content)


def named(found: Verification, array: str) -> list[int]:
    """Give the rows that `found` says are lost of `array`."""
    return [row for one in found.lost if one.array == array for row in range(one.start, one.stop)]


def rows_of_entries(store_path, low: int, high: int) -> list[int]:
    """Give the rows that have an entry in ``[low, high)``."""
    indptr = zarr.open_group(store_path, mode="r")["X/indptr"][:]
    return [row for row in range(len(indptr) - 1) if max(indptr[row], low) < min(indptr[row + 1], high)]


def shard(path, name: str, number: int) -> tuple[int, int]:
    length = zarr.open_group(path, mode="r")[name].shards[0]
    return number * length, (number + 1) * length


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "h5ad"])
@pytest.mark.parametrize("layer", [None, "twice", "raw/X"])
def test_nothing_is_found_in_sound_stores(cells, save, kind, layer):
    cells.raw = cells.copy()
    found = verify_store(save(cells, kind), layer=layer)
    assert (found.ok, found.lost, found.n_further, found.n_cells) == (True, (), 0, 150)
    assert "150 cells, all of them read: nothing is lost" in format_verification(found)


def test_nothing_is_found_nor_left_unproven_in_stores_of_this_package(sound):
    found = verify_store(sound)
    assert (found.ok, found.n_cells, found.unproven) == (True, N_CELLS, ())


@pytest.mark.parametrize("name", ["X/data", "X/indices"])
@pytest.mark.parametrize("number", [0, 1])
def test_the_rows_of_a_lost_shard_of_entries_are_named(sound, path, name, number):
    (path / name / "c" / str(number)).unlink()
    found = verify_store(path)
    assert {one.array for one in found.lost} == {name}
    assert named(found, name) == rows_of_entries(sound, *shard(path, name, number))
    assert f"{name}/c/{number} is missing (entries" in found.lost[0].found
    assert any("verify it again once it is whole" in line for line in found.unproven)


def test_the_rows_of_a_lost_shard_of_row_starts_are_named(path):
    (path / "X/indptr/c/2").unlink()
    found = verify_store(path)
    assert named(found, "X/indptr") == list(range(511, 768))
    assert {one.array for one in found.lost} == {"X/indptr"}


@pytest.mark.parametrize("name", ["X/data", "X/indices"])
def test_the_rows_of_a_truncated_shard_are_named(sound, path, name):
    file = path / name / "c" / "1"
    file.write_bytes(file.read_bytes()[:-30])
    found = verify_store(path)
    assert {one.array for one in found.lost} == {name}
    assert named(found, name) == rows_of_entries(sound, *shard(path, name, 1))


@pytest.mark.parametrize("name", ["X/data", "X/indices"])
@pytest.mark.parametrize("at", [40, 1000, -90])
def test_flipped_bytes_under_a_checksum_cost_the_rows_of_a_chunk_and_no_others(sound, path, name, at):
    file = path / name / "c" / "1"
    flip(file, at % file.stat().st_size)
    found = verify_store(path)
    assert {one.array for one in found.lost} == {name}
    lost = named(found, name)
    assert 0 < len(lost) <= len(rows_of_entries(sound, *shard(path, name, 1)))
    store, before = open_store(path), open_store(sound)
    for row in range(N_CELLS):
        if row not in lost:
            np.testing.assert_array_equal(store.read(row, row + 1).counts_e, before.read(row, row + 1).counts_e)
    for row in lost[:: max(1, len(lost) // 20)]:
        with pytest.raises(ValueError, match="damaged"):
            store.read(row, row + 1)


@pytest.mark.parametrize(("at", "rows"), [(40, range(255, 320)), (-30, range(255, 512))], ids=["chunk", "index"])
def test_flipped_bytes_of_row_starts_cost_the_rows_around_them(path, at, rows):
    file = path / "X/indptr/c/1"
    flip(file, at % file.stat().st_size)
    found = verify_store(path)
    assert named(found, "X/indptr") == list(rows)
    assert {one.array for one in found.lost} == {"X/indptr"}


def test_entries_lost_along_with_row_starts_are_told_by_the_row_starts_that_are_left(sound, path):
    (path / "X/indptr/c/2").unlink()
    (path / "X/indices/c/1").unlink()
    found = verify_store(path)
    known = [row for row in rows_of_entries(sound, *shard(path, "X/indices", 1)) if not 511 <= row < 768]
    assert [row for row in named(found, "X/indices") if not 511 <= row < 768] == known


def test_several_damages_are_all_found_in_one_go(sound, path):
    (path / "X/data/c/0").unlink()
    (path / "obs/donor/codes/c/3").unlink()
    flip(path / "X/indices/c/1", 200)
    flip(path / "obs/batch/codes/c/1", 20)
    flip(path / "obs/_index/c/7", 100)
    found = verify_store(path)
    assert named(found, "X/data") == rows_of_entries(sound, *shard(path, "X/data", 0))
    assert named(found, "obs/donor/codes") == list(range(768, 1024))
    assert named(found, "obs names") == list(range(448, 512))
    assert set(named(found, "obs/batch/codes")) < set(range(256, 512))
    assert 0 < len(named(found, "X/indices")) < 300
    every = {row for one in found.lost for row in range(one.start, one.stop)}
    assert found.n_lost_cells == len(every)
    text = format_verification(found)
    assert f"{len(every):,} of 1,500 cells are lost or wrong:" in text
    assert "    - rows 768 to 1023, obs/donor/codes: obs/donor/codes/c/3 is missing" in text


@pytest.mark.parametrize("codecs", [None, "auto"], ids=["uncompressed", "zstd without checksum"])
def test_flips_without_a_checksum_are_found_if_the_value_is_impossible(cells, save, rewrite, codecs):
    path = save(cells)
    for name in PARTS:
        rewrite(path, name, chunks=64, codecs=codecs)
    root = zarr.open_group(path, mode="r+")
    at = int(cells.X.indptr[70])
    root["X/data"][at] = 0.5
    root["X/indices"][int(cells.X.indptr[90])] = 23
    found = verify_store(path)
    assert [(one.array, one.start, one.stop) for one in found.lost] == [("X", 70, 71), ("X", 90, 91)]
    assert "holds 0.5 at row 70, gene" in found.lost[0].found
    assert "there are 23 genes" in found.lost[1].found


def test_a_flip_without_a_checksum_that_makes_another_count_is_said_to_be_unproven(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "X/data", chunks=64, codecs=None)
    zarr.open_group(path, mode="r+")["X/data"][3] = 9.0
    found = verify_store(path)
    assert found.ok
    assert any("X/data" in line and "carry no checksum" in line for line in found.unproven)
    assert "  not proven: " in format_verification(found)


def test_row_starts_that_fall_are_found_with_their_row(cells, save, rewrite):
    path = save(cells)
    indptr = zarr.open_group(path, mode="r")["X/indptr"][:]
    indptr[80] += 100
    rewrite(path, "X/indptr", indptr, chunks=16, codecs=None)
    assert 80 in named(verify_store(path), "X/indptr")


def test_codes_of_no_category_are_found_with_their_rows(cells, save, rewrite):
    path = save(cells)
    code_n = np.where(np.isin(np.arange(150), [20, 21, 99]), 3, 0).astype(np.int8)
    rewrite(path, "obs/place/codes", code_n, chunks=16)
    found = verify_store(path)
    assert named(found, "obs/place/codes") == [20, 21, 99]
    assert found.lost[0].found.startswith("code 3 for 3 categories")


def test_a_lost_chunk_that_may_have_been_left_out_as_zeros_is_told(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/place/codes", chunks=40)
    (path / "obs/place/codes/c/1").unlink()
    found = verify_store(path)
    assert found.ok
    assert "obs/place/codes/c/0 is not there (rows 0 to 79): all is 0 in it, or it was lost" in found.unproven


def test_lost_categories_cost_the_column_in_every_row(path):
    flip(path / "obs/cell_type/categories/c/0", 40)
    assert named(verify_store(path), "obs/cell_type/categories") == list(range(N_CELLS))


def test_a_column_that_is_not_there_or_too_short_is_found(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/age", np.arange(149.0))
    shutil.rmtree(path / "obs/lane")
    found = {one.array: one.found for one in verify_store(path).lost}
    assert found["obs/age"].startswith("it has 149 values for 150 cells")
    assert found["obs/lane"].startswith("is missing, though the table lists it")


@pytest.mark.parametrize("chunks", [(20, 23), (20, 8)])
@pytest.mark.parametrize("fill", [0, -1])
def test_the_rows_of_a_lost_chunk_of_a_dense_matrix_are_named_as_lost_or_unproven(
    cells, expected_ng, save, chunks, fill
):
    cells.X = expected_ng.astype(np.float32)
    path = save(cells)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    attributes = dict(root["X"].attrs)
    del root["X"]
    root.create_array("X", data=cells.X, chunks=chunks, attributes=attributes, fill_value=fill)
    described = json.loads((path / "zarr.json").read_text())
    described.pop("consolidated_metadata", None)
    (path / "zarr.json").write_text(json.dumps(described))
    assert verify_store(path).ok
    (path / "X/c/2/0").unlink()
    found = verify_store(path)
    if fill:
        assert named(found, "X") == list(range(40, 60))
    else:  # zarr leaves out chunks of zeros, as anndata writes them
        assert found.ok
        assert "X/c/2/0 is not there (rows 40 to 59): all is 0 in it, or it was lost" in found.unproven


def test_damaged_gzip_chunks_of_hdf5_are_told_by_their_rows(cells, save):
    path = save(cells, "h5ad")
    with h5py.File(path, "r+") as file:
        for name in PARTS[:2]:
            values = file[name][:]
            del file[name]
            file.create_dataset(name, data=values, chunks=(64,), compression="gzip")
    with h5py.File(path, "r") as file:
        chunk = file["X/data"].id.get_chunk_info(3)
        indptr = file["X/indptr"][:]
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 4 : chunk.byte_offset + 12] = b"\xff" * 8
    path.write_bytes(content)
    found = verify_store(path)
    lost = [row for row in range(150) if max(indptr[row], 192) < min(indptr[row + 1], 256)]
    assert named(found, "X/data") == lost
    assert "no checksum" in found.unproven[0]


def test_damaged_obs_of_hdf5_is_told(cells, save):
    path = save(cells, "h5ad")
    with h5py.File(path, "r+") as file:
        file["obs/place/codes"][99] = 3
        del file["obs/age"]
        file["obs/age"] = np.arange(149.0)
    found = {one.array: one.found for one in verify_store(path).lost}
    assert "holds code 3 at row 99" in found["obs/place"]
    assert "has 149 values for 150 cells" in found["obs/age"]


@pytest.mark.parametrize("kind", ["zarr3", "h5ad"])
@pytest.mark.parametrize("held", [1 << 24, 40])
def test_names_given_twice_are_found(cells, save, kind, held, monkeypatch):
    monkeypatch.setattr(scan_duplicates, "_HELD", held)
    cells.obs_names = [*cells.obs_names[:149], "cell7"]
    (one,) = verify_store(save(cells, kind)).lost
    assert (one.array, one.start, one.stop) == ("obs names", 149, 150)
    assert one.found.startswith("'cell7' is the name of row 7 too: call adata.obs_names_make_unique()")


@pytest.mark.parametrize("layer", ["twice", "raw/X"])
def test_the_rows_lost_of_a_layer_are_named(cells, save, rewrite, layer):
    cells.raw = cells.copy()
    path = save(cells)
    name = f"layers/{layer}" if layer == "twice" else layer
    rewrite(path, f"{name}/data", chunks=64)
    (path / name / "data/c/3").unlink()
    indptr = cells.X.indptr
    lost = [row for row in range(150) if max(indptr[row], 192) < min(indptr[row + 1], 256)]
    assert named(verify_store(path, layer=layer), f"{name}/data") == lost
    assert verify_store(path).ok


def test_a_store_that_cannot_be_opened_is_a_finding(cells, save, tmp_path):
    path = save(cells, "h5ad")
    path.write_bytes(path.read_bytes()[:-5000])
    found = verify_store(path)
    assert [one.array for one in found.lost] == ["the store"]
    text = format_verification(found)
    assert "  it cannot be read:\n    - the store: cannot be opened: " in text
    assert "cannot be opened as HDF5" in text
    (tmp_path / "empty.zarr").mkdir()
    assert "no Zarr group" in verify_store(tmp_path / "empty.zarr").lost[0].found


def test_what_hinders_opening_is_told_though_every_array_is_sound(cells, save):
    cells.var_names = ["g1", *cells.var_names[1:]]
    found = verify_store(save(cells))
    assert [(one.array, one.start, one.stop) for one in found.lost] == [("the store", 0, 150)]
    assert "1 duplicated gene names (g1)" in found.lost[0].found


def test_a_path_where_nothing_lies_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.zarr does not exist"):
        verify_store(tmp_path / "nothing.zarr")


def test_findings_beyond_the_number_asked_for_are_counted(cells, save):
    cells.X.data[cells.X.indptr[10:70:2]] = 0.5
    found = verify_store(save(cells), max_findings=5)
    assert (len(found.lost), found.n_further) == (5, 25)
    text = format_verification(found)
    assert "at least 5 of 150 cells are lost or wrong:" in text
    assert "    - and 25 findings more" in text
    assert not verify_store(found.uri, max_findings=0).ok


def test_a_matrix_without_any_raw_count_is_one_finding(cells, save):
    cells.X = sparse.csr_matrix(np.log1p(cells.X.toarray()) + 0.25)
    (one,) = verify_store(save(cells)).lost
    assert (one.array, one.start, one.stop) == ("X", 0, 150)


def test_progress_reaches_the_last_cell_in_sound_and_damaged_stores(path, monkeypatch):
    monkeypatch.setattr(verify, "cells_of_read", lambda *_: 1000)
    told: list[tuple[int, int]] = []
    verify_store(path, progress=lambda *done: told.append(done))
    assert told == [(1000, 1500), (1500, 1500)]
    (path / "X/data/c/0").unlink()
    verify_store(path, progress=lambda *done: told.append(done))
    assert told[-1] == (1500, 1500)


def test_a_summary_is_plain_values(path):
    (path / "X/data/c/0").unlink()
    found = json.loads(json.dumps(verify_store(path).to_dict()))
    assert (found["ok"], found["lost"][0]["array"]) == (False, "X/data")
    assert found["n_lost_cells"] == found["lost"][0]["stop"]
