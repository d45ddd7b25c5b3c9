"""A number of draws that stand for many cells: only these are decoded, and weights are what they should be."""

from typing import Any

import numpy as np
import pytest

from dist_scvi.config.schema import ModelConfig
from dist_scvi.expression.model_source import ModelSource
from dist_scvi.expression.subsample import checked_importance, sampled_expression
from dist_scvi.inference.cell_selection import select
from dist_scvi.inference.encode_decode import expression_query
from dist_scvi.inference.importance import ImportanceSampling
from dist_scvi.loaders import CellData
from dist_scvi.network.model_spec import spec_of


@pytest.fixture(scope="module")
def source(data: CellData) -> ModelSource:
    spec = spec_of(ModelConfig(n_hidden=8, n_latent=3), 1, data)
    return ModelSource(spec.build().eval(), spec, data, seed=5, chunk_cells=16)


def query(source: ModelSource, **changes: Any) -> Any:
    options = {"gene_list": None, "transform_batch": None, "library_size": 1, "n_samples": 1, "seed": 5}
    return expression_query(source.spec, **(options | changes))


@pytest.mark.parametrize("indices", [None, np.array([400, 7, 7, 30]), {"label": "T"}])
def test_each_sample_is_the_scale_of_its_row_at_a_draw_of_its_own(source: ModelSource, indices: Any) -> None:
    selection = select(source.data, indices)
    found, row_s = sampled_expression(source, selection, query(source), 40, None)
    assert found.shape == (40, 50)
    assert set(row_s) <= set(selection.rows(0, selection.n_cells))
    assert len(np.unique(found[:, 0])) == 40
    first = np.flatnonzero(row_s == row_s[0])[0]
    np.testing.assert_allclose(found[first], source.scale(row_s[:1], np.array([0]), None)[0], rtol=1e-5)
    again, _ = sampled_expression(source, selection, query(source), 40, None)
    np.testing.assert_array_equal(found, again)


def test_a_row_asked_for_more_often_is_chosen_more_often(source: ModelSource) -> None:
    selection = select(source.data, np.array([400, 7, 7, 7]))
    _, row_s = sampled_expression(source, selection, query(source, gene_list=["gene3"]), 400, None)
    assert 0.68 < np.mean(row_s == 7) < 0.82


def test_importance_chooses_among_draws_of_the_cells_asked_for(source: ModelSource) -> None:
    sampling = ImportanceSampling(max_cells=10, n_mc_samples=20, n_mc_samples_per_pass=10)
    importance = checked_importance(source, "importance", sampling)
    assert importance is not None
    selection = select(source.data, np.arange(0, 40, 2))
    found, row_s = sampled_expression(source, selection, query(source), 30, importance)
    uniform, _ = sampled_expression(source, selection, query(source), 30, None)
    assert found.shape == (30, 50)
    assert set(row_s) <= set(range(0, 40, 2))
    assert not np.allclose(found, uniform)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-4)
    with pytest.raises(ValueError, match="give one transform_batch"):
        sampled_expression(source, selection, query(source, transform_batch=["b0", "b1"]), 3, importance)


def test_options_of_importance_without_it_are_refused(source: ModelSource) -> None:
    assert checked_importance(source, None, ImportanceSampling()) is None
    with pytest.raises(ValueError, match=r"weights='uniform': 'importance' is needed"):
        checked_importance(source, "uniform", ImportanceSampling(max_cells=3))
