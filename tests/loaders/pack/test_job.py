import json
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dist_scvi.loaders import open_store
from dist_scvi.loaders.arrays.pack_manifest import PackSource
from dist_scvi.loaders.pack import job
from dist_scvi.loaders.pack.job import (
    Budget,
    PackJob,
    Probe,
    begin_job,
    check_codec,
    check_columns,
    check_disk,
    check_genes,
    check_place,
    chunk_entries,
    gene_places,
    plan_pieces,
    probe_store,
    read_cells,
)

JOB = PackJob(
    source=PackSource("a.zarr", None, 150, 23, 900),
    fingerprint=7,
    seed=0,
    group_by=None,
    genes=("g0", "g1"),
    obs_columns=("place",),
    codec="lz4hc",
    as_annbatch=False,
    block_cells=16,
    shard_cells=64,
    shard_entries=256,
    piece_cells=40,
)
LARGE = replace(
    JOB, source=PackSource("a.zarr", None, 10**8, 60_000, 10**11), shard_cells=1 << 20, shard_entries=1 << 24
)


@given(st.integers(1 << 20, 1 << 38), st.integers(1, 64), st.integers(40, 400), st.sampled_from([1, 2, 4]))
def test_all_processes_together_keep_within_the_memory_or_are_refused(
    memory_bytes, processes, record_bytes, counts_bytes
):
    budget = Budget(memory_bytes, processes)
    try:
        budget.check(LARGE, counts_bytes=counts_bytes, record_bytes=record_bytes)
    except ValueError as error:
        needed = int(str(error).split("give ")[1].split(" MiB")[0]) << 20
        assert needed > memory_bytes
        Budget(needed, processes).check(LARGE, counts_bytes=counts_bytes, record_bytes=record_bytes)
        return
    others = processes + (processes > 1)
    sorting = job._READ_BYTES + job._PART_COPIES * budget.part_bytes
    writing = 3 * LARGE.shard_entries * (counts_bytes + 2)
    tables = 3 * LARGE.shard_cells * record_bytes
    assert others * job._PROCESS_BYTES + processes * max(sorting, writing, tables) <= memory_bytes
    assert budget.part_bytes >= job._PART_BYTES[0]


@given(
    st.integers(1 << 30, 1 << 36), st.integers(1, 16), st.floats(1, 60_000), st.integers(1, 10**9), st.integers(1, 500)
)
def test_a_piece_is_sorted_at_once_and_each_process_gets_several(
    memory_bytes, processes, entries, n_cells, chunk_cells
):
    budget = Budget(memory_bytes, processes)
    assume(budget.part_bytes > job._PART_BYTES[0])
    planned = replace(JOB, source=PackSource("a", None, n_cells, 23, 10))
    planned = plan_pieces(planned, budget, Probe(0, entries, 2), record_bytes=100, chunk_cells=chunk_cells)
    assert planned.piece_cells * (entries * 4 + 108) <= budget.part_bytes
    assert planned.piece_cells % chunk_cells == 0 or planned.piece_cells < chunk_cells
    assert processes == 1 or n_cells < 100 * chunk_cells * processes or planned.n_pieces > 3 * processes
    spans = [planned.piece_span(number) for number in (0, planned.n_pieces - 1)]
    assert (spans[0][0], spans[1][1]) == (0, n_cells)
    assert spans[1][0] < spans[1][1]


@given(st.integers(1, 10**8), st.integers(0, 60_000))
def test_a_chunk_holds_32_to_64_mean_rows_and_a_round_number_of_entries(n_cells, mean):
    entries = chunk_entries(n_cells * mean, n_cells)
    assert entries.bit_count() == 1
    assert 1024 <= entries <= 1 << 20
    if 32 <= mean <= 1 << 14:
        assert 32 * mean < entries <= 64 * mean


def test_too_little_memory_is_refused_with_what_is_needed():
    with pytest.raises(ValueError, match=r"0 MiB are too little for 2 processes: .* give \d+ MiB .*, or fewer"):
        Budget(1000, 2).check(LARGE, counts_bytes=1, record_bytes=50)
    with pytest.raises(ValueError, match="processes=0: at least 1 is needed"):
        Budget(1 << 40, 0).check(LARGE, counts_bytes=1, record_bytes=50)


def test_a_full_disk_is_foreseen(tmp_path):
    endless = replace(LARGE, source=PackSource("a", None, 10**13, 10, 10**16))
    with pytest.raises(
        ValueError, match=r"has [\d,]+ bytes free, about [\d,]+ are needed to pack 10,000,000,000,000 cells"
    ):
        check_disk(tmp_path / "x" / "a.partial", endless, Probe(0, 1000.0, 2), record_bytes=50)
    check_disk(tmp_path / "x" / "a.partial", JOB, Probe(0, 10.0, 2), record_bytes=50)


def test_what_lies_there_already_counts_as_room(tmp_path, monkeypatch):
    monkeypatch.setattr(job.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000})())
    needed = 150 * (10 * 6 + 2 * 50)
    with pytest.raises(ValueError, match=f"has 10,000 bytes free, about {needed:,} are needed"):
        check_disk(tmp_path / "a.partial", JOB, Probe(0, 10.0, 2), record_bytes=50)
    (tmp_path / "a.partial" / "pieces").mkdir(parents=True)
    (tmp_path / "a.partial" / "pieces" / "x").write_bytes(bytes(needed - 10_000))
    check_disk(tmp_path / "a.partial", JOB, Probe(0, 10.0, 2), record_bytes=50)


def test_a_probe_tells_stores_apart_and_the_same_one_never(pristine, cells):
    probe = probe_store(open_store(pristine), pristine.var_names)
    assert probe == probe_store(open_store(pristine), pristine.var_names)
    assert probe.counts_bytes == 2
    assert 4 < probe.cell_entries < 9
    twice = probe_store(open_store(pristine, layer="twice"), pristine.var_names)
    cells.obs_names = [f"{name}x" for name in cells.obs_names]
    assert len({probe.fingerprint, twice.fingerprint, probe_store(open_store(cells), cells.var_names).fingerprint}) == 3
    assert probe_store(open_store(pristine), ["g4"]).cell_entries < 1


def test_whole_chunks_are_read_and_no_more_than_fits(pristine, monkeypatch):
    store = open_store(pristine)
    monkeypatch.setattr(job, "_READ_ENTRIES", 500)
    fitting = 500 * 150 // store.n_entries
    for chunk_cells, read in ((1, fitting), (10, fitting // 10 * 10), (1000, fitting)):
        store.chunk_cells = chunk_cells
        assert read_cells(store) == read


def test_genes_are_kept_in_the_order_given(pristine):
    store = open_store(pristine)
    assert check_genes(store, None) == tuple(pristine.var_names)
    assert check_genes(store, ["g3", "g1"]) == ("g3", "g1")
    assert gene_places(store, ["g3", "g1"]).tolist() == [-1, 1, -1, 0] + [-1] * 19


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (["g1", "G22"], r"lacks 1 of 2 genes: 'G22' \(did you mean 'g22'.* give names of the store's var"),
        (["g1", "g1"], "genes names 2, 1 of them different: give each once, at least one"),
        ([], "genes names 0, 0 of them different"),
    ],
)
def test_genes_that_cannot_be_kept_are_refused(pristine, genes, message):
    with pytest.raises(ValueError, match=message):
        check_genes(open_store(pristine), genes)


def test_columns_that_are_not_there_are_refused(pristine):
    store = open_store(pristine)
    assert check_columns(store, None, "place") == ("place", "text", "lane", "gap", "age")
    assert check_columns(store, ["age", "age"], None) == ("age",)
    with pytest.raises(ValueError, match="no obs column 'plaec': did you mean 'place'"):
        check_columns(store, ["plaec"], None)
    with pytest.raises(ValueError, match="no obs column 'donor'"):
        check_columns(store, [], "donor")


def test_the_row_in_the_source_is_added_unless_a_column_has_that_name():
    assert JOB.columns == ("place", "source_row")
    assert replace(JOB, obs_columns=("source_row", "place")).columns == ("source_row", "place")


def test_a_codec_that_is_not_known_is_refused():
    assert check_codec("zstd") == "zstd"
    with pytest.raises(ValueError, match="codec='gzip' is not known: give one of lz4hc, lz4, zstd"):
        check_codec("gzip")


def test_no_store_is_written_into_another_or_over_its_source(tmp_path):
    (tmp_path / "a.zarr" / "X").mkdir(parents=True)
    (tmp_path / "a.zarr" / "zarr.json").touch()
    with pytest.raises(ValueError, match=r"X/b lies inside the Zarr store .*a\.zarr: choose a path beside it"):
        check_place(tmp_path / "a.zarr" / "X" / "b", "elsewhere")
    for source in (tmp_path / "a.zarr", tmp_path / "a.zarr" / "cells.h5ad"):
        with pytest.raises(ValueError, match=r"a\.zarr holds the source .* itself: choose another path"):
            check_place(tmp_path / "a.zarr", str(source))
    check_place(tmp_path / "b.zarr", str(tmp_path / "a.zarr"))
    check_place(tmp_path / "b.zarr", "s3://bucket/a.zarr")


def test_a_job_goes_on_with_the_pieces_it_began_with(tmp_path):
    assert begin_job(tmp_path, JOB) == JOB
    assert begin_job(tmp_path, replace(JOB, piece_cells=9)) == JOB


def test_another_job_is_not_mixed_into_one_that_was_begun(tmp_path):
    begin_job(tmp_path, JOB)
    other = replace(JOB, seed=1, genes=tuple(f"g{number}" for number in range(40)))
    with pytest.raises(
        ValueError,
        match=r"holds another pack that was not finished: seed was 0 and is 1; genes was \['g0', 'g1'\] and is",
    ):
        begin_job(tmp_path, other)


def test_a_folder_of_something_else_is_not_worked_in(tmp_path):
    (tmp_path / "photographs").mkdir()
    with pytest.raises(
        ValueError, match=r"is in the way and is no unfinished pack \(it holds photographs\): remove it"
    ):
        begin_job(tmp_path, JOB)


def test_a_job_is_noted_down_as_json(tmp_path):
    begin_job(tmp_path, JOB)
    assert json.loads((tmp_path / "job.json").read_text())["source"]["n_cells"] == 150
    assert [file.name for file in tmp_path.iterdir()] == ["job.json"]
