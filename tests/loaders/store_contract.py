"""What every store of cells must do. A test class for a store inherits from `StoreContract` and gives `opened`."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData
from numpy.testing import assert_array_equal
from scipy import sparse

from dist_scvi.loaders import CellStore
from dist_scvi.loaders.arrays.csr_rows import CsrRows, GeneChoice

Opened = Callable[..., CellStore]


def dense(rows: CsrRows, n_genes: int) -> np.ndarray:
    """Spread rows out, adding what stands twice."""
    genes_e = rows.genes_e.astype(np.int32)
    return sparse.csr_matrix((rows.counts_e.astype(np.int64), genes_e, rows.indptr), (rows.n_cells, n_genes)).toarray()


class StoreContract:
    @pytest.fixture
    def opened(self) -> Opened:
        """Give a function that stores an AnnData and opens it: ``opened(adata, layer=None)``."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, opened, pristine, kept) -> CellStore:
        """Give the cells unchanged, stored once for each class of tests."""
        if type(self) not in kept:
            kept[type(self)] = opened(pristine)
        return kept[type(self)]

    @pytest.mark.parametrize("span", [(0, 0), (150, 150), (0, 1), (149, 150), (5, 6), (4, 7), (37, 113), (0, 150)])
    def test_rows_of_any_range_are_those_asked_for(self, store, expected_ng, span):
        rows = store.read(*span)
        assert_array_equal(dense(rows, len(store.var_names)), expected_ng[slice(*span)])
        assert rows.indptr[0] == 0

    def test_counts_come_in_narrow_types(self, store):
        assert store.read(0, 9).counts_e.dtype == np.uint16
        assert store.read(30, 40).counts_e.dtype in (np.uint8, np.uint16)
        assert store.read(0, 9).genes_e.dtype == np.uint16

    def test_a_count_beyond_16_bits_is_read_whole(self, opened, cells):
        cells.X.data[cells.X.indptr[40]] = 70_000
        assert opened(cells).read(40, 41).counts_e.max() == 70_000

    def test_several_ranges_come_joined_in_order(self, store, expected_ng):
        rows = store.read_ranges([(0, 3), (5, 6), (70, 131), (149, 150)])
        row_n = [*range(3), 5, *range(70, 131), 149]
        assert_array_equal(dense(rows, len(store.var_names)), expected_ng[row_n])
        assert rows.indptr[0] == 0
        assert store.chunk_cells >= 1

    @pytest.mark.parametrize("order", [[], [0], [64, 2, 0, 63], [3, 3, 64, 3], list(range(64, -1, -1))])
    def test_rows_of_several_ranges_come_in_the_order_asked_for(self, store, expected_ng, order):
        rows = store.read_ranges([(0, 3), (5, 6), (70, 131)], np.array(order, dtype=np.int64))
        row_n = np.array([*range(3), 5, *range(70, 131)])[order] if order else []
        assert_array_equal(dense(rows, len(store.var_names)), expected_ng[row_n])

    @pytest.mark.parametrize("order", [None, [], [64, 2, 0, 63], [3, 3, 64, 3]])
    def test_of_chosen_genes_come_the_same_counts_renumbered(self, store, expected_ng, order):
        chosen, place_g = [22, 0, 7], np.full(23, -1, dtype=np.int32)
        place_g[chosen] = range(3)
        order_n = None if order is None else np.array(order, dtype=np.int64)
        rows = store.read_ranges([(0, 3), (5, 6), (70, 131)], order_n, GeneChoice(place_g, 3))
        row_n = np.array([*range(3), 5, *range(70, 131)])
        assert_array_equal(dense(rows, 3), expected_ng[row_n if order is None else row_n[order_n]][:, chosen])

    def test_sizes_and_names_are_those_of_the_file(self, store, cells):
        assert (store.n_cells, store.n_entries, list(store.var_names)) == (150, cells.X.nnz, list(cells.var_names))
        assert list(store.obs_names(148, 150)) == ["cell148", "cell149"]
        assert store.obs_columns() == ["place", "text", "lane", "gap", "age"]
        assert store.layers() == ["twice"]

    def test_a_layer_is_read_instead_of_x(self, opened, cells, expected_ng):
        assert_array_equal(dense(opened(cells, layer="twice").read(60, 90), 23), 2 * expected_ng[60:90])

    def test_a_dense_matrix_gives_the_same_rows(self, opened, cells, expected_ng):
        cells.X = expected_ng.astype(np.float32)
        assert_array_equal(dense(opened(cells).read(3, 140), 23), expected_ng[3:140])

    @pytest.mark.parametrize(
        ("key", "vocabulary"),
        [
            ("place", ("s1", "s10", "s2")),
            ("text", ("t0", "t1", "t2", "t3", "t4", "t5", "t6")),
            ("lane", ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")),
        ],
    )
    def test_codes_point_into_the_sorted_vocabulary(self, store, cells, key, vocabulary):
        column = store.categorical(key)
        assert column.vocabulary == vocabulary
        named = np.array(vocabulary)[column.required_codes(30, 150)]
        assert_array_equal(named, cells.obs[key].astype(str)[30:150])

    def test_a_missing_value_is_minus_one_and_is_refused_where_one_is_needed(self, store):
        column = store.categorical("gap")
        assert_array_equal(column.codes(12, 16), [0, -1, 0, 1])
        with pytest.raises(ValueError, match="obs column 'gap' has no value at row 13: fill it"):
            column.required_codes(12, 16)

    def test_numbers_come_as_float32(self, store):
        values_n = store.numeric("age").values(10, 13)
        assert_array_equal(values_n, np.array([2.5, 2.75, 3.0], dtype=np.float32))
        assert values_n.dtype == np.float32

    def test_a_number_that_is_missing_is_refused_with_its_row(self, opened, cells):
        cells.obs.iloc[77, cells.obs.columns.get_loc("age")] = np.nan
        with pytest.raises(ValueError, match="obs column 'age' is nan at row 77: finite numbers are needed"):
            opened(cells).numeric("age").values(70, 80)

    def test_names_are_no_numbers(self, store):
        with pytest.raises(ValueError, match=r"obs column 'place'.* does not hold numbers"):
            store.numeric("place")

    def test_a_column_that_is_not_there_is_named_with_its_neighbours(self, store):
        with pytest.raises(
            ValueError, match=r"no obs column 'plase': did you mean 'place', .*\? present are place, text"
        ):
            store.categorical("plase")

    def test_a_value_that_is_no_count_is_refused_with_its_place(self, opened, cells):
        bad = {20: 0.5, 50: -1.0, 80: np.nan, 110: np.inf, 140: 2.0**32}
        for row, value in bad.items():
            cells.X.data[cells.X.indptr[row]] = value
        store = opened(cells)
        for row, value in bad.items():
            gene = cells.X.indices[cells.X.indptr[row]]
            found = re.escape(f"holds {np.float32(value)!s} at row {row}, gene {gene}: SCVI needs raw counts")
            with pytest.raises(ValueError, match=f"^X of .* {found}"):
                store.read(row - 10, row + 10)
            store.read(row + 1, row + 9)

    def test_log_normalised_counts_are_refused(self, opened, cells):
        cells.X = sparse.csr_matrix(np.log1p(cells.X.toarray()))
        with pytest.raises(
            ValueError, match=r"whole numbers >= 0; if they lie in another layer, name it with data.layer"
        ):
            opened(cells).read(0, 10)

    def test_a_gene_that_stands_twice_in_a_row_is_refused(self, opened, cells):
        begin = cells.X.indptr[20]
        cells.X.indices[begin + 2] = cells.X.indices[begin]
        with pytest.raises(ValueError, match=r"holds a second entry at row 20, gene .*: each gene may occur once"):
            opened(cells).read(0, 30)

    def test_genes_of_one_name_are_refused(self, opened, cells):
        cells.var_names = ["g1", *cells.var_names[1:]]
        with pytest.raises(ValueError, match=r"has 1 duplicated gene names \(g1\)"):
            opened(cells)

    def test_a_layer_that_is_not_there_is_refused_with_those_that_are(self, opened, cells):
        with pytest.raises(ValueError, match=r"no .*layer.*present are twice"):
            opened(cells, layer="counts")

    @pytest.mark.parametrize("shape", [(0, 23), (150, 0)])
    def test_an_empty_matrix_is_refused(self, opened, cells: AnnData, shape):
        with pytest.raises(ValueError, match=rf"is empty \({shape[0]} cells x {shape[1]} genes\)"):
            opened(cells[: shape[0], : shape[1]].copy())
