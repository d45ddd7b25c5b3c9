import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from dist_scvi.loaders import open_store
from tests.loaders.store_contract import Opened, StoreContract, dense


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
    with pytest.raises(ValueError, match=rf"{part} of .* is missing|is no AnnData: groups"):
        open_store(path)


def _external_storage(file):
    del file["X"]
    matrix = file.create_dataset("X", (150, 23), dtype="u1", external=[("/etc/passwd", 0, 150 * 23)])
    matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _virtual_dataset(file):
    layout = h5py.VirtualLayout(shape=(150,), dtype="f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "age", shape=(150,))
    del file["obs/age"]
    file.create_virtual_dataset("obs/age", layout).attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _external_link(file):
    del file["X"]
    file["X"] = h5py.ExternalLink("/etc/passwd", "X")


def _external_group(file):
    del file["obs"]
    file["obs"] = h5py.ExternalLink("other.h5ad", "obs")


def _soft_link_through_an_external_one(file):
    file["away"] = h5py.ExternalLink("other.h5ad", "/")
    del file["var"]
    file["var"] = h5py.SoftLink("/away/var")


def _soft_links_in_a_ring(file):
    del file["X"]
    file["X"], file["Y"] = h5py.SoftLink("/Y"), h5py.SoftLink("X")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "damage",
    [
        _external_storage,
        _virtual_dataset,
        _external_link,
        _external_group,
        _soft_link_through_an_external_one,
        _soft_links_in_a_ring,
    ],
)
def test_data_outside_of_the_file_are_never_read(cells, save, damage):
    path = save(cells, "h5ad")
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(ValueError, match=r"keeps its data in other files|is a link out of the file") as refused:
        open_store(path).numeric("age")
    assert "\n" not in str(refused.value)


def test_a_soft_link_within_the_file_is_followed(cells, expected_ng, save):
    path = save(cells, "h5ad")
    with h5py.File(path, "a") as file:
        file.move("X", "counts")
        file["X"] = h5py.SoftLink("counts")
    assert_array_equal(dense(open_store(path).read(0, 150), 23), expected_ng)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["X/data", "obs/_index", "var/_index", "obs/age", "obs/place/codes"])
@pytest.mark.parametrize("chunks", [None, (1024,)])
def test_a_claim_of_10_to_the_15_values_is_refused_before_any_is_read(cells, save, name, chunks):
    path = save(cells, "h5ad")
    with h5py.File(path, "a") as file:
        attributes = dict(file[name].attrs)
        dtype = file[name].dtype
        del file[name]
        file.create_dataset(name, (10**15,), dtype=dtype, chunks=chunks).attrs.update(attributes)
    with pytest.raises(ValueError, match=rf"{name} of .* lacks .* that its shape"):
        open_store(path).numeric("age") if name == "obs/age" else open_store(path).categorical("place")


def test_zero_chunks_that_were_never_written_are_read_as_anndata_does_and_reported(cells, expected_ng, save):
    path = save(cells, "h5ad")
    with h5py.File(path, "a") as file:
        del file["X"]
        matrix = file.create_dataset("X", (150, 23), dtype="f4", chunks=(50, 23))
        matrix[100:] = expected_ng[100:]
        matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    store = open_store(path)
    assert_array_equal(dense(store.read(90, 110), 23)[10:], expected_ng[100:110])
    assert "2 of 3 chunks were never written and are read as zeros" in store.limits()[0]


def test_a_backed_anndata_is_read_from_its_file_with_the_obs_that_was_set_up(cells, expected_ng, save):
    backed = anndata.read_h5ad(save(cells, "h5ad"), backed="r")
    backed.obs["fresh"] = pd.Categorical(np.where(np.arange(150) < 75, "first", "second"))
    backed.var_names = [f"gene {number}" for number in range(23)]
    store = open_store(backed)
    assert_array_equal(dense(store.read(0, 150), 23), expected_ng)
    assert_array_equal(dense(open_store(backed, layer="twice").read(3, 9), 23), 2 * expected_ng[3:9])
    assert store.categorical("fresh").vocabulary == ("first", "second")
    assert store.var_names[3] == "gene 3"
    assert store.obs_columns()[-1] == "fresh"
    with pytest.raises(ValueError, match=r"is a view of some cells of .*: load it with adata\.to_memory\(\)"):
        open_store(backed[:50])
    backed.file.close()
