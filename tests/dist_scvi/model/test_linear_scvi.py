"""LinearSCVI as a notebook holds it."""

import inspect
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import dist_scvi
from dist_scvi.config.schema import ModelConfig
from dist_scvi.model import LinearSCVI

pytestmark = pytest.mark.filterwarnings("ignore:Trying to query inferred values:UserWarning")


def test_arguments_and_defaults_are_those_of_scvi_tools() -> None:
    parameters = inspect.signature(LinearSCVI).parameters
    places = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert places == [
        *("adata", "n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood"),
        *("use_observed_lib_size", "latent_distribution"),
    ]
    defaults = ModelConfig(model_name="LinearSCVI").model_dump()
    for name in places[1:]:
        assert parameters[name].default == defaults[name], name


@pytest.mark.parametrize("options", [{}, {"use_batch_norm": False, "bias": True}, {"use_observed_lib_size": True}])
def test_expression_is_the_softmax_of_loadings(adata: ad.AnnData, options: dict, tmp_path: Path) -> None:
    cells = adata.copy()
    LinearSCVI.setup_anndata(cells)
    model = LinearSCVI(cells, n_hidden=16, n_latent=4, **options)
    model.train(2, enable_progress_bar=False)
    loadings = model.get_loadings()
    assert loadings.shape == (50, 4)
    assert list(loadings.columns) == ["Z_0", "Z_1", "Z_2", "Z_3"]
    assert loadings.index[0] == "gene0"
    latent = model.get_latent_representation(indices=[3, 8])
    logs = np.log(model.get_normalized_expression(indices=[3, 8], n_samples=None).to_numpy())
    # what does not depend on the cell falls out of the difference of two, what does not on the gene by centring
    difference, expected = logs[0] - logs[1], loadings.to_numpy() @ (latent[0] - latent[1])
    np.testing.assert_allclose(difference - difference.mean(), expected - expected.mean(), rtol=1e-3, atol=1e-4)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(LinearSCVI.load(tmp_path / "model", cells).get_loadings(), loadings)


def test_other_covariates_than_the_batch_are_refused(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"^LinearSCVI has no covariate but the batch"):
        LinearSCVI(dist_scvi.open_data(adata, continuous_covariate_keys=["age"]))
