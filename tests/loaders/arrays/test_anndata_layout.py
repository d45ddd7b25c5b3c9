"""What is written is an AnnData, and a lost part of it never reads as zeros."""

import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import zarr

from dist_scvi.loaders.arrays.anndata_layout import (
    check_free,
    code_type,
    finish_table,
    new_array,
    new_categorical,
    new_root,
    new_strings,
    replace_folder,
)


@pytest.fixture
def folder(tmp_path):
    root = new_root(tmp_path / "a.zarr", ["g0", "g1"])
    obs = root.create_group("obs")
    new_strings(obs, "_index", 6)[:] = np.array([f"c{row}" for row in range(6)], dtype=object)
    new_categorical(obs, "kind", ["a", "b"], 6, chunk_rows=2)[:] = np.array([0, 0, 0, 0, 1, -1])
    new_array(obs, "size", (6,), np.float32, chunk_rows=2, shard_rows=4)[:] = np.zeros(6)
    new_array(root, "obsm/place", (6, 3), np.int32, chunk_rows=2)[:] = np.zeros((6, 3))
    finish_table(obs, ["kind", "size"])
    return tmp_path / "a.zarr"


def test_anndata_opens_it(folder):
    adata = anndata.read_zarr(folder)
    assert list(adata.obs_names) == [f"c{row}" for row in range(6)]
    assert list(adata.var_names) == ["g0", "g1"]
    assert adata.obs["kind"].isna().tolist() == [False] * 5 + [True]
    assert adata.obsm["place"].shape == (6, 3)


@pytest.mark.parametrize("name", ["obs/kind/codes", "obs/size", "obsm/place"])
def test_chunks_of_zeros_are_written_and_a_lost_one_does_not_read_as_zeros(folder, name):
    files = sorted(part for part in (folder / name / "c").rglob("*") if part.is_file())
    assert len(files) == (2 if name == "obs/size" else 3)
    files[0].unlink()
    lost = np.asarray(zarr.open_group(folder, mode="r")[name][:2])
    assert np.isnan(lost).all() if name == "obs/size" else (lost == -1).all()


@pytest.mark.parametrize(("n", "expected"), [(1, np.int8), (127, np.int8), (128, np.int16), (40_000, np.int32)])
def test_codes_take_the_type_that_pandas_gives_them(n, expected):
    assert code_type(n) == expected


# Replaces a store again and again, each time in a child that is killed just before one more change of the disk.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from dist_scvi.loaders.arrays.anndata_layout import replace_folder
changes = ("os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "shutil.rmtree")
at = -1
def boundary(event, _):
    global at
    if at >= 0 and event in changes:
        if at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        at -= 1
sys.addaudithook(boundary)
for turn in range(100):
    folder = Path(sys.argv[1], str(turn))
    for name, content in (("store", "old"), ("new", "new")):
        (folder / name / "X").mkdir(parents=True)
        (folder / name / "zarr.json").write_text(content)
        (folder / name / "X" / content).write_text("")
    (folder / "store" / "obsp").mkdir()
    (folder / "store" / "plots" / "deep").mkdir(parents=True)
    (folder / "store" / "plots" / "deep" / "umap.png").write_text("mine")
    (folder / "store" / "notes.txt").write_text("mine")
    child = os.fork()
    if child == 0:
        at = turn
        replace_folder(folder / "new", folder / "store")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def test_killed_at_any_instant_one_store_is_whole_and_the_files_of_others_are_in_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, timeout=100)
    turns = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert 15 < len(turns) < 100
    for turn in turns:
        store = turn / "store"
        if store.exists():
            content = (store / "zarr.json").read_text()
            assert [path.name for path in (store / "X").iterdir()] == [content]
        else:  # between two renames
            store = turn / "store.replaced"
        assert (store / "notes.txt").read_text() == (store / "plots" / "deep" / "umap.png").read_text() == "mine"
        replace_folder(turn / "new", turn / "store")  # goes on
        store = turn / "store"
        assert {path.relative_to(turn).as_posix() for path in turn.rglob("*") if path.is_file()} == {
            *("store/zarr.json", "store/X/new", "store/notes.txt", "store/plots/deep/umap.png")
        }
        assert (store / "notes.txt").read_text() == "mine"
        assert not (store / "obsp").exists()


def test_a_store_may_be_written_to_a_folder_that_holds_other_things_but_not_over_them(tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_text("mine")
    check_free(tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match="already exists: choose another path, or allow it"):
        check_free(tmp_path, overwrite=False)
    (tmp_path / "raw").mkdir()
    with pytest.raises(FileExistsError, match="is not a Zarr folder and holds raw, which a store would replace"):
        check_free(tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file and is not replaced"):
        check_free(tmp_path / "figure.png", overwrite=True)
