"""An AnnData on disk that disagrees with itself is refused when it is opened or when the rows are read."""

import os

import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal

from dist_scvi.loaders import open_store
from tests.loaders.store_contract import dense


@pytest.fixture
def path(cells, save):
    return save(cells)


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr"])
def test_arrays_that_disagree_in_length_are_refused(cells, save, rewrite, name):
    path = save(cells)
    rewrite(path, name, zarr.open_array(path / name, mode="r")[:-1])
    with pytest.raises(ValueError, match=r"X of .* disagrees with itself: data holds .* entries, indices .*, indptr"):
        open_store(path)


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (0, 1, "runs from 1 to"),
        (150, 9, "runs from 0 to 9, there are"),
        (70, 0, "is damaged at row 69: it must rise"),
        (70, 10**6, "is damaged at row 69: it must rise"),
    ],
)
def test_a_row_pointer_that_falls_is_refused(cells, save, rewrite, row, value, message):
    path = save(cells)
    indptr = np.array(cells.X.indptr)
    indptr[row] = value
    rewrite(path, "X/indptr", indptr)
    with pytest.raises(ValueError, match=f"X/indptr of .* {message}"):
        open_store(path).read(0, 150)


@pytest.mark.parametrize("gene", [-1, 23])
def test_an_entry_of_no_gene_is_refused(cells, save, gene):
    cells.X.indices[cells.X.indptr[8]] = gene
    with pytest.raises(
        ValueError, match=f"holds an entry at row 8, gene {gene}: there are 23 genes; the store is damaged"
    ):
        open_store(save(cells)).read(0, 20)


def test_columns_compressed_are_refused_with_the_way_to_convert_them(cells, save):
    cells.X = cells.X.tocsc()
    with pytest.raises(ValueError, match=r"stored as csc_matrix.*adata.X = scipy.sparse.csr_matrix\(adata.X\)"):
        open_store(save(cells))


def test_a_shape_that_obs_and_var_do_not_have_is_refused(path, rewrite):
    rewrite(path, "X/indptr", chunks=64)  # drops the consolidated copy of the metadata
    zarr.open_group(path, mode="r+", use_consolidated=False)["X"].attrs["shape"] = [150, 24]
    with pytest.raises(ValueError, match=r"X of .* has shape \(150, 24\) but obs has 150 rows and var 23"):
        open_store(path)


@pytest.mark.parametrize("kind", ["zarr3", "zarr2", "h5ad"])
def test_a_store_that_is_written_again_while_it_is_open_is_refused(cells, save, kind):
    path = save(cells, kind)
    store = open_store(path)
    store.read(0, 5)
    touched = path if path.is_file() else path / ("zarr.json" if kind == "zarr3" else ".zgroup")
    os.utime(touched, ns=(1, 1))
    with pytest.raises(ValueError, match=r"was written again since it was opened: .* start again"):
        store.read(0, 5)


@pytest.mark.parametrize("kind", ["zarr3", "zarr2", "h5ad"])
def test_the_counts_of_raw_come_with_the_genes_of_raw(cells, save, kind, expected_ng):
    cells.raw = cells
    cells = cells[:, :5].copy()
    store = open_store(save(cells, kind), layer="raw/X")
    assert store.layers() == ["twice", "raw/X"]
    assert len(store.var_names) == 23
    assert_array_equal(dense(store.read(7, 90), 23), expected_ng[7:90])
