import re

import anndata
import dask.array
import h5py
import numpy as np
import pytest
from anndata import AnnData
from anndata.experimental import AnnCollection
from numpy.testing import assert_array_equal
from scipy import sparse

from dist_scvi.loaders import open_store
from dist_scvi.loaders.stores.memory_store import check_in_memory
from tests.loaders.store_contract import Opened, StoreContract, dense


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def opened(self) -> Opened:
        return open_store

    def test_a_value_that_is_no_count_is_refused_with_its_place(self, opened, cells):
        bad = {50: -1.0, 80: np.nan, 110: np.inf, 140: 2.0**32}
        for row, value in bad.items():
            cells.X.data[cells.X.indptr[row]] = value
        store = opened(cells)
        for row, value in bad.items():
            with pytest.raises(
                ValueError, match=rf"^X of the AnnData holds {re.escape(str(np.float32(value)))} at row {row}"
            ):
                store.read(row - 10, row + 10)

    def test_log_normalised_counts_are_refused(self, opened, cells):
        """They are taken with a warning; see test_fractional_counts."""
        cells.X = sparse.csr_matrix(np.log1p(cells.X.toarray()))
        with pytest.warns(UserWarning, match="X of the AnnData holds values that are not whole"):
            assert opened(cells).read(0, 10).counts_e.dtype == np.float32


def test_columns_compressed_are_turned_into_rows(cells, expected_ng):
    cells.X = sparse.csc_matrix(cells.X)
    assert_array_equal(dense(open_store(cells).read(40, 50), 23), expected_ng[40:50])


def test_a_view_is_read_as_the_cells_it_shows(cells, expected_ng):
    store = open_store(cells[100:, 3:])
    assert_array_equal(dense(store.read(0, 50), 20), expected_ng[100:, 3:])
    assert list(store.obs_names(0, 1)) == ["cell100"]


def test_an_anndata_without_x_is_refused(cells):
    with pytest.raises(ValueError, match="the AnnData has no X: name the layer that holds the counts"):
        open_store(AnnData(obs=cells.obs, var=cells.var))


def test_true_and_false_are_no_counts(cells):
    cells.X = np.ones((150, 23), dtype=bool)
    with pytest.raises(ValueError, match="X of the AnnData is of type bool: SCVI needs raw counts"):
        open_store(cells).read(0, 1)


def test_counts_that_are_not_in_memory_are_refused_with_the_way_out(cells, save):
    path = save(cells, "h5ad")
    lazy = cells.copy()
    lazy.X = dask.array.from_array(cells.X.toarray(), chunks=(50, 23))
    with pytest.raises(ValueError, match=r"X of the AnnData is a dask Array, not in memory: give the path"):
        open_store(lazy)
    with h5py.File(path, "r") as file, pytest.raises(ValueError, match=r"not in memory: give the path"):
        check_in_memory(anndata.io.sparse_dataset(file["X"]), "X of the AnnData")
    with pytest.raises(ValueError, match=r"type AnnCollection is no store: give the paths of its files"):
        open_store(AnnCollection([cells, cells.copy()], index_unique="-"))


@pytest.mark.parametrize("source", [3, None, {"X": 1}, b"path", object()])
def test_what_is_no_store_is_refused_by_its_type(source):
    with pytest.raises(ValueError, match=rf"an object of type {type(source).__name__} is no store"):
        open_store(source)


@pytest.mark.parametrize("dtype", ["float16", ">i4", ">f8"])
def test_dense_counts_of_any_type_are_taken(cells, expected_ng, dtype):
    cells.X = np.minimum(expected_ng, 200).astype(dtype)
    assert_array_equal(dense(open_store(cells).read(0, 150), 23), np.minimum(expected_ng, 200))
