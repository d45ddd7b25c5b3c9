"""A model in memory whose cells are minified, with the meaning that this has in scvi-tools."""

import numpy as np
import pytest
from anndata import AnnData

from dist_scvi.model import SCANVI, SCVI

KINDS = ("latent_posterior_parameters", "latent_posterior_parameters_with_counts")


@pytest.fixture(scope="module")
def trained(adata: AnnData) -> tuple[type, AnnData, dict]:
    """A model of SCANVI, its cells, and what it says of them."""
    cells = adata.copy()
    cells.layers["counts"] = cells.X.copy()
    SCANVI.setup_anndata(cells, labels_key="label", unlabeled_category="none", batch_key="batch", layer="counts")
    model = SCANVI(cells, n_hidden=8, n_latent=3)
    model.train(1, enable_progress_bar=False)
    return model, answers(model)


def answers(model: SCVI) -> dict:
    return {
        "latent": model.get_latent_representation(),
        "variance": model.get_latent_representation(return_dist=True)[1],
        "expression": model.get_normalized_expression(n_samples=3, library_size="latent", transform_batch="b1"),
        "sample": model.posterior_predictive_sample(indices=[3, 1]).toarray(),
        "labels": model.predict(soft=True),
        "de": model.differential_expression(
            groupby="label", group1="B", mode="change", all_stats=False, pseudocounts=1e-6, silent=True
        )["proba_de"].sort_index(),
    }


def made(trained, tmp_path) -> SCANVI:
    """The model again, for a test to minify."""
    trained[0].save(tmp_path / "model")
    return SCANVI.load(tmp_path / "model", trained[0].adata)


@pytest.mark.parametrize("kind", KINDS)
def test_a_minified_model_gives_the_same_answers(trained, tmp_path, kind):
    model = made(trained, tmp_path)
    before = model.adata
    assert model.minified_data_type is None
    model.minify_adata(kind)
    assert model.minified_data_type == kind
    assert model.adata is not before
    assert before.layers["counts"].nnz
    assert model.adata.layers["counts"].nnz == (before.layers["counts"].nnz if kind == KINDS[1] else 0)
    np.testing.assert_array_equal(model.adata.obs["observed_lib_size"], before.X.sum(axis=1).A1)
    for name, found in answers(model).items():
        np.testing.assert_allclose(found, trained[1][name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_needs_counts_is_refused_without_them_and_answered_with_them(trained, tmp_path):
    model = made(trained, tmp_path)
    full = model.get_elbo()
    model.minify_adata()
    for method in (model.get_elbo, model.get_reconstruction_error, model.get_marginal_ll, model.minify_adata):
        with pytest.raises(ValueError, match="needs counts"):
            method()
    with pytest.raises(ValueError, match="training needs counts"):
        model.train(1)
    with pytest.raises(ValueError, match="needs counts"):
        model.differential_expression(groupby="label", group1="B", mode="change", silent=True)
    with pytest.raises(ValueError, match="an atlas needs counts"):
        model.minify(tmp_path / "atlas")
    with pytest.raises(ValueError, match=r"is minified and has no counts: SCVI\.load"):
        SCVI(model.adata)
    model.adata = trained[0].adata
    assert model.minified_data_type is None
    model.minify_adata(KINDS[1])
    np.testing.assert_allclose(model.get_elbo(), full, rtol=1e-6)
    latent = model.get_latent_representation()
    model.train(1, enable_progress_bar=False)  # the stored posterior is that of the old weights
    np.testing.assert_array_equal(model.get_latent_representation(), latent)


@pytest.mark.parametrize("format", ["dist_scvi", "scvi-tools"])
def test_a_minified_model_is_saved_and_loaded_with_its_cells(trained, tmp_path, format):
    model = made(trained, tmp_path)
    model.minify_adata()
    model.save(tmp_path / "minified", save_anndata=True, format=format)
    loaded = SCANVI.load(tmp_path / "minified")
    assert loaded.minified_data_type == KINDS[0]
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())


def test_a_stored_posterior_may_be_that_of_the_user_and_must_fit(trained, tmp_path):
    model = made(trained, tmp_path)
    model.adata = trained[0].adata.copy()
    mean_nk = np.zeros((403, 3), np.float32)
    model.adata.obsm["mine"], model.adata.obsm["spread"] = mean_nk, mean_nk + 1
    model.minify_adata(use_latent_qzm_key="mine", use_latent_qzv_key="spread")
    np.testing.assert_array_equal(model.get_latent_representation(), mean_nk)
    model.adata = trained[0].adata.copy()
    model.adata.obsm["mine"] = mean_nk[:, :2]
    with pytest.raises(ValueError, match="spread"):
        model.minify_adata(use_latent_qzm_key="mine", use_latent_qzv_key="spread")
    model.adata.obsm["spread"] = mean_nk[:, :2]
    with pytest.raises(ValueError, match="has the shape"):
        model.minify_adata(use_latent_qzm_key="mine", use_latent_qzv_key="spread")
    with pytest.raises(ValueError, match="'latent_posterior_parameters' or"):
        model.minify_adata("counts")
