import numpy as np
import pytest

from dist_scvi.loaders import open_store
from dist_scvi.loaders.store import check_not_empty, check_var_names


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "h5ad"])
def test_the_kind_of_a_file_is_found_out(cells, save, kind):
    store = open_store(str(save(cells, kind)))
    assert (store.n_cells, store.uri.endswith((".zarr", ".h5ad"))) == (150, True)
    store.close()


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.zarr does not exist: .* is needed \(data.uri\)"):
        open_store(tmp_path / "nowhere.zarr")


@pytest.mark.parametrize("uri", ["s3://atlas/cells.zarr", "https://host/cells.h5ad"])
def test_a_remote_store_is_refused(uri):
    with pytest.raises(ValueError, match=f"{uri} is remote: stores are read from local disks"):
        open_store(uri)


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
