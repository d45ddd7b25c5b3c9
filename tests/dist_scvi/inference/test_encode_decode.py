"""Expected expression of cells in the latent space: the decoder's, whatever is asked together with what."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from dist_scvi.config.schema import ModelConfig
from dist_scvi.inference.encode_decode import (
    ExpressionQuery,
    LatentCells,
    covariates_of,
    draw_latent,
    expression_query,
    expression_samples,
    latent_cells,
    normalized_expression,
    rows_asked,
)
from dist_scvi.loaders import CellData, open_data
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.model import SCVI
from dist_scvi.network.model_spec import spec_of
from dist_scvi.network.noise import RowNoise

N = 40


@pytest.fixture(scope="module")
def cells(model: SCVI) -> LatentCells:
    return latent_cells(model.module, rows_minibatch(model.data, np.arange(N)))


def part(cells: LatentCells, index: np.ndarray) -> LatentCells:
    return cells.take(index)


def query_of(model: SCVI, **changes: object) -> ExpressionQuery:
    options = {"gene_list": None, "transform_batch": None, "library_size": 1.0, "n_samples": None, "seed": 0}
    return expression_query(model.spec, **(options | changes))


def ask(model: SCVI, cells: LatentCells, **changes: object) -> np.ndarray:
    return normalized_expression(model.module, cells, query_of(model, **changes))


def test_the_scale_of_chosen_genes_is_that_of_the_decoder(model: SCVI, cells: LatentCells) -> None:
    qzm, library = torch.from_numpy(cells.qzm_nk), torch.from_numpy(cells.library_n)
    with torch.no_grad():
        full = model.module.decode(qzm, library, covariates_of(cells, qzm.device)).scale_ng.numpy()
    np.testing.assert_allclose(ask(model, cells), full, rtol=1e-5)
    genes = ["gene7", "gene49", "gene0", "gene7"]
    np.testing.assert_allclose(ask(model, cells, gene_list=genes), full[:, [7, 49, 0, 7]], rtol=1e-5)


def test_shares_of_all_genes_add_up_to_one(model: SCVI, cells: LatentCells) -> None:
    for n_samples in (None, 3):
        np.testing.assert_allclose(ask(model, cells, n_samples=n_samples).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("n_samples", [None, 3])
def test_a_cell_gets_the_same_answer_in_any_company_and_order(
    model: SCVI, cells: LatentCells, n_samples: int | None
) -> None:
    whole = ask(model, cells, n_samples=n_samples, seed=4)
    order = np.random.default_rng(0).permutation(N)
    for index in (order, order[:7], np.array([3]), np.array([5, 5])):
        np.testing.assert_allclose(ask(model, part(cells, index), n_samples=n_samples, seed=4), whole[index], rtol=1e-5)


def test_draws_differ_by_seed_and_agree_on_average(model: SCVI, cells: LatentCells) -> None:
    some = part(cells, np.arange(8))
    few = [ask(model, some, n_samples=1, seed=seed) for seed in (0, 1)]
    many = [ask(model, some, n_samples=1000, seed=seed) for seed in (0, 1)]
    spread = [np.abs(np.log(first / second)).mean() for first, second in (few, many)]
    assert spread[0] > 0.02
    assert spread[1] < spread[0] / 10


def test_several_batches_give_the_mean_of_each(model: SCVI, cells: LatentCells) -> None:
    each = [ask(model, cells, transform_batch=name) for name in ("b0", "b1")]
    assert not np.allclose(*each)
    np.testing.assert_allclose(ask(model, cells, transform_batch=["b0", "b1"]), np.mean(each, axis=0), rtol=1e-5)


def test_without_a_batch_each_cell_has_its_own(model: SCVI, cells: LatentCells) -> None:
    own, first = ask(model, cells), ask(model, cells, transform_batch="b0")
    np.testing.assert_array_equal((own == first).all(1), cells.batch_n == 0)


def test_the_library_size_is_a_factor_or_each_cells_total(model: SCVI, cells: LatentCells) -> None:
    share = ask(model, cells)
    np.testing.assert_allclose(ask(model, cells, library_size=1e4), share * 1e4, rtol=1e-6)
    np.testing.assert_allclose(ask(model, cells, library_size="latent"), share * cells.library_n[:, None], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gene_list": ["gene1", "CD4"]}, r"^the model has no gene 'CD4': its 50 genes begin gene0, "),
        ({"transform_batch": "b9"}, r"^the model knows no batch 'b9': its batches are b0, b1$"),
        ({"transform_batch": ["b0", "b9"]}, r"^the model knows no batch 'b9'"),
        ({"library_size": "median"}, r"^library_size='median': a number is needed, or 'latent'"),
        ({"n_samples": 0}, r"^n_samples=0: at least 1 is needed"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(model: SCVI, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        query_of(model, **changes)


def test_a_model_without_batches_names_none(model: SCVI) -> None:
    spec = model.spec.model_copy(update={"batch": None})
    with pytest.raises(ValueError, match=r"its batches are none$"):
        expression_query(spec, gene_list=None, transform_batch="b0", library_size=1, n_samples=None, seed=0)


def test_rows_are_read_once_and_put_back_in_the_order_asked() -> None:
    asked = [7, 2, 7, 9, 0]
    rows, order = rows_asked(asked, 10)
    assert rows.tolist() == [0, 2, 7, 9]
    assert rows[order].tolist() == asked
    assert [len(array) for array in rows_asked([], 10)] == [0, 0]


def test_a_mask_chooses_the_cells_it_marks() -> None:
    rows, order = rows_asked(np.array([False, True, True, False]), 4)
    assert rows[order].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 10], r"^indices run from 0 to 10: there are cells 0 to 9$"),
        ([-1], r"^indices run from -1 to -1"),
        ([0.5], r"^indices holds .*0\.5.*: row numbers are needed, from 0 to 9$"),
        (["cell1"], r"^indices holds .*'cell1'.*: row numbers are needed"),
        ([True, False], r"^indices is a mask of shape \(2,\): a bool for each of 10 cells"),
    ],
)
def test_indices_that_are_no_rows_are_refused(indices: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_asked(indices, 10)


def test_cells_alike_in_all_but_their_row_get_draws_of_their_own(model: SCVI, cells: LatentCells) -> None:
    twins = replace(part(cells, np.array([3, 3])), row_n=np.array([3, 4]))
    first, second = ask(model, twins, n_samples=1)
    assert np.abs(np.log(first / second)).mean() > 0.02
    np.testing.assert_allclose(*ask(model, twins), rtol=1e-5)


def test_a_batch_may_be_named_by_a_number_and_0_is_one() -> None:
    cells = AnnData(
        np.ones((20, 3), dtype=np.float32), obs=pd.DataFrame({"lane": [0, 1] * 10}, index=list(map(str, range(20))))
    )
    spec = SCVI(open_data(cells, batch_key="lane")).spec
    options = {"gene_list": None, "library_size": 1.0, "n_samples": None, "seed": 0}
    codes = [
        expression_query(spec, transform_batch=name, **options).transform_batch for name in (0, 1, "1", [0, 1], None)
    ]
    assert codes == [(0,), (1,), (1,), (0, 1), (None,)]


def test_an_anndata_in_place_of_indices_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="indices is an AnnData: rows are needed"):
        rows_asked(AnnData(np.ones((20, 3), dtype=np.float32)), 20)


def test_draws_are_those_of_the_network_for_one_number_or_one_for_each_cell(model: SCVI, cells: LatentCells) -> None:
    expected = [
        cells.qzm_nk
        + np.sqrt(cells.qzv_nk) * RowNoise(3, cells.row_n, draw).normal(torch.from_numpy(cells.qzm_nk)).numpy()
        for draw in (0, 5)
    ]
    draw_n = np.where(np.arange(N) % 3 == 0, 5, 0)
    z, library = draw_latent(model.module, cells, 3, draw_n)
    np.testing.assert_allclose(z, np.where((draw_n == 5)[:, None], expected[1], expected[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(library, cells.library_n)
    np.testing.assert_allclose(draw_latent(model.module, cells, 3, 5)[0], expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(draw_latent(model.module, cells, 3, None)[0], cells.qzm_nk)


def test_samples_average_to_the_mean_and_are_several(model: SCVI, cells: LatentCells) -> None:
    query = query_of(model, n_samples=4, transform_batch=[None, "b1"], library_size="latent")
    samples = expression_samples(model.module, cells, query)
    assert samples.shape == (N, 4, 50)
    assert not np.allclose(samples[:, 0], samples[:, 1])
    np.testing.assert_allclose(samples.mean(axis=1), normalized_expression(model.module, cells, query), rtol=1e-5)


def test_none_among_batches_is_the_own_one(model: SCVI, cells: LatentCells) -> None:
    own, other = ask(model, cells), ask(model, cells, transform_batch="b1")
    np.testing.assert_allclose(ask(model, cells, transform_batch=[None, "b1"]), (own + other) / 2, rtol=1e-5)
    assert query_of(model, transform_batch=np.array(["b1", "b0"])).transform_batch == (1, 0)


def test_a_latent_library_size_is_drawn_with_z_as_the_network_draws_it(data: CellData) -> None:
    spec = spec_of(ModelConfig(n_hidden=8, n_latent=3, use_observed_lib_size=False), 1, data)
    module, rows = spec.build().eval(), np.arange(N)
    minibatch = rows_minibatch(data, rows)
    cells = latent_cells(module, minibatch)
    with torch.no_grad():
        noise = RowNoise(2, rows, 1)
        noise.normal(torch.zeros(N, 3))
        drawn, _ = module.draw_library(minibatch.to("cpu"), (), noise)
    np.testing.assert_allclose(draw_latent(module, cells, 2, 1)[1], drawn, rtol=1e-5)
    assert not np.allclose(drawn, cells.library_n, rtol=1e-3)
    np.testing.assert_array_equal(draw_latent(module, cells, 2, None)[1], cells.library_n)
    few = cells.take(np.array([4, 2]))
    np.testing.assert_allclose(draw_latent(module, few, 2, 1)[1], drawn[[4, 2]], rtol=1e-5)
