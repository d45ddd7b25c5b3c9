from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dist_scvi.loaders import open_store
from dist_scvi.loaders.pack import scatter
from dist_scvi.loaders.pack.scatter import (
    count_groups,
    list_parts,
    open_columns,
    record_bytes,
    unfinished_pieces,
    write_piece,
)
from dist_scvi.loaders.pack.sorted_parts import ROWS, gather_records, joint_types, sum_edges
from tests.loaders.pack.test_job import JOB


@pytest.fixture
def job(pristine):
    return replace(JOB, genes=tuple(pristine.var_names), obs_columns=("place", "text", "lane", "gap", "age"))


def move(folder, adata, job, *, part_bytes=1 << 20):
    """Move all pieces of `adata` and give the parts and their records, in the new order."""
    source = open_columns(open_store(adata), job)
    before_pg = count_groups(source)
    for number in unfinished_pieces(folder, job):
        groups = {"before_g": before_pg[number], "size_g": before_pg[-1]}
        low, high = job.piece_span(number)
        assert write_piece(source, folder, number, **groups, part_bytes=part_bytes) == high - low
    parts = list_parts(folder)
    edges = sum_edges(parts)
    assert edges[-1, ROWS] == adata.n_obs
    return parts, gather_records(parts, edges, 0, job.n_blocks, joint_types(parts)[1])


def test_every_column_goes_with_its_row(tmp_path, pristine, job):
    _, records_n = move(tmp_path, pristine, job)
    obs = pristine.obs.iloc[records_n["row"]]
    assert sorted(records_n["row"]) == list(range(150))
    assert list(np.char.decode(records_n["name"], "utf-8")) == list(obs.index)
    assert_array_equal(np.array(["s1", "s10", "s2"])[records_n["0"]], obs["place"].astype(str))
    assert_array_equal(np.array([f"t{number}" for number in range(7)])[records_n["1"]], obs["text"])
    assert_array_equal(records_n["2"], obs["lane"])
    assert_array_equal(records_n["3"] < 0, obs["gap"].isna())
    assert_array_equal(records_n["4"], obs["age"])
    kinds = [records_n.dtype[str(number)] for number in range(5)]
    assert kinds == [np.int8, np.int8, pristine.obs["lane"].dtype, np.int8, np.float64]


@pytest.mark.parametrize("piece_cells", [1, 37, 150, 1000])
def test_the_order_does_not_depend_on_the_pieces_or_parts(tmp_path, pristine, job, piece_cells, monkeypatch):
    monkeypatch.setattr(scatter, "read_cells", lambda _: 8)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    wanted = move(tmp_path / "a", pristine, job)[1]
    parts, found = move(tmp_path / "b", pristine, replace(job, piece_cells=piece_cells), part_bytes=600)
    assert_array_equal(found["row"], wanted["row"])
    assert len(parts) >= max(150 // piece_cells, 5)


def test_rows_are_sorted_and_written_before_they_grow_beyond_the_memory_given(tmp_path, pristine, job, monkeypatch):
    monkeypatch.setattr(scatter, "read_cells", lambda _: 4)
    parts, _ = move(tmp_path, pristine, job, part_bytes=1000)
    for part in parts:
        assert sum(np.load(part / f"{name}.npy").nbytes for name in ("counts", "genes", "records")) < 2500


@pytest.mark.parametrize("key", ["place", "gap", "lane"])
def test_groups_lie_one_after_another_and_rows_without_one_come_last(tmp_path, pristine, job, key):
    _, records_n = move(tmp_path, pristine, replace(job, group_by=key))
    grouped = pristine.obs[key].astype(str).where(pristine.obs[key].notna(), "~").iloc[records_n["row"]].tolist()
    assert grouped == sorted(grouped)
    assert not (np.diff(records_n["row"]) > 0).all()


def test_without_a_seed_the_order_of_the_source_is_kept(tmp_path, pristine, job):
    _, records_n = move(tmp_path, pristine, replace(job, seed=None))
    assert_array_equal(records_n["row"], np.arange(150))


def test_pieces_that_are_there_are_not_written_again(tmp_path, pristine, job):
    move(tmp_path, pristine, job)
    assert unfinished_pieces(tmp_path, job) == []
    (tmp_path / "000002").rename(tmp_path / ".000002.77")
    assert unfinished_pieces(tmp_path, job) == [2]
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["000000", "000001", "000003"]


def test_names_of_any_alphabet_are_kept(tmp_path, cells, job):
    cells.obs_names = [f"Zelle-ü{row}-細胞" for row in range(150)]
    _, records_n = move(tmp_path, cells, job)
    assert list(np.char.decode(records_n["name"], "utf-8")) == list(cells.obs_names[records_n["row"]])


def test_the_room_for_a_row_is_foreseen(tmp_path, pristine, job):
    _, records_n = move(tmp_path, pristine, job)
    assert 0 <= record_bytes(open_columns(open_store(pristine), job)) - records_n.itemsize <= 8
