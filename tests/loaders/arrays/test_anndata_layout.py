"""What is written is an AnnData, and a lost part of it never reads as zeros."""

import anndata
import numpy as np
import pytest
import zarr

from dist_scvi.loaders.arrays.anndata_layout import (
    code_type,
    finish_table,
    new_array,
    new_categorical,
    new_root,
    new_strings,
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
