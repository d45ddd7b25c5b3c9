"""What a run begins with: the weights of the seed or of a folder it names, with its options and frozen parts."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

from dist_scvi.config.schema import DataConfig, ModelConfig, RunConfig
from dist_scvi.loaders import CellData, open_data
from dist_scvi.loaders.library_prior import library_prior
from dist_scvi.network.model_files import save_model
from dist_scvi.network.model_spec import spec_of
from dist_scvi.training.initial_model import begin, set_library_prior
from dist_scvi.transfer.scarches import load_query
from dist_scvi.world import World


def config_of(start: Path | None = None, **options: object) -> RunConfig:
    model = ModelConfig.model_validate(options)
    return RunConfig(seed=4, start_from=start and str(start), data=DataConfig(uri="memory"), model=model)


@pytest.fixture(scope="module")
def cells(adata: ad.AnnData) -> CellData:
    return open_data(adata, batch_key="batch", labels_key="label", unlabeled_category="NK")


def same(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    weights = other.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


def test_without_a_folder_it_is_the_network_of_the_seed(cells: CellData) -> None:
    module, spec = begin(config_of(n_latent=3), cells)
    assert spec == spec_of(ModelConfig(n_latent=3), 4, cells)
    assert same(module, spec.build())


def test_a_model_of_the_same_class_goes_on_with_its_options(cells: CellData, tmp_path: Path) -> None:
    spec = spec_of(ModelConfig(n_latent=3, model_name="LinearSCVI"), 9, cells)
    save_model(tmp_path / "model", spec.build(), spec)
    module, found = begin(config_of(tmp_path / "model", model_name="LinearSCVI"), cells)
    assert found == spec
    assert same(module, spec.build())


def test_scanvi_takes_over_scvi_and_adds_options_of_its_own(cells: CellData, tmp_path: Path) -> None:
    spec = spec_of(ModelConfig(n_latent=3), 9, cells)
    save_model(tmp_path / "model", spec.build(), spec)
    asked = config_of(tmp_path / "model", model_name="SCANVI", linear_classifier=True)
    module, found = begin(asked, cells)
    assert (found.model.n_latent, found.model.linear_classifier, found.seed) == (3, True, 4)
    assert torch.equal(module.z_encoder.mean_encoder.weight, spec.build().z_encoder.mean_encoder.weight)


def test_a_query_begins_with_its_parts_frozen(adata: ad.AnnData, cells: CellData, tmp_path: Path) -> None:
    spec = spec_of(ModelConfig(encode_covariates=True), 9, cells)
    query = adata.copy()
    query.obs["batch"] = query.obs["batch"].astype(str).replace("b1", "b2")
    opened = open_data(query, batch_key="batch", labels_key="label", unlabeled_category="NK")
    extended, new_spec, fitted = load_query(spec.build(), spec, opened, seed=0)
    save_model(tmp_path / "model", extended, new_spec)
    module, found = begin(config_of(tmp_path / "model"), fitted)
    assert found == new_spec
    assert module.frozen.keys() == extended.frozen.keys() != set()
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in extended.parameters()]


def test_a_folder_without_a_model_is_refused(cells: CellData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is incomplete"):
        begin(config_of(tmp_path), cells)


def test_the_prior_of_the_library_is_that_of_all_cells(cells: CellData) -> None:
    module, _ = begin(config_of(use_observed_lib_size=False), cells)
    set_library_prior(module, cells, World())
    for found, expected in zip((module.library_log_means, module.library_log_vars), library_prior(cells), strict=True):
        np.testing.assert_array_equal(found[0], expected)
