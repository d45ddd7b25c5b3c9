"""The table of cells is read by range, and what is lost or of another length is refused."""

import numpy as np
import pytest

from dist_scvi.loaders import open_store


@pytest.fixture
def path(cells, save):
    return save(cells)


def test_an_obs_column_of_another_length_is_refused(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/place/codes", np.zeros(149, dtype=np.int8))
    with pytest.raises(ValueError, match=r"obs/place of .* has 149 values for 150 cells"):
        open_store(path).categorical("place")


@pytest.mark.parametrize("name", ["_index", "place/categories"])
def test_a_lost_chunk_of_names_is_refused(path, name) -> None:
    for file in [part for part in (path / "obs" / name / "c").rglob("*") if part.is_file()]:
        file.unlink()
    with pytest.raises(ValueError, match=f"obs/{name} of .* lacks 1 of 1 chunks"):
        open_store(path).categorical("place")


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "h5ad"])
def test_names_of_any_range_are_those_of_the_cells(cells, save, kind):
    store = open_store(save(cells, kind))
    for start, stop in ((0, 3), (70, 71), (149, 150), (20, 20)):
        assert list(store.obs_names(start, stop)) == [f"cell{row}" for row in range(start, stop)]


def test_a_truncated_chunk_of_names_is_refused_with_its_place(path):
    file = next(part for part in (path / "obs" / "_index" / "c").rglob("*") if part.is_file())
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"obs/_index of .* cannot be read at 0 to 4: a chunk is truncated"):
        open_store(path).obs_names(0, 5)


@pytest.mark.parametrize("name", ["var/_index", "obs/place/categories"])
def test_truncated_names_are_refused_with_their_place(path, name):
    file = next(part for part in (path / name / "c").rglob("*") if part.is_file())
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{name} of .* cannot be read at 0 to .*: a chunk is truncated or damaged"):
        open_store(path).categorical("place")


@pytest.mark.parametrize("content", ["[]", "{", "3", '{"zarr_format": 3, "node_type": "groop"}'])
def test_damaged_metadata_is_refused(path, content):
    (path / "zarr.json").write_text(content)
    with pytest.raises(ValueError, match=r"zarr.json (holds a|is not valid) JSON|is no Zarr group: the folder"):
        open_store(path)


def test_a_table_of_an_older_anndata_is_refused_with_the_way_out(cells, save):
    import h5py

    where = save(cells, "h5ad")
    with h5py.File(where, "a") as file:
        for name in ("encoding-type", "encoding-version"):
            del file["obs"].attrs[name]
    with pytest.raises(ValueError, match=r"obs of .* is no data frame of AnnData 0\.7 or later"):
        open_store(where)
