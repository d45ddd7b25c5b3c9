"""Several stores read as one: rows in order, genes by name, categories united, and what does not fit is refused."""

import re
import threading
import zlib
from functools import partial

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import sparse

from dist_scvi.loaders import CellStore, open_store
from dist_scvi.loaders.stores.collection import Unmatched, format_unmatched, open_collection, source_names
from tests.loaders.store_contract import Opened, StoreContract, dense

POOL = [f"g{gene}" for gene in range(7)]
BORDERS = [0, 45, 95, 150]


def gene_orders(n_genes: int) -> list[np.ndarray]:
    gene_g = np.arange(n_genes)
    return [gene_g, gene_g[::-1], np.roll(gene_g, 5)]


def pieces(adata):
    """Cut cells in three, with gene orders and lists of categories of their own."""
    for start, stop, order in zip(BORDERS, BORDERS[1:], gene_orders(adata.n_vars), strict=False):
        piece = adata[start:stop, order].copy()
        used = piece.obs["place"].cat.remove_unused_categories()
        piece.obs["place"] = used.cat.set_categories(sorted(used.cat.categories, reverse=bool(start)))
        yield piece


@pytest.mark.filterwarnings("ignore:Variable names are not unique")  # says anndata as it cuts such cells
class TestCollection(StoreContract):
    @pytest.fixture
    def opened(self, save) -> Opened:
        def store_and_open(adata, layer=None):
            in_zarr, in_h5ad, in_memory = pieces(adata)
            sources = (save(in_zarr), save(in_h5ad, "h5ad"), in_memory)
            return open_collection([open_store(source, layer=layer) for source in sources], source_key=None)

        return store_and_open

    def test_a_value_that_is_no_count_is_refused_with_its_place(self, opened, cells):
        rows = {20: "^X of .*cells.zarr", 50: "^X of .*cells.h5ad", 110: "^memory: X of the AnnData"}
        for row in rows:
            cells.X.data[cells.X.indptr[row]] = -1
        store = opened(cells)
        for part, (row, where) in enumerate(rows.items()):
            gene = list(gene_orders(23)[part]).index(cells.X.indices[cells.X.indptr[row]])
            with pytest.raises(ValueError, match=f"{where} holds -1.0 at row {row - BORDERS[part]}, gene {gene}: SCVI"):
                store.read(row - 10, row + 10)
            store.read(row + 1, row + 9)

    @pytest.mark.filterwarnings("ignore:X of the AnnData holds values that are not whole")
    def test_log_normalised_counts_are_refused(self, opened, cells):
        cells.X = sparse.csr_matrix(np.log1p(cells.X.toarray()))
        store = opened(cells)
        for row, part in ((0, "cells.zarr"), (60, "cells.h5ad")):
            with pytest.raises(ValueError, match=rf"{part} .* whole numbers >= 0; if they lie in another layer"):
                store.read(row, row + 10)
        assert store.read(100, 110).counts_e.dtype == np.float32  # of the AnnData in memory, with a warning

    @pytest.mark.parametrize(("shape", "found"), [((0, 23), "0 cells x 23 genes"), ((150, 0), "45 cells x 0 genes")])
    def test_an_empty_matrix_is_refused(self, opened, cells, shape, found):
        with pytest.raises(ValueError, match=rf"is empty \({found}\)"):
            opened(cells[: shape[0], : shape[1]].copy())


def in_memory(genes, n_cells=2, first_row=0, **obs):
    """Open cells whose every count follows from row and gene name."""
    row_n = range(first_row, first_row + n_cells)
    counts_ng = np.array([[count_of(row, name) for name in genes] for row in row_n], dtype=np.float32)
    table = pd.DataFrame(obs, index=[f"cell{row}" for row in row_n])
    return open_store(anndata.AnnData(sparse.csr_matrix(counts_ng), obs=table, var=pd.DataFrame(index=genes)))


def count_of(row: int, name: str) -> int:
    return zlib.crc32(f"{row} {name}".encode()) % 3


some_genes = st.lists(st.sampled_from(POOL), min_size=1, unique=True)
some_stores = st.lists(st.tuples(some_genes, st.integers(1, 4)), min_size=1, max_size=4)


def opened_stores(shapes):
    edges = np.cumsum([0, *(n_cells for _, n_cells in shapes)])
    return [in_memory(genes, n_cells, first) for (genes, n_cells), first in zip(shapes, edges, strict=False)]


def expected_counts(shapes, var_names) -> np.ndarray:
    genes_n = [genes for genes, n_cells in shapes for _ in range(n_cells)]
    return np.array(
        [[count_of(row, name) * (name in genes) for name in var_names] for row, genes in enumerate(genes_n)]
    )


@settings(deadline=None)
@given(some_stores, st.data())
def test_any_ranges_of_an_outer_join_hold_every_gene_in_its_column(shapes, data):
    store = open_collection(opened_stores(shapes), join="outer")
    assert list(store.var_names) == list(dict.fromkeys(name for genes, _ in shapes for name in genes))
    cuts = sorted(data.draw(st.lists(st.integers(0, store.n_cells), min_size=2, max_size=8)))
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    row_n = np.concatenate([np.arange(*span) for span in ranges])
    read = store.read_ranges(ranges)
    assert_array_equal(dense(read, len(store.var_names)), expected_counts(shapes, store.var_names)[row_n])
    assert list(store.obs_names(cuts[0], cuts[-1])) == [f"cell{row}" for row in range(cuts[0], cuts[-1])]


@settings(deadline=None)
@given(some_stores)
def test_an_inner_join_holds_the_genes_of_all_in_the_order_of_the_first(shapes):
    shared = [name for name in shapes[0][0] if all(name in genes for genes, _ in shapes)]
    if not shared:
        with pytest.raises(ValueError, match=r"^no gene is in all stores: memory has g"):
            open_collection(opened_stores(shapes))
        return
    store = open_collection(opened_stores(shapes))
    assert list(store.var_names) == shared
    assert_array_equal(dense(store.read(0, store.n_cells), len(shared)), expected_counts(shapes, shared))


@settings(deadline=None)
@given(some_stores, some_genes)
def test_a_list_of_genes_is_kept_in_its_order_and_the_report_says_what_did_not_match(shapes, wanted):
    if not set(wanted) <= {name for genes, _ in shapes for name in genes}:
        with pytest.raises(ValueError, match=f"of {len(wanted)} genes requested are in none of {len(shapes)} stores"):
            open_collection(opened_stores(shapes), genes=wanted)
        return
    store = open_collection(opened_stores(shapes), genes=wanted)
    assert list(store.var_names) == wanted
    assert_array_equal(dense(store.read(0, store.n_cells), len(wanted)), expected_counts(shapes, wanted))
    for found, (genes, _) in zip(store.unmatched, shapes, strict=True):
        assert (found.n_genes, list(found.left_out)) == (len(genes), [name for name in genes if name not in wanted])
        assert list(found.lacking) == [name for name in wanted if name not in genes]
        assert (found.n_left_out, found.n_lacking) == (len(found.left_out), len(found.lacking))


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([None, "b", "a", "c1"]), min_size=1, max_size=5), min_size=1, max_size=4))
def test_categories_are_united_and_missing_values_stay_missing(values):
    stores = [in_memory(["g1"], len(part), donor=pd.Categorical(part)) for part in values]
    column = open_collection(stores).categorical("donor")
    joined = [value for part in values for value in part]
    assert column.vocabulary == tuple(sorted({value for value in joined if value is not None}))
    for start in range(len(joined)):
        codes_n = column.codes(start, len(joined))
        assert [None if code < 0 else column.vocabulary[code] for code in codes_n] == joined[start:]


def test_the_report_is_short_and_says_which_genes():
    few, many = in_memory(["g1", "g2"]), in_memory([f"g{gene}" for gene in range(1, 40)])
    store = open_collection([few, many], genes=["g2", "g5"])
    assert store.unmatched[0] == Unmatched("memory 1", 2, 1, ("g1",), 1, ("g5",))
    assert format_unmatched(store.unmatched) == (
        "memory 1: 1 of 2 genes are left out (g1); 1 genes are lacking and count as 0 (g5)\n"
        "memory 2: 37 of 39 genes are left out (g1, g3, g4, g6, g7, g8, g9, g10, g11, g12 and 27 more)"
    )
    assert format_unmatched(open_collection([few]).unmatched) == "all stores have the same genes"


def test_each_store_is_asked_once_for_all_its_ranges_and_beside_the_others(monkeypatch):
    stores = [in_memory(["g1"], 10, first) for first in (0, 10, 20)]
    asked, together = {}, threading.Barrier(3, timeout=30)

    def ask(number, read, spans, *more):
        asked.setdefault(number, []).append(spans)
        together.wait()
        return read(spans, *more)

    for number, store in enumerate(stores):
        monkeypatch.setattr(store, "read_ranges", partial(ask, number, store.read_ranges))
    rows = open_collection(stores).read_ranges([(1, 3), (8, 20), (21, 22), (25, 30)])
    assert asked == {0: [[(1, 3), (8, 10)]], 1: [[(0, 10)]], 2: [[(1, 2), (5, 10)]]}
    assert_array_equal(dense(rows, 1)[:, 0], [count_of(row, "g1") for row in [1, 2, *range(8, 20), 21, *range(25, 30)]])


def test_the_source_of_each_cell_is_a_column(cells, save):
    stores = [open_store(save(cells)), open_store(save(cells, "h5ad"))]
    store = open_collection(stores, source_key="study")
    column = store.categorical("study")
    assert store.obs_columns() == ["place", "text", "lane", "gap", "age", "study"]
    assert column.vocabulary == ("cells.h5ad", "cells.zarr")
    assert_array_equal(column.required_codes(148, 152), [1, 1, 0, 0])
    with pytest.raises(ValueError, match="obs column 'study' holds the names of stores: name it as a categorical"):
        store.numeric("study")


def test_a_column_that_has_the_name_of_the_sources_is_refused_with_the_key_to_change():
    stores = [in_memory(["g1"]), in_memory(["g1"], source=["a", "b"])]
    with pytest.raises(
        ValueError, match=r"^memory 2 has an obs column 'source' already: .* another name with data.source_key"
    ):
        open_collection(stores)
    assert open_collection(stores, source_key=None).obs_columns() == []


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["/data/a.zarr", "/data/b.zarr/"], ["a.zarr", "b.zarr"]),
        (["/x/1/c.zarr", "/y/1/c.zarr", "/y/2/c.zarr", "/y/d"], ["x/1/c.zarr", "y/1/c.zarr", "2/c.zarr", "d"]),
        (["memory", "/a", "memory"], ["memory 1", "a", "memory 3"]),
        (["s3://b/c"], ["c"]),
    ],
)
def test_sources_are_named_by_what_tells_them_apart(uris, names):
    assert source_names(uris) == names


def test_a_column_that_some_stores_lack_is_refused_with_their_names():
    stores = [in_memory(["g1"], donor=["a", "b"], age=[1.0, 2.0]), in_memory(["g1"], age=[3, 4]), in_memory(["g1"])]
    store = open_collection(stores)
    assert store.obs_columns() == ["source"]
    with pytest.raises(
        ValueError, match=r"'donor' is not in 2 of 3 stores \(memory 2, memory 3\): add it .*\(source\)"
    ):
        store.categorical("donor")
    with pytest.raises(ValueError, match=r"'age' is not in 1 of 3 stores \(memory 3\)"):
        store.numeric("age")
    assert_array_equal(open_collection(stores[:2]).numeric("age").values(1, 4), [2, 3, 4])


def test_whole_numbers_in_one_store_and_fractional_ones_in_another_are_no_categories():
    stores = [in_memory(["g1"], lane=[1, 2]), in_memory(["g1"], lane=[1.0, 2.0])]
    with pytest.raises(ValueError, match=r"'lane' holds whole .*\('1' in memory 1 and '1.0' in memory 2\)"):
        open_collection(stores).categorical("lane")
    mixed = in_memory(["g1"], lane=["1", "1.0"])
    assert open_collection([stores[0], mixed]).categorical("lane").vocabulary == ("1", "1.0", "2")


def test_a_code_of_no_category_is_refused_with_store_and_row(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/place/codes", np.where(np.arange(150) == 99, 3, 0).astype(np.int8))
    store = open_collection([open_store(cells), open_store(path)])
    with pytest.raises(ValueError, match=r"^cells.zarr: obs column 'place' holds code 3 at row 99 for 3 categories"):
        store.categorical("place").codes(200, 300)


def test_layers_are_those_that_all_stores_have(cells):
    other = cells.copy()
    other.layers["thrice"] = other.X
    assert open_collection([open_store(adata) for adata in (other, other, cells)]).layers() == ["twice"]


def test_a_store_that_is_given_twice_is_refused(cells, save):
    path = save(cells)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is given more than once"):
        open_collection([open_store(path), open_store(cells), open_store(path)])
    same = open_store(cells)
    with pytest.raises(ValueError, match=r"^a store in memory is given more than once"):
        open_collection([same, same])
    assert open_collection([same, open_store(cells)]).n_cells == 300


def test_an_inner_join_of_other_kinds_of_names_is_refused_with_examples():
    ensembl = in_memory([f"ENSG{gene}" for gene in range(9)])
    versioned, symbols = (
        in_memory([f"ensg{gene}.4" for gene in range(3, 12)]),
        in_memory(["TP53", "ACTB", "MYC", "CD4"]),
    )
    with pytest.raises(ValueError, match=r"has ENSG0, ENSG1, ENSG2, memory has TP53, ACTB, MYC\. Name genes alike"):
        open_collection([ensembl, symbols])
    with pytest.raises(ValueError, match=r"ensg5.4; 6 would be the same but for case or version suffix \(.1\)\. Name"):
        open_collection([ensembl, versioned])


def test_genes_that_no_store_has_are_refused_with_the_nearest():
    store = in_memory(["ENSG7", "ENSG8.2", "TP53"])
    with pytest.raises(
        ValueError,
        match=r"^3 of 4 genes .*: 'ENSG8' \(did you mean 'ENSG8.2'\?\), 'tp53' \(did you mean 'TP53'\?\), 'zzz'; ",
    ):
        open_collection([store], genes=["ENSG8", "tp53", "ENSG7", "zzz"])


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"genes": ["g1", "g2", "g1"]}, "the list data.genes names g1 twice: each gene is needed once"),
        ({"genes": []}, "the list data.genes is empty"),
        (
            {"genes": ["g1"], "join": "outer"},
            "data.join='outer' and a list of 1 data.genes are given: leave one of them out",
        ),
        ({"join": "left"}, "data.join='left': 'inner' or 'outer' is needed"),
    ],
)
def test_a_choice_of_genes_that_says_two_things_or_none_is_refused(choice, said):
    with pytest.raises(ValueError, match=said):
        open_collection([in_memory(["g1", "g2"])], **choice)


def test_no_store_is_refused():
    with pytest.raises(ValueError, match="no store was given: a collection needs at least one"):
        open_collection([])


def test_a_collection_is_named_by_its_first_store_and_is_as_coarse_as_the_coarsest(cells, save):
    path = save(cells)
    on_disk = open_store(path)
    store = open_collection([on_disk, open_store(cells), open_store(cells)])
    assert (store.uri, store.chunk_cells) == (f"{path} + 2 more", on_disk.chunk_cells)
    assert (open_collection([on_disk]).uri, store.n_entries) == (str(path), 3 * cells.X.nnz)


def test_a_collection_says_which_layers_it_reads_and_whether_its_order_is_random(cells, monkeypatch):
    plain, doubled = open_store(cells), open_store(cells, layer="twice")
    monkeypatch.setattr(plain, "shuffled", True)
    monkeypatch.setattr(doubled, "shuffled", True)
    one, two = open_collection([plain]), open_collection([plain, doubled])
    assert (one.layer, two.layer, open_collection([doubled]).layer) == (None, "X, twice", "twice")
    assert (one.shuffled, two.shuffled) == (True, False)


def test_a_collection_may_be_a_part_of_another(cells, expected_ng):
    inner = open_collection([open_store(cells[:40]), open_store(cells[40:90])], source_key="part")
    outer = open_collection([inner, open_store(cells[90:])], source_key=None)
    assert isinstance(outer, CellStore)
    assert_array_equal(dense(outer.read(0, 150), 23), expected_ng)


def test_closing_closes_every_store(monkeypatch):
    stores = [in_memory(["g1"]), in_memory(["g1"])]
    closed = []
    for store in stores:
        monkeypatch.setattr(store, "close", lambda store=store: closed.append(store))
    open_collection(stores).close()
    assert closed == stores
