import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiledbsoma
from numpy.testing import assert_array_equal

from dist_scvi.loaders.arrays.obs_columns import PagedArray
from dist_scvi.loaders.stores.soma_store import SomaOptions, open_soma
from dist_scvi.loaders.stores.soma_tables import read_genes
from tests.loaders.stores.test_soma_store import only, write_adata, write_counts


@pytest.fixture(scope="module")
def uri(tmp_path_factory, pristine) -> str:
    """Cells with columns of more kinds; not to be changed."""
    cells = pristine.copy()
    cells.obs["male"] = cells.obs["lane"] > 5
    cells.obs["maybe"] = pd.array(np.where(np.arange(150) % 50 == 7, None, np.arange(150) % 3), dtype="Int64")
    cells.obs["said"] = [None if row == 7 else "nan" if row == 8 else f"s{row}" for row in range(150)]
    cells.obs["share"] = np.where(np.arange(150) == 4, np.nan, 0.5)
    cells.var["symbol"] = [f"s{gene}" for gene in range(23)]
    return write_adata(tmp_path_factory.mktemp("soma") / "cells", cells)


@pytest.fixture(scope="module")
def store(uri):
    return open_soma(uri)


@pytest.mark.parametrize(
    ("key", "vocabulary", "codes"),
    [
        ("male", ("False", "True"), [0, 0, 1, 1]),
        ("maybe", ("0", "1", "2"), [1, 2, 0, -1, 2]),
        ("share", ("0.5",), [-1, 0]),
    ],
)
def test_values_of_any_kind_are_categories_by_their_names(store, key, vocabulary, codes):
    column = store.categorical(key)
    assert column.vocabulary == vocabulary
    assert_array_equal(column.codes(4, 4 + len(codes)), codes)


def test_a_string_that_reads_nan_is_no_missing_one(store):
    column = store.categorical("said")
    assert column.codes(7, 8) == -1
    assert column.vocabulary[column.codes(8, 9)[0]] == "nan"


def test_codes_are_held_in_the_smallest_type(store):
    assert np.asarray(store.categorical("text").stored[0:150]).dtype == np.int8
    assert np.asarray(store.categorical("said").stored[0:150]).dtype == np.int16


def test_categories_as_stored_are_read_by_pages_and_not_held(store):
    assert isinstance(store.categorical("place").stored, PagedArray)


def test_with_a_filter_the_categories_are_those_of_the_chosen_cells(uri, pristine):
    store = open_soma(uri, options=only("place == 's10' and lane < 9"))
    chosen = pristine.obs[(pristine.obs["place"] == "s10") & (pristine.obs["lane"] < 9)]
    assert store.categorical("place").vocabulary == ("s10",)
    for key in ("text", "lane", "gap"):
        column = store.categorical(key)
        named = [column.vocabulary[code] if code >= 0 else None for code in column.codes(0, store.n_cells)]
        assert named == [None if pd.isna(value) else str(value) for value in chosen[key]]
    assert_array_equal(store.numeric("age").values(2, 9), chosen["age"][2:9].astype(np.float32))


def test_a_filter_that_chooses_nothing_is_refused(uri):
    with pytest.raises(ValueError, match=r"obs_value_filter=.* chooses none of the 150 cells of"):
        open_soma(uri, options=only("lane > 99"))


@pytest.mark.parametrize("value_filter", ["tissue == 'lung'", "lane ==== 3"])
def test_a_filter_that_is_wrong_is_refused_with_the_columns(uri, value_filter):
    with pytest.raises(
        ValueError, match=r"obs_value_filter=.* and columns soma_joinid, obs_id, place, .* cannot be read"
    ):
        open_soma(uri, options=only(value_filter))


@pytest.mark.parametrize("key", ["said", "male", "place"])
def test_words_and_truths_are_no_numbers(store, key):
    with pytest.raises(ValueError, match=f"obs column '{key}' of .* does not hold numbers"):
        store.numeric(key)


def test_names_are_taken_from_the_column_asked_for(uri):
    store = open_soma(uri, options=SomaOptions(var_names_column="symbol", obs_names_column="text"))
    assert (list(store.var_names[:2]), list(store.obs_names(6, 8))) == (["s0", "s1"], ["t6", "t0"])
    assert "text" not in store.obs_columns()
    assert "obs_id" in store.obs_columns()


@pytest.mark.parametrize("option", ["var_names_column", "obs_names_column"])
def test_a_column_of_names_that_is_not_there_is_refused_with_those_that_are(uri, option):
    table, present = option[:3], "var_id" if option[:3] == "var" else "obs_id"
    with pytest.raises(ValueError, match=rf"{table} of .* has no column 'alias' .*present are soma_joinid, {present}"):
        open_soma(uri, options=SomaOptions(**{option: "alias"}))


def test_genes_without_a_known_column_of_names_are_refused(uri, tmp_path, expected_ng, monkeypatch):
    monkeypatch.setattr("dist_scvi.loaders.stores.soma_tables._GENE_NAMES", ("id",))
    with pytest.raises(ValueError, match=r"set data.soma.var_names_column, present are soma_joinid, gene_name"):
        open_soma(write_counts(tmp_path / "cells", expected_ng, range(150), range(23)))


def test_genes_come_by_rising_soma_joinid_however_they_are_read():
    parts = [pa.table({"soma_joinid": [4, 0], "var_id": ["e", "a"]}), pa.table({"soma_joinid": [2], "var_id": ["c"]})]
    names, place_g = read_genes(parts[0], lambda *given: iter(parts), None, "var")
    assert list(names) == ["a", "c", "e"]
    assert_array_equal(place_g, [0, -1, 1, -1, 2, -1])


def test_cells_without_names_are_called_by_their_soma_joinid(tmp_path, expected_ng, monkeypatch):
    monkeypatch.setattr("dist_scvi.loaders.stores.soma_tables.CELL_NAMES", ("id",))
    store = open_soma(write_counts(tmp_path / "cells", expected_ng, range(10, 160), range(23)))
    assert list(store.obs_names(3, 5)) == ["13", "14"]


def test_runs_give_each_row_its_soma_joinid_and_back(tmp_path, expected_ng):
    cell_ids = np.sort(np.random.default_rng(0).permutation(400)[:150])
    obs = open_soma(write_counts(tmp_path / "cells", expected_ng, cell_ids, range(23), fragments=3))._obs
    assert_array_equal(obs.joinids(np.arange(150)), cell_ids)
    assert_array_equal(obs.rows(cell_ids), np.arange(150))
    assert_array_equal(obs.rows(np.arange(401)), np.searchsorted(cell_ids, np.arange(401)))


def test_an_obs_without_gaps_is_not_read_for_its_soma_joinids(uri, monkeypatch):
    read = tiledbsoma.DataFrame.read
    columns = []

    def recorded(frame, *given, column_names, **named):
        columns.append(column_names)
        return read(frame, *given, column_names=column_names, **named)

    monkeypatch.setattr(tiledbsoma.DataFrame, "read", recorded)
    open_soma(uri)
    assert columns == [["soma_joinid", "var_id"]]


def test_columns_outlive_the_store_they_were_opened_from(uri, pristine):
    assert_array_equal(open_soma(uri).numeric("lane").values(0, 150), pristine.obs["lane"])


def test_values_that_obs_lacks_are_refused(store, monkeypatch):
    column = store.numeric("age")
    monkeypatch.setattr(store._obs, "_tables", lambda *given: iter(()))
    with pytest.raises(ValueError, match=r"obs column 'age' of .* at rows 0 to 149 lacks 150 values"):
        column.values(0, 5)


def test_an_obs_indexed_by_another_column_is_refused(uri, monkeypatch):
    monkeypatch.setattr(tiledbsoma.DataFrame, "index_column_names", ("obs_id",))
    with pytest.raises(ValueError, match=r"obs of .* is indexed by obs_id: soma_joinid is needed"):
        open_soma(uri)
