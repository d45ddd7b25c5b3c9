import itertools

import anndata
import numpy as np
import pytest
from anndata import AnnData
from numpy.testing import assert_array_equal

from dist_scvi.loaders import open_store
from dist_scvi.loaders.arrays import anndata_writer
from dist_scvi.loaders.arrays.anndata_writer import AnnDataZarrWriter
from dist_scvi.loaders.arrays.csr_rows import CsrRows, concatenate
from tests.loaders.store_contract import dense


@pytest.fixture
def small_files(monkeypatch):
    """Let few cells fill several shards."""
    monkeypatch.setattr(anndata_writer, "_CHUNK_ENTRIES", (32, 64))
    monkeypatch.setattr(anndata_writer, "_SHARD_ENTRIES", 256)
    monkeypatch.setattr(anndata_writer, "_CHUNK_ROWS", 16)
    monkeypatch.setattr(anndata_writer, "_SHARD_ROWS", 64)


def write_cells(path, adata: AnnData, cuts=(0, 150), *, overwrite=False, layer=None) -> None:
    """Write `adata` with the obs columns place, gap and age, one append between each two cuts."""
    source = open_store(adata, layer=layer)
    columns = {key: source.categorical(key) for key in ("place", "gap")}
    with AnnDataZarrWriter(
        path,
        var_names=list(source.var_names),
        categories={key: column.vocabulary for key, column in columns.items()},
        numeric=["age"],
        overwrite=overwrite,
    ) as writer:
        for low, high in itertools.pairwise(cuts):
            obs = {key: column.codes(low, high) for key, column in columns.items()}
            obs["age"] = source.numeric("age").values(low, high)
            writer.append(source.read(low, high), obs_names=source.obs_names(low, high), obs=obs)


def row_of_zeros(n_cells=1) -> CsrRows:
    return CsrRows(np.zeros(0, np.uint8), np.zeros(0, np.uint16), np.zeros(n_cells + 1, np.int64))


@pytest.mark.parametrize("cuts", [(0, 150), (0, 1, 5, 6, 70, 149, 150), (0, 0, 150)])
def test_cells_are_read_back_however_they_came(small_files, tmp_path, cells, expected_ng, cuts):
    write_cells(tmp_path / "a.zarr", cells, cuts)
    store = open_store(tmp_path / "a.zarr")
    assert_array_equal(dense(store.read(0, 150), 23), expected_ng)
    assert (list(store.var_names), list(store.obs_names(0, 150))) == (list(cells.var_names), list(cells.obs_names))
    for key in ("place", "gap"):
        assert_array_equal(store.categorical(key).codes(0, 150), open_store(cells).categorical(key).codes(0, 150))
    assert_array_equal(store.numeric("age").values(0, 150), cells.obs["age"])


def test_anndata_reads_what_was_written(small_files, tmp_path, cells, expected_ng):
    write_cells(tmp_path / "a.zarr", cells, (0, 60, 150))
    adata = anndata.read_zarr(tmp_path / "a.zarr")
    assert_array_equal(adata.X.toarray(), expected_ng)
    assert (adata.X.data.dtype, adata.X.indices.dtype, adata.X.indptr.dtype) == ("uint16", "int32", "int32")
    assert adata.X.multiply(2).sum() == 2 * expected_ng.sum()  # scipy refuses to compute with index types that differ
    assert list(adata.obs["gap"].isna()) == list(cells.obs["gap"].isna())
    assert list(adata.obs["place"]) == list(cells.obs["place"])
    assert (list(adata.obs_names), list(adata.var_names)) == (list(cells.obs_names), list(cells.var_names))


@pytest.mark.parametrize("at", [3, 140])
def test_a_count_too_large_for_uint16_widens_the_store(small_files, tmp_path, cells, expected_ng, at):
    cells.X.data[cells.X.indptr[at]] = 70_000
    write_cells(tmp_path / "a.zarr", cells, (0, 2, 139, 145, 150))
    adata = anndata.read_zarr(tmp_path / "a.zarr")
    assert_array_equal(adata.X.toarray(), cells.X.toarray())
    assert adata.X.dtype == np.uint32
    assert sorted(folder.name for folder in (tmp_path / "a.zarr" / "X").iterdir() if folder.is_dir()) == [
        "data",
        "indices",
        "indptr",
    ]


def test_the_same_cells_give_the_same_bytes(small_files, tmp_path, cells):
    for name in ("a.zarr", "b.zarr"):
        write_cells(tmp_path / name, cells, (0, 50, 150))
    files = sorted(file.relative_to(tmp_path / "a.zarr") for file in (tmp_path / "a.zarr").rglob("*") if file.is_file())
    assert len(files) > 25
    for file in files:
        assert (tmp_path / "a.zarr" / file).read_bytes() == (tmp_path / "b.zarr" / file).read_bytes()


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obs/gap/codes"])
def test_a_flipped_byte_is_refused_or_changes_no_value(small_files, tmp_path, cells, name):
    write_cells(tmp_path / "a.zarr", cells)
    store = open_store(tmp_path / "a.zarr")
    good = values_of(store)
    refused, tried = 0, 0
    for file in sorted((tmp_path / "a.zarr" / name / "c").iterdir()):
        content = file.read_bytes()
        for at in range(tried % 7, len(content), 41):
            file.write_bytes(content[:at] + bytes([content[at] ^ (1 << tried % 8)]) + content[at + 1 :])
            tried += 1
            try:
                assert_array_equal(values_of(open_store(tmp_path / "a.zarr")), good)
            except ValueError as error:
                refused += name in str(error)
        file.write_bytes(content)
    assert refused > 0.95 * tried  # zstd leaves a bit of its header without meaning


def values_of(store) -> np.ndarray:
    """Read all rows in ranges that begin and end inside chunks."""
    rows = concatenate([store.read(low, min(low + 37, 150)) for low in range(0, 150, 37)])
    return np.column_stack([dense(rows, 23), store.categorical("gap").codes(0, 150)])


@pytest.mark.parametrize("key", ["gap", "age"])
def test_a_lost_file_of_a_column_is_refused(small_files, tmp_path, cells, key):
    write_cells(tmp_path / "a.zarr", cells)
    where = tmp_path / "a.zarr" / "obs" / key
    ((where / "codes" if key == "gap" else where) / "c" / "1").unlink()
    store = open_store(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match=rf"obs/{key}.* of .* lacks 1 of \d chunks, the first is .*entries 64 to"):
        store.categorical(key) if key == "gap" else store.numeric(key)


def test_nothing_is_left_where_an_append_fails(tmp_path, cells):
    cells.X.data[cells.X.indptr[60]] = -1.0
    with pytest.raises(ValueError, match=r"holds -1\.0 at row 60"):
        write_cells(tmp_path / "a.zarr", cells, (0, 50, 150))
    assert list(tmp_path.iterdir()) == []


def test_the_rest_of_a_killed_run_is_replaced(tmp_path, cells):
    (tmp_path / "a.zarr.partial" / "X").mkdir(parents=True)
    (tmp_path / "a.zarr.partial" / "X" / "left").write_text("over")
    write_cells(tmp_path / "a.zarr", cells)
    assert [folder.name for folder in tmp_path.iterdir()] == ["a.zarr"]
    assert not (tmp_path / "a.zarr" / "X" / "left").exists()


def test_a_store_is_replaced_only_where_that_is_asked_for(tmp_path, cells):
    write_cells(tmp_path / "a.zarr", cells)
    with pytest.raises(FileExistsError, match=r"a.zarr already exists: .*overwrite=True"):
        write_cells(tmp_path / "a.zarr", cells)
    write_cells(tmp_path / "a.zarr", cells, layer="twice", overwrite=True)
    assert_array_equal(open_store(tmp_path / "a.zarr").read(0, 150).counts_e.max(), cells.layers["twice"].max())
    assert [folder.name for folder in tmp_path.iterdir()] == ["a.zarr"]


def test_files_of_others_in_the_folder_of_a_store_stay(tmp_path, cells):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "figure.png").write_text("mine")
    for _ in range(2):
        write_cells(tmp_path / "home", cells, overwrite=True)
        assert open_store(tmp_path / "home").n_cells == 150
        assert (tmp_path / "home" / "figure.png").read_text() == "mine"
    assert [folder.name for folder in tmp_path.iterdir()] == ["home"]


def test_a_store_without_cells_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match=r"no cell was written to .*a.zarr"),
        AnnDataZarrWriter(tmp_path / "a.zarr", var_names=["g"], categories={}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_cells_without_any_count_are_kept(tmp_path):
    with AnnDataZarrWriter(tmp_path / "a.zarr", var_names=["g"], categories={}) as writer:
        writer.append(row_of_zeros(2), obs_names=["a", "b"], obs={})
    store = open_store(tmp_path / "a.zarr")
    assert (store.n_cells, store.n_entries, store.read(0, 2).n_cells) == (2, 0, 2)


def test_more_genes_than_uint16_names_are_kept(tmp_path):
    rows = CsrRows(np.array([3], np.uint8), np.array([65_600], np.int32), np.array([0, 1]))
    with AnnDataZarrWriter(tmp_path / "a.zarr", var_names=[f"g{i}" for i in range(65_601)], categories={}) as writer:
        writer.append(rows, obs_names=["a"], obs={})
    assert open_store(tmp_path / "a.zarr").read(0, 1).genes_e.tolist() == [65_600]


@pytest.mark.parametrize(
    ("names", "obs", "message"),
    [
        (["a"], {}, r"obs columns \[\] were given, \['k', 't'\] are needed"),
        ([], {"k": [0], "t": [0.0]}, "obs_names has 0 values for 1 cells"),
        (["a"], {"k": [0, 1], "t": [0.0]}, "k has 2 values for 1 cells"),
        (["a"], {"k": [2], "t": [0.0]}, "obs column 'k' holds codes 2 to 2: -1 to 1 are needed"),
        (["a"], {"k": [-2], "t": [0.0]}, "obs column 'k' holds codes -2 to -2"),
    ],
)
def test_columns_that_do_not_fit_the_rows_are_refused(tmp_path, names, obs, message):
    with (
        pytest.raises(ValueError, match=message),
        AnnDataZarrWriter(tmp_path / "a.zarr", var_names=["g"], categories={"k": ["x", "y"]}, numeric=["t"]) as writer,
    ):
        writer.append(row_of_zeros(), obs_names=names, obs={key: np.array(values) for key, values in obs.items()})


def test_an_entry_of_no_gene_is_refused(tmp_path):
    rows = CsrRows(np.array([3], np.uint8), np.array([1], np.uint16), np.array([0, 1]))
    with (
        pytest.raises(ValueError, match="an entry is of gene 1: there are 1 genes"),
        AnnDataZarrWriter(tmp_path / "a.zarr", var_names=["g"], categories={}) as writer,
    ):
        writer.append(rows, obs_names=["a"], obs={})
