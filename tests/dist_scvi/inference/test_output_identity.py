"""Two starts that ask the same say so in the same words, and those that ask another thing do not."""

import copy

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from dist_scvi.inference.output_identity import cells_fingerprint, digest, model_fingerprint, probes, to_json
from dist_scvi.loaders import CellData, open_data
from dist_scvi.model import SCVI
from dist_scvi.network.model_files import load_model, save_model


def opened(adata: ad.AnnData, **keys: object) -> CellData:
    return open_data(adata, **{"batch_key": "batch", "continuous_covariate_keys": ["age"], **keys})


def test_a_model_read_again_is_the_same_and_one_weight_makes_another(model: SCVI, tmp_path) -> None:
    save_model(tmp_path / "model", model.module, model.spec)
    again, spec = load_model(tmp_path / "model")
    assert model_fingerprint(again, spec) == model_fingerprint(model.module, model.spec)
    other = copy.deepcopy(model.module)
    other.px_r.data[-1] += 1e-6
    assert model_fingerprint(other, model.spec) != model_fingerprint(model.module, model.spec)
    renamed = model.spec.model_copy(update={"layer": "counts"})
    assert model_fingerprint(model.module, renamed) != model_fingerprint(model.module, model.spec)


def test_cells_opened_again_are_the_same(adata: ad.AnnData, store) -> None:
    assert cells_fingerprint(opened(adata)) == cells_fingerprint(opened(adata.copy()))
    assert cells_fingerprint(opened(store)) == cells_fingerprint(opened(store))


@pytest.mark.parametrize("change", ["count", "name", "gene", "value", "category", "key", "fewer"])
def test_other_cells_are_told_apart(adata: ad.AnnData, change: str) -> None:
    other, keys = adata.copy(), {}
    if change == "count":
        other.X.data[0] += 1
    elif change == "name":
        other.obs_names = ["another", *other.obs_names[1:]]
    elif change == "gene":
        other.var_names = ["another", *other.var_names[1:]]
    elif change == "value":
        other.obs["age"] += np.float32(1)
    elif change == "category":
        other.obs["batch"] = other.obs["batch"].cat.rename_categories({"b0": "b7"})
    elif change == "key":
        keys = {"batch_key": "site"}
    else:
        other = other[:-1].copy()
    assert cells_fingerprint(opened(other, **keys)) != cells_fingerprint(opened(adata))


def test_a_few_cells_are_looked_at_whatever_their_number() -> None:
    for n_cells in (1, 64, 65, 10**9):
        found = probes(n_cells)
        assert found[0][0] == 0
        assert found[-1][1] == n_cells
        assert len(found) <= 8
        assert all(0 < stop - start <= 64 for start, stop in found)


def test_only_a_few_cells_are_read_of_many() -> None:
    n_cells = 100_000
    obs = pd.DataFrame(index=pd.RangeIndex(n_cells).astype(str))
    data = open_data(ad.AnnData(sparse.csr_matrix((n_cells, 1), dtype=np.float32), obs=obs))
    read, store_read = [], data.store.read
    data.store.read = lambda start, stop: read.append(stop - start) or store_read(start, stop)
    cells_fingerprint(data)
    assert sum(read) == 8 * 64


def test_parts_are_not_confused_with_each_other() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(np.arange(3), b"x") == digest(np.arange(3).tobytes(), "x")


def test_numpy_values_are_plain_and_the_order_of_keys_is_none() -> None:
    assert to_json({"a": np.int64(3), "b": np.arange(2)}) == to_json({"b": [0, 1], "a": 3})
    assert to_json({"genes": pd.Index(["x"])}) == to_json({"genes": ("x",)})
