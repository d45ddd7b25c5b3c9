import numpy as np
import pytest
from anndata import AnnData
from numpy.testing import assert_array_equal
from scipy import sparse

from dist_scvi.loaders import open_store
from tests.loaders.store_contract import Opened, StoreContract, dense


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def opened(self) -> Opened:
        return open_store


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
