import numpy as np
import pytest
import zarr

from dist_scvi.loaders import open_store
from dist_scvi.loaders.cell_store import check_not_empty, check_var_names
from dist_scvi.loaders.stores.open import read_names
from tests.loaders.store_contract import dense


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "h5ad"])
def test_the_kind_of_a_file_is_found_out(cells, save, kind):
    store = open_store(str(save(cells, kind)))
    assert (store.n_cells, store.uri.endswith((".zarr", ".h5ad"))) == (150, True)
    store.close()


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.zarr does not exist: .* is needed \(data.uri\)"):
        open_store(tmp_path / "nowhere.zarr")


def test_hdf5_is_not_read_over_a_network():
    with pytest.raises(ValueError, match=r"https://host/cells.h5ad is HDF5, which is not read over a network: copy it"):
        open_store("https://host/cells.h5ad")


def test_several_stores_are_one_with_a_column_that_names_them(cells, save):
    store = open_store([save(cells), save(cells, "h5ad")], source_key="study")
    assert (store.n_cells, store.obs_columns()[-1]) == (300, "study")
    assert open_store([cells, cells.copy()], source_key=None).obs_columns() == open_store(cells).obs_columns()


def test_chosen_genes_of_one_store_bring_no_column(cells, save, expected_ng):
    store = open_store(save(cells), genes=["g7", "g3"])
    assert store.obs_columns() == open_store(cells).obs_columns()
    assert np.array_equal(dense(store.read(20, 90), 2), expected_ng[20:90, [7, 3]])


def test_a_collection_of_annbatch_and_an_experiment_are_known_by_what_lies_there(cells, tmp_path):
    zarr.create_group(tmp_path / "many", attributes={"encoding-type": "annbatch-preshuffled", "encoding-version": "9"})
    with pytest.raises(ValueError, match="annbatch collection of version 9"):
        open_store(tmp_path / "many")
    (tmp_path / "experiment" / "__group").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"the TileDB-SOMA experiment .* cannot be read"):
        open_store(tmp_path / "experiment")


def test_gene_names_are_strings_and_told_apart():
    assert list(check_var_names(["a", 7], "X")) == ["a", "7"]
    with pytest.raises(ValueError, match=r"X has 2 duplicated gene names \(a, b\)"):
        check_var_names(["b", "a", "a", "b", "c"], "X")


def test_one_cell_and_one_gene_are_enough():
    check_not_empty(1, 1, "X")
    with pytest.raises(ValueError, match=r"X is empty \(1 cells x 0 genes\)"):
        check_not_empty(1, 0, "X")


def test_a_closed_file_can_be_opened_again(cells, save):
    path = save(cells, "h5ad")
    for _ in range(2):
        store = open_store(path)
        assert np.array_equal(store.obs_names(0, 1), ["cell0"])
        store.close()


def test_names_in_a_file_stand_one_in_a_line(tmp_path):
    (tmp_path / "genes.txt").write_text("HLA A\n\n  g2 \ng1")
    assert read_names(tmp_path / "genes.txt") == ["HLA A", "g2", "g1"]


@pytest.mark.parametrize("source", [5, None, {"uri": "a.zarr"}])
def test_what_is_no_store_is_refused(source):
    with pytest.raises(ValueError, match="is no store: a path, a URL or an AnnData is needed"):
        open_store(source)


def test_one_text_is_no_list_of_genes(cells):
    with pytest.raises(ValueError, match=r"genes='g1' is one text, a list is needed: genes=\['g1'\]"):
        open_store(cells, genes="g1")
