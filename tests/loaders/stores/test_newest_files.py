"""Stores that newer releases wrote than those the tests are run with: sharded Zarr v3 by default, other encodings."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dist_scvi.loaders import open_store
from dist_scvi.loaders.checks.verify import verify_store
from tests.loaders.store_contract import dense

FILES = sorted((Path(__file__).parents[1] / "data").glob("anndata_*.zip"))
ROW, GENE = np.arange(60)[:, None], np.arange(12)
COUNTS_NG = np.where((ROW + GENE) % 3 == 0, (ROW * 7 + GENE * 3) % 11, 0)


def test_the_files_are_there():
    assert FILES


@pytest.fixture(params=[(file, form) for file in FILES for form in ("zarr", "h5ad")], ids=str)
def path(request, tmp_path):
    file, form = request.param
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path)
    return tmp_path / f"{file.stem}.{form}"


def test_counts_columns_and_names_are_those_that_were_written(path):
    for layer in (None, "dense"):
        assert_array_equal(dense(open_store(path, layer=layer).read(0, 60), 12), COUNTS_NG)
    store = open_store(path)
    assert list(store.obs_names(58, 60)) == ["cell58", "cell59"]
    assert list(store.var_names) == [f"g{number}" for number in range(12)]
    place, plate, note = (store.categorical(key) for key in ("place", "plate", "note"))
    assert [place.vocabulary[code] for code in place.codes(19, 22)] == ["liver", "skin", "skin"]
    assert [plate.vocabulary[code] for code in plate.codes(0, 4)] == ["8", "9", "10", "8"]
    assert [note.vocabulary[code] for code in note.codes(0, 3)] == ["t0", "t1", "t2"]
    assert_array_equal(store.numeric("year").values(0, 2), [2000, 2001])
    assert_array_equal(store.numeric("age").values(0, 2), [0, 0.25])
    assert verify_store(path).ok
