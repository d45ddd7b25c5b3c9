import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from numpy.testing import assert_array_equal
from scipy import sparse

from dist_scvi.loaders import CellStore, open_store
from dist_scvi.loaders.arrays.pack_manifest import Manifest, PackSource, read_manifest
from dist_scvi.loaders.pack import job, pack
from dist_scvi.loaders.pack.pack import pack_store
from tests.loaders.store_contract import dense

SIZES = {"BLOCK_CELLS": 16, "SHARD_CELLS": 64, "SHARD_ENTRIES": 256}
# Packs argv[1] to argv[2] in many pieces and shards, slowly enough to be killed in between.
SLOW = f"""
import sys, time
from functools import partial
from dist_scvi.loaders import open_store
from dist_scvi.loaders.pack import job, pack
pack.BLOCK_CELLS, pack.SHARD_CELLS, pack.SHARD_ENTRIES = {", ".join(map(str, SIZES.values()))}
job._CHUNK_ENTRIES, job._PART_BYTES = (32, 64), (1, 2500)
pack.pack_store(partial(open_store, sys.argv[1]), sys.argv[2], progress=lambda done, total: time.sleep(0.2))
"""


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Let few cells fill several pieces, chunks and files."""
    for name, size in SIZES.items():
        monkeypatch.setattr(pack, name, size)
    monkeypatch.setattr(job, "_CHUNK_ENTRIES", (32, 64))
    monkeypatch.setattr(job, "_PART_BYTES", (1, 2500))


@pytest.fixture(scope="module")
def source(pristine, save) -> Path:
    return save(pristine)


def source_rows(store: CellStore) -> np.ndarray:
    return np.asarray(store.numeric("source_row").stored[0 : store.n_cells])


def check_equal(store: CellStore, adata: AnnData, expected_ng: np.ndarray) -> np.ndarray:
    """Compare every cell with that of the source, and give the rows of the source in the order of the store."""
    row_n = source_rows(store)
    assert_array_equal(np.sort(row_n), np.arange(150))
    assert_array_equal(dense(store.read(0, 150), 23), expected_ng[row_n])
    obs = adata.obs.iloc[row_n]
    assert list(store.obs_names(0, 150)) == list(obs.index)
    for key in ("place", "text", "lane"):
        column = store.categorical(key)
        assert list(np.array(column.vocabulary)[column.required_codes(0, 150)]) == list(obs[key].astype(str))
    assert_array_equal(store.categorical("gap").codes(0, 150) < 0, obs["gap"].isna())
    assert_array_equal(store.numeric("age").values(0, 150), obs["age"])
    return row_n


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "h5ad", "memory"])
def test_every_cell_of_every_kind_of_store_is_there_once(tmp_path, pristine, save, expected_ng, kind):
    stored = pristine if kind == "memory" else save(pristine, kind)
    manifest = pack_store(partial(open_store, stored), tmp_path / "p.zarr")
    row_n = check_equal(open_store(tmp_path / "p.zarr"), pristine, expected_ng)
    assert abs(np.corrcoef(row_n, np.arange(150))[0, 1]) < 0.3
    assert [file.name for file in tmp_path.iterdir()] == ["p.zarr"]
    assert manifest == read_manifest(tmp_path / "p.zarr")
    assert (manifest.n_entries, manifest.counts_dtype, manifest.genes_dtype) == (
        (expected_ng > 0).sum(),
        "uint16",
        "uint16",
    )


def test_the_manifest_tells_what_was_packed_and_how(tmp_path, source, expected_ng):
    manifest = pack_store(partial(open_store, source, layer="twice"), tmp_path / "p.zarr", seed=3, group_by="place")
    found = open_store(source, layer="twice")
    assert manifest == Manifest(
        format_version=1,
        source=PackSource(str(source), getattr(found, "layer", None), 150, 23, found.n_entries),
        n_cells=150,
        n_genes=23,
        n_entries=int((expected_ng > 0).sum()),
        count_sum=int(2 * expected_ng.sum()),
        seed=3,
        group_by="place",
        codec="lz4hc",
        counts_dtype="uint16",
        genes_dtype="uint16",
        chunk_entries=64,
        shard_entries=256,
        block_cells=16,
        shard_cells=64,
    )


def test_genes_and_columns_are_those_asked_for(tmp_path, source, expected_ng):
    genes = ["g7", "g22", "g0"]
    pack_store(partial(open_store, source), tmp_path / "p.zarr", genes=genes, obs_columns=["age"])
    store = open_store(tmp_path / "p.zarr")
    assert (list(store.var_names), store.obs_columns()) == (genes, ["age", "source_row"])
    assert_array_equal(dense(store.read(0, 150), 3), expected_ng[source_rows(store)][:, [7, 22, 0]])


def test_the_columns_of_the_genes_are_kept(tmp_path, cells, save):
    cells.var["symbol"] = [f"SYM{gene}" for gene in range(23)]
    cells.var["kind"] = pd.Categorical(["a", None] * 11 + ["b"])
    cells.var["length"], cells.var["known"] = np.arange(23), np.arange(23) % 2 == 0
    pack_store(partial(open_store, save(cells)), tmp_path / "p.zarr", genes=["g7", "g22", "g0"])
    for var in (open_store(tmp_path / "p.zarr").read_var(), anndata.read_zarr(tmp_path / "p.zarr").var):
        assert list(var.columns) == ["symbol", "kind", "length", "known"]
        assert list(var["symbol"]) == ["SYM7", "SYM22", "SYM0"]
        assert list(var["kind"]) == ["", "b", "a"]
        assert list(var["length"]) == [7, 22, 0]
        assert list(var["known"]) == [False, True, True]


def test_groups_lie_together_shuffled_and_the_rest_last(tmp_path, source):
    pack_store(partial(open_store, source), tmp_path / "p.zarr", group_by="gap")
    store = open_store(tmp_path / "p.zarr")
    codes_n = store.categorical("gap").codes(0, 150)
    assert_array_equal(codes_n, np.repeat([0, 1, -1], [(codes_n == code).sum() for code in (0, 1, -1)]))
    assert not (np.diff(source_rows(store)[codes_n == 0]) > 0).all()


def test_the_seed_makes_the_order_and_none_keeps_it(tmp_path, source):
    orders = {}
    for seed in (0, 1, None):
        pack_store(partial(open_store, source), tmp_path / f"{seed}.zarr", seed=seed)
        orders[seed] = source_rows(open_store(tmp_path / f"{seed}.zarr")).tolist()
    assert orders[None] == list(range(150))
    assert orders[0] != orders[1] != orders[None] != orders[0]


def test_a_packed_store_is_packed_again_with_the_rows_of_the_first_source(tmp_path, pristine, source, expected_ng):
    pack_store(partial(open_store, source), tmp_path / "a.zarr")
    pack_store(partial(open_store, tmp_path / "a.zarr"), tmp_path / "b.zarr", seed=1)
    first = check_equal(open_store(tmp_path / "a.zarr"), pristine, expected_ng)
    second = check_equal(open_store(tmp_path / "b.zarr"), pristine, expected_ng)
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("codec", ["lz4hc", "lz4", "zstd"])
def test_anndata_reads_it_and_scipy_computes_with_it(tmp_path, source, expected_ng, codec):
    pack_store(partial(open_store, source), tmp_path / "p.zarr", codec=codec)
    adata = anndata.read_zarr(tmp_path / "p.zarr")
    assert (adata.X.data.dtype, adata.X.indices.dtype) == (np.uint16, np.uint16)
    assert list(adata.obs_names) == [f"cell{row}" for row in adata.obs["source_row"]]
    assert adata.uns["dist_scvi_pack"]["block_counts"].sum() == expected_ng.sum()
    counts = sparse.csr_matrix((adata.X.data, adata.X.indices, adata.X.indptr), adata.shape)
    assert_array_equal(counts.toarray(), expected_ng[adata.obs["source_row"]])
    assert counts.multiply(2).sum() == 2 * expected_ng.sum()


def test_for_annbatch_the_same_lies_one_level_down(tmp_path, source):
    pack_store(partial(open_store, source), tmp_path / "a.zarr", as_annbatch=True)
    pack_store(partial(open_store, source), tmp_path / "b.zarr")
    assert dict(zarr.open_group(tmp_path / "a.zarr", mode="r").attrs) == {
        "encoding-type": "annbatch-preshuffled",
        "encoding-version": "0.1.0",
    }
    assert files_of(tmp_path / "a.zarr" / "dataset_0") == files_of(tmp_path / "b.zarr")
    assert read_manifest(tmp_path / "a.zarr") == read_manifest(tmp_path / "b.zarr")


def test_two_processes_and_another_memory_give_the_same_bytes(tmp_path, source, monkeypatch):
    told = []
    pack_store(partial(open_store, source), tmp_path / "a.zarr", group_by="place")
    monkeypatch.setattr(job, "_PART_BYTES", (1, 6000))
    pack_store(
        partial(open_store, source),
        tmp_path / "b.zarr",
        group_by="place",
        processes=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert files_of(tmp_path / "a.zarr") == files_of(tmp_path / "b.zarr")
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (300, 300)


def test_an_error_in_a_process_comes_back_as_it_was(tmp_path, cells, save):
    cells.X.data[cells.X.indptr[75]] = 0.5  # in no row that is read to plan
    with pytest.raises(
        ValueError, match=r"^X of .* holds 0\.5 at row 75, gene \d+: SCVI needs raw counts.*data.layer=NAME"
    ):
        pack_store(partial(open_store, save(cells)), tmp_path / "p.zarr", processes=2)


def test_a_run_that_was_killed_is_gone_on_with_and_ends_with_the_same_bytes(tmp_path, source):
    whole = []
    pack_store(partial(open_store, source), tmp_path / "whole.zarr", progress=lambda done, _: whole.append(done))
    folder = tmp_path / "p.zarr.partial"
    kills = {
        left: kill_when(source, tmp_path / f"q{at}.zarr", left)
        for at, left in enumerate(["pieces/000003", "done/shard000001.npy"])
    }
    shutil.copytree(kills["pieces/000003"], tmp_path / "begun")
    for left in (*kills, "complete", "moved"):
        if left in kills:
            kills[left].rename(folder)
        else:  # the last moments: whole, and at its place with the work still there
            shutil.copytree(tmp_path / "begun", folder)
            (folder / "complete").touch()
            shutil.rmtree(folder / "store", ignore_errors=True)
            shutil.copytree(tmp_path / "whole.zarr", folder / "store" if left == "complete" else tmp_path / "p.zarr")
        told = []
        pack_store(
            partial(open_store, source), tmp_path / "p.zarr", progress=lambda done, _, told=told: told.append(done)
        )
        assert files_of(tmp_path / "p.zarr") == files_of(tmp_path / "whole.zarr")
        assert not folder.exists()
        assert len(told) < len(whole)
        shutil.rmtree(tmp_path / "p.zarr")


def kill_when(source: Path, path: Path, left: str) -> Path:
    """Pack `source` in another process until the file `left` appears, and kill it."""
    folder = path.with_name(f"{path.name}.partial")
    with subprocess.Popen([sys.executable, "-c", SLOW, str(source), str(path)]) as process:
        end = time.monotonic() + 120
        while not (folder / left).exists():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not path.exists()
    return folder


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = (
        "import os, sys, time; from concurrent.futures import ProcessPoolExecutor; import multiprocessing\n"
        "from dist_scvi.loaders.pack.pack import _end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), initializer=_end_with_parent)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "starts.py").write_text(script)
    with subprocess.Popen([sys.executable, tmp_path / "starts.py"], stdout=subprocess.PIPE) as process:
        worker = int(process.stdout.readline())
        process.kill()
        process.wait()
    end = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and "zombie" not in Path(f"/proc/{worker}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_process_that_is_lost_is_told_of(tmp_path):
    report = pack._Report(1, None)
    with (
        pack._workers(2, pack._end_with_parent) as pool,
        pytest.raises(RuntimeError, match=r"a process that packed was lost, .* start again to go on"),
    ):
        pack._run({"lost": partial(os._exit, 9)}, pool, report)


def test_two_runs_do_not_work_in_one_folder(tmp_path, source):
    with (
        pack._alone(tmp_path / "p.zarr.partial"),
        pytest.raises(ValueError, match=r"another process is packing in .*p\.zarr\.partial: wait for it"),
    ):
        pack_store(partial(open_store, source), tmp_path / "p.zarr")


def test_a_store_is_replaced_only_where_that_is_asked_for(tmp_path, source):
    pack_store(partial(open_store, source), tmp_path / "p.zarr")
    with pytest.raises(FileExistsError, match=r"p\.zarr already exists: .*overwrite=True"):
        pack_store(partial(open_store, source), tmp_path / "p.zarr", seed=1)
    pack_store(partial(open_store, source), tmp_path / "p.zarr", seed=1, overwrite=True)
    assert read_manifest(tmp_path / "p.zarr").seed == 1
    assert [file.name for file in tmp_path.iterdir()] == ["p.zarr"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"genes": ["g100"]}, "lacks 1 of 1 genes: 'g100' "),
        ({"obs_columns": ["donor"]}, "no obs column 'donor'"),
        ({"group_by": "donor"}, "no obs column 'donor'"),
        ({"codec": "gzip"}, "codec='gzip' is not known"),
        ({"memory_bytes": 1 << 20}, "1 MiB are too little"),
        ({"processes": 0}, "processes=0"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(tmp_path, source, asked, message):
    with pytest.raises(ValueError, match=message):
        pack_store(partial(open_store, source), tmp_path / "p.zarr", **asked)
    assert list(tmp_path.iterdir()) == []


def test_no_store_is_packed_into_itself(source):
    with pytest.raises(ValueError, match="holds the source"):
        pack_store(partial(open_store, source), source, overwrite=True)
    with pytest.raises(ValueError, match="lies inside the Zarr store"):
        pack_store(partial(open_store, source), source / "X" / "packed")


MEASURE = """
import resource, sys
import numpy as np
import pandas as pd
from dist_scvi.loaders import open_store
from dist_scvi.loaders.pack import job, pack
from dist_scvi.loaders.arrays.csr_rows import CsrRows

class Endless:
    uri, n_entries, chunk_cells = "endless", 0, 64
    var_names = np.array([f"g{gene}" for gene in range(1000)], dtype=object)
    def __init__(self, n_cells):
        self.n_cells, self.n_entries = n_cells, n_cells * 500
    def read(self, start, stop):
        n = stop - start
        genes_e = np.tile(np.arange(0, 1000, 2, dtype=np.uint16), n)
        return CsrRows(np.ones(n * 500, np.uint8), genes_e, np.arange(n + 1) * 500)
    def obs_columns(self):
        return []
    def read_var(self):
        return pd.DataFrame(index=self.var_names)
    def obs_names(self, start, stop):
        return np.array([f"cell{row}" for row in range(start, stop)], dtype=object)
    def close(self):
        pass

pack.SHARD_ENTRIES, pack.SHARD_CELLS = 1 << 20, 1 << 14
job._PART_BYTES = (1, 8 << 20)
peaks = []
for n_cells in (2000, int(sys.argv[2])):
    pack.pack_store(lambda: Endless(n_cells), f"{sys.argv[1]}/{n_cells}.zarr", codec="lz4")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_cells(tmp_path):
    n_cells = 80_000  # 40 million entries, 160 MB as they are sorted
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path, str(n_cells)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 100, "MiB more than for 2,000 cells"
