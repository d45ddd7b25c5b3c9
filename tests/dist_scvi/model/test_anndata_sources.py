"""AnnData of every kind as the cells of a model: backed by a file, with fractions, with log values."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from dist_scvi.model import SCVI

SMALL = {"n_hidden": 8, "n_latent": 3}


def fractional(adata: ad.AnnData) -> ad.AnnData:
    """Take away a part of each count, as a correction for ambient RNA does."""
    corrected = adata.copy()
    corrected.X = corrected.X * np.float32(0.75)
    return corrected


def test_a_backed_anndata_is_trained_from_its_file_as_the_one_in_memory(adata: ad.AnnData, store: Path) -> None:
    backed, in_memory = ad.read_h5ad(store, backed="r"), adata.copy()
    models = []
    for cells in (backed, in_memory):
        SCVI.setup_anndata(cells, batch_key="batch", continuous_covariate_keys=["age"])
        models.append(SCVI(cells, **SMALL))
        models[-1].train(1, enable_progress_bar=False)
    assert backed.isbacked
    np.testing.assert_array_equal(*(model.get_latent_representation() for model in models))
    np.testing.assert_array_equal(models[0].get_latent_representation(backed), models[0].get_latent_representation())
    backed.file.close()


def test_fractional_counts_warn_once_then_train_and_answer_also_after_loading(
    adata: ad.AnnData, tmp_path: Path
) -> None:
    cells = fractional(adata)
    with pytest.warns(UserWarning, match="not whole") as caught:
        SCVI.setup_anndata(cells, batch_key="batch")
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="not whole"):
        model = SCVI(cells, **SMALL)
    model.train(2, enable_progress_bar=False)
    assert np.isfinite(model.history["elbo_train"].to_numpy()).all()
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="not whole"):
        loaded = SCVI.load(tmp_path / "model", adata=cells)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    expected = np.asarray(cells.X.sum(1)).ravel()
    found = model.get_normalized_expression(library_size="latent", n_samples=None).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_reference_of_whole_counts_takes_a_query_of_fractional_ones(adata: ad.AnnData) -> None:
    reference_cells, query = adata.copy(), fractional(adata[:80])
    SCVI.setup_anndata(reference_cells, batch_key="batch")
    reference = SCVI(reference_cells, encode_covariates=True, **SMALL)
    reference.train(1, enable_progress_bar=False)
    query.obs["batch"] = "new"
    with pytest.warns(UserWarning, match="not whole"):
        mapped = SCVI.load_query_data(query, reference)
    mapped.train(1, plan_kwargs={"weight_decay": 0.0}, enable_progress_bar=False)
    assert np.isfinite(mapped.get_latent_representation()).all()


def test_log_values_train_with_a_normal_likelihood(adata: ad.AnnData) -> None:
    cells = adata.copy()
    cells.X = cells.X.log1p()
    with pytest.warns(UserWarning, match="gene_likelihood='normal' is meant for values that were log-transformed"):
        SCVI.setup_anndata(cells, batch_key="batch")
    with pytest.warns(UserWarning, match="not whole"):
        model = SCVI(cells, gene_likelihood="normal", log_variational=False, **SMALL)
    model.train(8, enable_progress_bar=False)
    validation = model.history["elbo_validation"].to_numpy().ravel()
    assert validation[-1] < validation[0]
    assert np.isfinite(model.get_normalized_expression(n_samples=None).to_numpy()).all()
