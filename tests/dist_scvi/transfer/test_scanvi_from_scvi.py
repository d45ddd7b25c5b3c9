"""From SCVI to SCANVI: its weights, its batches and genes, labels by name, and nothing taken over that does not fit."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders import CellData, open_data
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_spec import ModelSpec, spec_of
from dist_scvi.network.vae import VAE
from dist_scvi.transfer.scanvi_from_scvi import FROM_SCVI, check_options, labelled_data, scanvi_from


def scvi(data: CellData, **options: object) -> tuple[VAE, ModelSpec]:
    spec = spec_of(ModelConfig.model_validate({"n_hidden": 8, "n_latent": 3, **options}), 5, data)
    return spec.build(), spec


def scanvi_config(spec: ModelSpec, **options: object) -> ModelConfig:
    return ModelConfig.model_validate({**spec.model.model_dump(), "model_name": "SCANVI", **options})


@pytest.fixture(scope="module")
def labelled(adata: ad.AnnData) -> CellData:
    return open_data(adata, batch_key="batch", labels_key="label", unlabeled_category="NK")


@pytest.mark.parametrize(
    "options", [{}, {"use_observed_lib_size": False, "batch_representation": "embedding", "dispersion": "gene-batch"}]
)
def test_the_weights_that_both_have_are_those_of_scvi(labelled: CellData, options: dict[str, object]) -> None:
    module, spec = scvi(labelled, **options)
    if module.latent_library:
        module.set_library_prior(np.array([6, 7], np.float32), np.array([2, 3], np.float32))
    made, new_spec = scanvi_from(module, spec, labelled, scanvi_config(spec), seed=9)
    weights = made.state_dict()
    for name, value in module.state_dict().items():
        assert torch.equal(weights[name], value), name
    fresh = new_spec.build().state_dict()
    for name in weights.keys() - module.state_dict().keys():
        assert torch.equal(weights[name], fresh[name]), name
    assert (new_spec.seed, new_spec.label.categories, new_spec.unlabeled_category) == (9, ("B", "T"), "NK")
    assert new_spec.lineage[FROM_SCVI]["seed"] == 5


def test_batches_keep_the_codes_of_scvi_where_other_cells_have_fewer_of_them(
    adata: ad.AnnData, labelled: CellData
) -> None:
    module, spec = scvi(labelled)
    only = open_data(adata[adata.obs["batch"] == "b1"].copy(), batch_key="batch", labels_key="label")
    _, new_spec = scanvi_from(module, spec, only, scanvi_config(spec), seed=0)
    assert new_spec.batch == spec.batch
    assert set(fit_to_spec(only, new_spec).columns_of([(0, 9)]).batch_n) == {1}


def test_a_dispersion_by_label_goes_by_the_name_of_the_label(adata: ad.AnnData, labelled: CellData) -> None:
    module, spec = scvi(open_data(adata, batch_key="batch", labels_key="label"), dispersion="gene-label")
    assert spec.label.categories == ("B", "NK", "T")
    for unlabeled, columns in (("B", [2, 1]), ("NK", [0, 2]), (None, [0, 1, 2])):
        data = labelled_data(labelled, unlabeled_category=unlabeled)
        made, new_spec = scanvi_from(module, spec, data, scanvi_config(spec), seed=0)
        assert [spec.label.categories.index(name) for name in new_spec.label.categories] == columns
        assert torch.equal(made.px_r, module.px_r[:, columns])


def test_labels_without_a_dispersion_are_refused(adata: ad.AnnData, labelled: CellData) -> None:
    module, spec = scvi(open_data(adata, batch_key="batch", labels_key="site"), dispersion="gene-label")
    with pytest.raises(ValueError, match=r"no dispersion for the labels B, T: .* must be among its own, x, y, z"):
        scanvi_from(module, spec, labelled, scanvi_config(spec), seed=0)


def test_other_batches_genes_options_and_classes_are_refused(adata: ad.AnnData, labelled: CellData) -> None:
    module, spec = scvi(labelled)
    config = scanvi_config(spec)
    other = adata.copy()
    other.obs["batch"] = other.obs["batch"].astype(str).replace("b1", "b9")
    keys = {"batch_key": "batch", "labels_key": "label"}
    with pytest.raises(ValueError, match=r"'batch' has 1 categories that the model was not trained on \(b9\)"):
        scanvi_from(module, spec, open_data(other, **keys), config, seed=0)
    with pytest.raises(ValueError, match=r"trained on 50 genes, .* has others, or another order"):
        scanvi_from(module, spec, open_data(adata[:, ::-1].copy(), **keys), config, seed=0)
    aged = open_data(adata, labels_key="label", continuous_covariate_keys=["age"])
    with pytest.raises(ValueError, match=r"open it with batch_key='batch' \(found None\), continuous_.*=\(\) \(found"):
        scanvi_from(module, spec, aged, config, seed=0)
    with pytest.raises(ValueError, match=r"other options: leave out n_hidden=9 \(it has 8\)"):
        scanvi_from(module, spec, labelled, scanvi_config(spec, n_hidden=9), seed=0)
    with pytest.raises(ValueError, match="SCANVI learns labels"):
        scanvi_from(module, spec, replace(labelled, label=None), config, seed=0)
    with pytest.raises(ValueError, match="a model of SCVI, this is one of SCANVI"):
        scanvi_from(*scanvi_from(module, spec, labelled, config, seed=0), labelled, config, seed=0)


def test_options_that_scvi_does_not_have_are_those_asked_for(labelled: CellData) -> None:
    module, spec = scvi(labelled)
    config = scanvi_config(spec, linear_classifier=True, y_prior=(0.25, 0.75), objective="conditional")
    made, new_spec = scanvi_from(module, spec, labelled, config, seed=0)
    assert new_spec.model == config
    assert made.y_prior.tolist() == [[0.25, 0.75]]


def test_options_that_are_the_same_are_no_others(labelled: CellData) -> None:
    _, spec = scvi(labelled)
    check_options(spec, spec.model, set(ModelConfig.model_fields))
    with pytest.raises(ValueError, match=r"leave out dropout_rate=0\.5 \(it has 0\.1\), n_layers=2 \(it has 1\)"):
        check_options(spec, ModelConfig(n_layers=2, dropout_rate=0.5), {"n_layers", "dropout_rate"})


def test_labels_are_opened_anew_from_the_same_cells(adata: ad.AnnData, labelled: CellData) -> None:
    site = labelled_data(labelled, labels_key="site", unlabeled_category="y")
    assert (site.label.key, site.label.vocabulary, site.unlabeled_category) == ("site", ("x", "z"), "y")
    codes = site.columns_of([(0, 403)]).label_n
    np.testing.assert_array_equal(codes == -1, adata.obs["site"] == "y")
    assert labelled_data(labelled, unlabeled_category=None).label.vocabulary == ("B", "NK", "T")
    with pytest.raises(ValueError, match="no column of labels is known: name it as labels_key"):
        labelled_data(replace(labelled, label=None), unlabeled_category="NK")
