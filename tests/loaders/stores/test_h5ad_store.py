import h5py
import pytest

from dist_scvi.loaders import open_store
from tests.loaders.store_contract import Opened, StoreContract


class TestH5adStore(StoreContract):
    @pytest.fixture
    def opened(self, save) -> Opened:
        return lambda adata, layer=None: open_store(save(adata, "h5ad"), layer=layer)


def test_columns_compressed_are_refused_with_the_way_to_convert_them(cells, save):
    cells.X = cells.X.tocsc()
    with pytest.raises(ValueError, match=r"stored as csc_matrix.*adata.X = scipy.sparse.csr_matrix\(adata.X\)"):
        open_store(save(cells, "h5ad"))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.h5ad").write_text("no HDF5")
    with pytest.raises(ValueError, match="cannot be opened as HDF5"):
        open_store(tmp_path / "notes.h5ad")


def test_hdf5_that_is_no_anndata_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["numbers"] = [1, 2]
    with pytest.raises(ValueError, match="is no AnnData: groups 'obs' and 'var' are needed, found numbers"):
        open_store(tmp_path / "other.h5ad")


def test_a_truncated_file_is_refused(cells, save):
    path = save(cells, "h5ad")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="cannot be opened as HDF5"):
        open_store(path)


@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
def test_arrays_that_disagree_in_length_are_refused(cells, save, name):
    path = save(cells, "h5ad")
    with h5py.File(path, "r+") as file:
        values = file[f"X/{name}"][:-1]
        del file[f"X/{name}"]
        file[f"X/{name}"] = values
    with pytest.raises(ValueError, match=r"X of .* disagrees with itself: data holds .* entries, indices .*, indptr"):
        open_store(path)


@pytest.mark.parametrize("part", ["obs", "var", "X/indptr", "obs/_index", "var/_index"])
def test_a_file_that_lacks_a_part_is_refused(cells, save, part):
    path = save(cells, "h5ad")
    with h5py.File(path, "a") as file:
        del file[part]
    with pytest.raises(ValueError, match=r"is no whole AnnData|is no AnnData"):
        open_store(path)
