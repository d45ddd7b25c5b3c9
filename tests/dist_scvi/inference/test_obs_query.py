"""Queries over obs: the same answer from an AnnData and from its store."""

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from dist_scvi.inference import obs_query
from dist_scvi.inference.obs_query import queried
from dist_scvi.loaders import open_store

QUERIES = [
    "label == 'T'",
    "label in ['T', 'NK'] and age > 50",
    "age > age.mean()",
    "batch != 'b1' or `site of` == 'x'",
    "index == 'cell7'",
    "alive",
    "not alive",
    "label.isna()",
]


@pytest.fixture(scope="module")
def cells(adata: ad.AnnData) -> ad.AnnData:
    cells = adata.copy()
    cells.obs["alive"] = np.arange(cells.n_obs) % 4 > 0
    cells.obs["site of"] = cells.obs["site"]
    cells.obs.loc["cell3", "label"] = np.nan
    return cells


@pytest.mark.parametrize("text", QUERIES)
def test_a_store_answers_as_the_obs_it_holds(
    cells: ad.AnnData, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(obs_query, "PAGE_ROWS", 100)
    expected = cells.obs.index.isin(cells.obs.query(text).index)
    assert expected.any()
    assert not expected.all()
    for source in (cells, save(cells, "h5ad"), save(cells)):
        np.testing.assert_array_equal(queried(open_store(source), text), expected)
    np.testing.assert_array_equal(queried(cells.obs, text), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind == 'T'", r"^\"kind == 'T'\" cannot be answered .*'kind'.*columns are batch, label, age, site"),
        ("label ==", r"^'label ==' cannot be answered"),
        ("age + 1", r"^'age \+ 1' is no condition, it gives float"),
        ("age.mean() > 3", r"is no condition"),
    ],
)
def test_what_is_no_condition_over_obs_is_refused(cells: ad.AnnData, text: str, message: str) -> None:
    for source in (cells.obs, open_store(cells)):
        with pytest.raises(ValueError, match=message):
            queried(source, text)
