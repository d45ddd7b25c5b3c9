"""A new donor is mapped onto an atlas in one call, as a query of the model would be."""

import numpy as np
import pytest

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.config.schema import REFERENCE
from dist_scvi.model import SCVI


@pytest.fixture(scope="module")
def reference(adata, tmp_path_factory):
    """An atlas that is fit to be a reference."""
    cells = adata.copy()
    SCVI.setup_anndata(cells, batch_key="batch")
    model = SCVI(cells, n_hidden=16, n_latent=4, **REFERENCE)
    model.train(2, enable_progress_bar=False)
    return model, model.minify(tmp_path_factory.mktemp("reference") / "atlas")


def test_training_says_at_the_start_what_makes_a_reference_unfit(adata, caplog):
    for options, said in ((REFERENCE, False), ({}, True)):
        cells = adata[:60].copy()
        SCVI.setup_anndata(cells, batch_key="batch")
        SCVI(cells, n_hidden=8, n_latent=2, **options).train(1, enable_progress_bar=False)
        assert ("later batches cannot be mapped onto this model: encode_covariates=False" in caplog.text) is said


@pytest.fixture
def donor(adata):
    """Cells of a new batch, their genes in another order and one of them absent."""
    cells = adata[:90, ::-1][:, 1:].copy()
    cells.obs = cells.obs.assign(batch="new")[["batch", "label"]]
    return cells


def test_a_new_donor_is_mapped_as_by_the_model(reference, donor, tmp_path):
    model, atlas = reference
    mapped = atlas.map(donor, max_epochs=2)
    by_hand = SCVI.load_query_data(donor, model)
    by_hand.train(2, enable_progress_bar=False)
    mean_nk, variance_nk = by_hand.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(mapped.qzm_nk, mean_nk)
    np.testing.assert_array_equal(mapped.qzv_nk, variance_nk)
    assert mapped.spec.batch.categories == ("b0", "b1", "new")
    assert len(mapped.history["elbo_train"]) == 2
    assert mapped.reference == atlas.digest
    mapped.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", SCVI.prepare_query_data(donor, tmp_path / "model"))
    np.testing.assert_array_equal(loaded.get_latent_representation(), mapped.qzm_nk)
    with pytest.raises(ValueError, match="exists"):
        mapped.save(tmp_path / "model")
    mapped.minify(tmp_path / "atlas")
    answers = open_atlas(tmp_path / "atlas")
    order = np.argsort(answers.read_source_row())
    np.testing.assert_allclose(answers.read_latent(order)[0], mapped.qzm_nk, rtol=2**-10, atol=1e-5)
    assert answers.manifest["lineage"]["mapped_to"] == atlas.digest
    assert set(answers.counterfactual("new", "b0", ["gene3"]).table["n"]) == {90}


def test_cells_of_a_known_batch_are_mapped_without_training(reference, adata):
    model, atlas = reference
    mapped = atlas.map(adata[5:40].copy())
    np.testing.assert_allclose(mapped.qzm_nk, model.get_latent_representation()[5:40], rtol=1e-4, atol=1e-5)
    assert not mapped.history


@pytest.mark.filterwarnings("ignore:.*not whole.*:UserWarning")
def test_what_cannot_be_mapped_is_refused_and_the_atlas_stays(reference, donor):
    _, atlas = reference
    before = {name: value.clone() for name, value in atlas.module.state_dict().items()}
    with pytest.raises(ValueError, match="lacks obs columns that the reference was trained with: 'batch'"):
        atlas.map(_without_batch(donor))
    with pytest.raises(ValueError, match="min_overlap"):
        atlas.map(donor[:, :10].copy())
    with pytest.raises(ValueError, match="raw counts"):
        atlas.map(_normalised(donor))
    with pytest.raises(ValueError, match="learning_rate"):
        atlas.map(donor, plan_kwargs={"learning_rate": 0.1})
    after = atlas.module.state_dict()
    assert all(bool((value == after[name]).all()) for name, value in before.items())


def _without_batch(cells):
    changed = cells.copy()
    del changed.obs["batch"]
    return changed


def _normalised(cells):
    changed = cells.copy()
    changed.X = changed.X / 3
    return changed
