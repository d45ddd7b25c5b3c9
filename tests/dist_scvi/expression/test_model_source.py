"""A model as a source of differential expression: what it gives is that of the network, for any rows in any order."""

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.expression.model_source import ModelSource
from dist_scvi.expression.source import CountSource, ExpressionSource, ObsSource
from dist_scvi.inference.encode_decode import draw_latent, latent_cells
from dist_scvi.inference.importance import ImportanceSource
from dist_scvi.loaders import CellData
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.network.model_spec import spec_of
from dist_scvi.network.noise import RowNoise
from tests.dist_scvi.workers import together

ROWS = np.array([9, 2, 9, 400, 9])
DRAWS = np.array([4, 0, 0, 2, 1])


def source_of(data: CellData, *, chunk_cells: int = 1024, world: Any = None, **options: Any) -> ModelSource:
    spec = spec_of(ModelConfig(n_hidden=8, n_latent=3, **options), 1, data)
    more = {} if world is None else {"world": world}
    return ModelSource(spec.build().eval(), spec, data, seed=5, chunk_cells=chunk_cells, **more)


def test_it_is_every_kind_of_source(data: CellData) -> None:
    source: ExpressionSource = source_of(data)
    assert isinstance(source, CountSource)
    assert isinstance(source, ObsSource)
    assert isinstance(source, ImportanceSource)
    assert (source.n_cells, len(source.var_names), source.batch_categories) == (403, 50, ("b0", "b1"))
    codes, categories = source.group_codes("label")
    assert np.array(categories)[codes[:3]].tolist() == [data.label.vocabulary[code] for code in data.label.codes(0, 3)]


@pytest.mark.parametrize("chunk_cells", [2, 1024])
@pytest.mark.parametrize("batch", [None, 1])
def test_the_scale_of_a_row_is_that_of_its_draw(data: CellData, chunk_cells: int, batch: int | None) -> None:
    source = source_of(data, chunk_cells=chunk_cells, latent_distribution="ln")
    found = source.scale(ROWS, DRAWS, batch)
    for row, draw, scale_g in zip(ROWS, DRAWS.tolist(), found, strict=True):
        cells = rows_minibatch(data, np.array([row])).to("cpu")
        with torch.no_grad():
            qzm, qzv = source.module.encode(cells)
            z = source.module.latent(qzm + qzv.sqrt() * RowNoise(5, np.array([row]), draw).normal(qzm))
            if batch is not None:
                cells.covariates.batch_n[:] = batch
            np.testing.assert_allclose(scale_g, source.module.shares(z, cells.covariates)[0], rtol=1e-4)
    assert not np.allclose(found[0], found[2])


def test_latent_means_are_those_of_the_encoder(data: CellData) -> None:
    source = source_of(data, chunk_cells=2)
    expected = latent_cells(source.module, rows_minibatch(data, np.array([1, 2, 9]))).qzm_nk
    np.testing.assert_allclose(source.latent_mean(np.array([1, 2, 9])), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_cells", [50, 1024])
def test_raw_moments_are_sums_over_the_counts_on_any_number_of_workers(
    data: CellData, adata: ad.AnnData, chunk_cells: int
) -> None:
    counts, group_n = adata.X.toarray().astype(float), (np.arange(403, dtype=np.int32) * 7) % 4 - 1
    share = counts * (1e4 / np.maximum(counts.sum(axis=1, keepdims=True), 1))

    def asked(world: Any) -> Any:
        return source_of(data, chunk_cells=chunk_cells, world=world).raw_moments(group_n, 4)

    for found in (asked(None), *together(2, asked)):
        for group in range(4):
            inside = group_n == group
            np.testing.assert_allclose(found.sum_qg[group], counts[inside].sum(axis=0))
            np.testing.assert_array_equal(found.detected_qg[group], (counts[inside] > 0).sum(axis=0))
            np.testing.assert_allclose(found.normalized_qg[group], share[inside].sum(axis=0))
            assert found.cells_q[group] == inside.sum()


@pytest.mark.parametrize("dispersion", ["gene", "gene-cell"])
def test_candidates_are_decoded_at_the_draws_of_the_scale(data: CellData, dispersion: str) -> None:
    source = source_of(data, chunk_cells=2, dispersion=dispersion)
    found = source.candidates(ROWS, DRAWS, 1)
    np.testing.assert_allclose(found.scale_sg, source.scale(ROWS, DRAWS, 1), rtol=1e-5)
    whole = source_of(data, dispersion=dispersion).candidates(ROWS, DRAWS, 1)
    torch.testing.assert_close(found.z_sk, whole.z_sk)
    torch.testing.assert_close(found.theta_sg, whole.theta_sg)
    torch.testing.assert_close(found.zi_logits_sg, whole.zi_logits_sg)
    cells = latent_cells(source.module, rows_minibatch(data, np.array([2])))
    torch.testing.assert_close(found.z_sk[1:2], draw_latent(source.module, cells, 5, 0)[0])


def test_anchors_are_the_cells_as_read_encoded_and_estimated(data: CellData, adata: ad.AnnData) -> None:
    source, rows = source_of(data), np.array([3, 8, 77])
    anchors = source.anchors(rows, 200, 50)
    counts = np.zeros((3, 50))
    for at in range(3):
        span = slice(int(anchors.indptr[at]), int(anchors.indptr[at + 1]))
        counts[at, anchors.gene_e[span].numpy()] = anchors.count_e[span].numpy()
    np.testing.assert_array_equal(counts, adata.X[rows].toarray())
    np.testing.assert_array_equal(anchors.library_a, counts.sum(axis=1))
    cells = latent_cells(source.module, rows_minibatch(data, rows))
    np.testing.assert_array_equal(anchors.qzm_ak, cells.qzm_nk)
    np.testing.assert_array_equal(anchors.qzv_ak, cells.qzv_nk)
    again = source.anchors(rows[1:2], 200, 7)
    np.testing.assert_allclose(again.log_marginal_a, anchors.log_marginal_a[1:2], rtol=1e-4)
