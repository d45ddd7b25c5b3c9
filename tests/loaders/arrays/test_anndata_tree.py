"""Whatever form anndata 0.7 to 0.13 gave a column, an index or a matrix, it is read right or refused, never guessed."""

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.testing import assert_array_equal

from dist_scvi.loaders import open_store
from tests.loaders.store_contract import dense

KINDS = ("h5ad", "zarr2", "zarr3")


@pytest.fixture
def odd(pristine):
    """The cells with a column of every kind that anndata can write."""
    cells = pristine.copy()
    n = cells.n_obs
    cells.obs["plate"] = pd.Categorical(np.arange(n) % 3 + 8)
    cells.obs["dose"] = pd.Categorical(np.arange(n) % 2 / 4)
    cells.obs["treated"] = pd.Categorical(np.arange(n) % 3 == 0)
    cells.obs["flag"] = np.arange(n) % 2 == 0
    cells.obs["year"] = pd.array(np.arange(n) + 2000, dtype="Int64")
    cells.obs["holes"] = pd.array([None if row == 77 else row for row in range(n)], dtype="Int64")
    cells.obs["maybe"] = pd.array([None if row == 5 else row % 2 == 0 for row in range(n)], dtype="boolean")
    return cells


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_every_kind_give_what_the_same_anndata_gives_in_memory(odd, save, kind):
    stored, memory = open_store(save(odd, kind)), open_store(odd)
    for key in ("plate", "dose", "treated", "flag", "year", "holes", "maybe", "gap"):
        ours, theirs = stored.categorical(key), memory.categorical(key)
        assert ours.vocabulary == theirs.vocabulary, key
        assert_array_equal(ours.codes(0, 150), theirs.codes(0, 150), key)
    assert stored.categorical("plate").vocabulary == ("10", "8", "9")
    assert stored.categorical("treated").vocabulary == ("False", "True")
    assert_array_equal(stored.numeric("year").values(148, 150), [2148, 2149])
    for store in (stored, memory):
        assert_array_equal(store.numeric("holes").values(70, 77), np.arange(70, 77))
        with pytest.raises(ValueError, match="obs column 'holes' is nan at row 77"):
            store.numeric("holes").values(70, 80)
        for key in ("plate", "treated", "flag", "maybe"):
            with pytest.raises(ValueError, match=f"obs column '{key}'.* does not hold numbers"):
                store.numeric(key)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_categories_gives_the_names(cells, save, kind):
    cells.obs.index = pd.CategoricalIndex(cells.obs_names)
    cells.var.index = pd.CategoricalIndex(cells.var_names)
    store = open_store(save(cells, kind))
    assert list(store.obs_names(0, 3)) == ["cell0", "cell1", "cell2"]
    assert list(store.var_names) == [f"g{gene}" for gene in range(23)]


def as_07(path, *, names=("liver", "skin", "gut"), key="tissue"):
    """Rewrite obs as anndata 0.7 did: codes in obs/tissue, names in obs/__categories/tissue."""
    code_n = np.where(np.arange(150) == 5, -1, np.arange(150) % len(names)).astype(np.int8)
    if path.suffix == ".h5ad":
        with h5py.File(path, "a") as file:
            obs = file["obs"]
            names = obs.create_dataset(
                f"__categories/{key}", data=np.array(names, dtype=object), dtype=h5py.string_dtype()
            )
            obs.create_dataset(key, data=code_n).attrs["categories"] = names.ref
            obs.attrs["encoding-version"] = "0.1.0"
            obs.attrs["column-order"] = np.array([key], dtype=object)
        return
    obs = zarr.open_group(path, mode="r+", use_consolidated=False)["obs"]
    if obs.metadata.zarr_format == 3:
        obs.create_array(f"__categories/{key}", data=np.array(names, dtype=np.dtypes.StringDType()))
    else:
        obs.create_array(f"__categories/{key}", data=np.array(names, dtype="<U8"))
    obs.create_array(key, data=code_n).attrs["categories"] = f"__categories/{key}"
    obs.attrs.update({"encoding-version": "0.1.0", "column-order": [key]})
    for consolidated in (path / ".zmetadata", path / "zarr.json"):
        if consolidated.exists():
            zarr.consolidate_metadata(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part", "ignore:The data type")
def test_anndata_07_keeps_its_categories_so_that_two_files_never_share_codes(cells, save, kind):
    one, other = save(cells, kind), save(cells, kind)
    as_07(one)
    as_07(other, names=("brain", "liver"))
    column = open_store(one).categorical("tissue")
    assert column.vocabulary == ("gut", "liver", "skin")
    assert_array_equal(column.codes(3, 7), [1, 2, -1, 1])
    both = open_store([one, other]).categorical("tissue")
    assert both.vocabulary == ("brain", "gut", "liver", "skin")
    assert both.vocabulary[both.codes(151, 152)[0]] == "liver"
    assert both.vocabulary[both.codes(150, 151)[0]] == "brain"
    with pytest.raises(ValueError, match=r"obs column 'tissue'.* does not hold numbers"):
        open_store(one).numeric("tissue")


@pytest.mark.parametrize("target", ["../X/data", "/nowhere", 3, "__categories"])
def test_categories_that_are_not_where_the_column_says_are_refused(cells, save, target):
    path = save(cells)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    root["obs/lane"].attrs["categories"] = target
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(ValueError, match=r"'categories' of obs/lane of|is missing or no array"):
        open_store(path).categorical("lane")


def set_attribute(path, node, name, value):
    if path.suffix == ".h5ad":
        with h5py.File(path, "a") as file:
            file[node or "/"].attrs[name] = value
        return
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    (root[node] if node else root).attrs[name] = value
    if (path / "zarr.json").exists():
        (path / "zarr.json").write_text(
            '{"zarr_format": 3, "node_type": "group", "attributes": %s}'
            % ('{"encoding-type": "anndata", "encoding-version": "9.9.9"}' if not node else "{}")
        )


@pytest.mark.parametrize("kind", ["h5ad", "zarr3"])
@pytest.mark.parametrize("node", ["", "X", "obs", "var", "obs/place", "obs/age", "obs/place/codes", "obs/text"])
@pytest.mark.parametrize(("name", "value"), [("encoding-version", "9.9.9"), ("encoding-type", "new-array")])
def test_an_encoding_or_version_that_is_not_known_is_refused_by_its_place(cells, save, kind, node, name, value):
    if not node and name == "encoding-type":
        return
    path = save(cells, kind)
    set_attribute(path, node, name, value)
    key = node.split("/")[1] if node.startswith("obs/") else "age"
    with pytest.raises(ValueError, match=rf"^{node or 'the root'} of .* has encoding-type .*{value}") as refused:
        open_store(path).categorical(key)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", ">i4", ">f4", ">u2", "int64", "float64", "uint8", "bool"])
def test_dense_counts_of_any_type_are_read_or_refused_by_the_name_of_it(cells, expected_ng, save, kind, dtype):
    counts_ng = np.minimum(expected_ng, 200)
    cells.X = counts_ng.astype(dtype)
    stores = [open_store(cells), open_store(save(cells, kind))] if dtype != "bool" else [open_store(save(cells, kind))]
    for store in stores:
        if dtype == "bool":
            with pytest.raises(ValueError, match=r"X of .* is of type bool: SCVI needs raw counts"):
                store.read(0, 150)
        else:
            assert_array_equal(dense(store.read(0, 150), 23), counts_ng)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_differ_by_case_are_two_columns(cells, save, kind):
    cells.obs["Place"] = cells.obs["place"].cat.rename_categories({"s2": "x"})
    store = open_store(save(cells, kind))
    assert store.categorical("place").vocabulary == ("s1", "s10", "s2")
    assert store.categorical("Place").vocabulary == ("s1", "s10", "x")


@pytest.mark.parametrize("kind", ["h5ad", "zarr3"])
@pytest.mark.parametrize(
    ("layer", "advice"),
    [
        (None, "adata.X = scipy.sparse.csr_matrix(adata.X)"),
        ("twice", 'adata.layers["twice"] = scipy.sparse.csr_matrix(adata.layers["twice"])'),
        ("raw/X", "raw.X = scipy.sparse.csr_matrix(raw.X); adata.raw = raw"),
    ],
)
def test_columns_first_matrices_are_refused_with_the_call_that_converts_them(cells, save, kind, layer, advice):
    cells.X, cells.layers["twice"] = cells.X.tocsc(), cells.layers["twice"].tocsc()
    cells.raw = cells.copy()
    with pytest.raises(ValueError, match="is stored as csc_matrix") as refused:
        open_store(save(cells, kind), layer=layer)
    assert advice in str(refused.value)
