"""Training and extending a model: what a notebook asks for is what a run does, and what cannot be is refused."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dist_scvi
from dist_scvi.loaders import CellData
from dist_scvi.model import SCANVI, SCVI

pytestmark = pytest.mark.filterwarnings("ignore:Trying to query inferred values:UserWarning")

SMALL = {"n_hidden": 16, "n_latent": 4}
DEEP = {**SMALL, "n_layers": 2, "encode_covariates": True, "use_layer_norm": "both", "use_batch_norm": "none"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan_kwargs": {"learning_rate": 1}}, r"^there is no key train\.learning_rate: did you mean"),
        ({"plan_kwargs": {"lr": -1}}, r"^train\.lr=-1 does not fit"),
        ({"max_epochs": 0}, r"^train\.max_epochs=0 does not fit"),
        ({"max_epochs": 2, "plan_kwargs": {"max_epochs": 3}}, r"^max_epochs is given as an argument and in"),
        ({"devices": [0, 1]}, r"^devices=\[0, 1\] is not offered: start several processes"),
        ({"max_steps": 3}, r"^max_steps=3 is not offered: a run is counted in epochs"),
        ({"accelerator": "tpu"}, r"^accelerator='tpu': auto, cpu, gpu or cuda is needed$"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(data: CellData, options: dict, message: str) -> None:
    model = SCVI(data, **SMALL)
    with pytest.raises(ValueError, match=message):
        model.train(enable_progress_bar=False, **options)
    assert not model.is_trained


def test_arguments_of_lightning_that_mean_the_same_here_are_accepted(data: CellData, tmp_path: Path) -> None:
    model = SCVI(data, **SMALL)
    same = {"devices": [0], "accelerator": "cpu", "strategy": "ddp_find_unused_parameters_true"}
    model.train(1, **same, load_sparse_tensor=True, max_steps=-1, limit_train_batches=1.0, enable_progress_bar=False)
    precise = SCVI(data, **SMALL)
    precise.train(1, precision="bf16-mixed", run=tmp_path / "run", enable_checkpointing=True, enable_progress_bar=False)
    assert not np.array_equal(precise.get_latent_representation(), model.get_latent_representation())


def test_a_column_says_which_cells_are_held_out(adata: ad.AnnData) -> None:
    model = SCVI(dist_scvi.open_data(adata), **SMALL)
    with pytest.raises(ValueError, match=r"^data_kwargs has layer: it can have split_key, holdout_key"):
        model.train(1, data_kwargs={"layer": "x"}, enable_progress_bar=False)
    model.train(1, data_kwargs={"holdout_key": "batch"}, enable_progress_bar=False)
    held_out = adata.obs["batch"].to_numpy()[model.validation_indices]
    assert len(set(held_out)) == 1
    assert not set(held_out) & set(adata.obs["batch"].to_numpy()[model.train_indices])


def test_a_training_that_fails_leaves_the_model_as_it_was(data: CellData) -> None:
    model = SCVI(data, **SMALL)
    model.train(1, enable_progress_bar=False)
    before = model.get_latent_representation()
    with pytest.raises(FloatingPointError, match=r"the loss became|not finite"):
        model.train(4, plan_kwargs={"lr": 1e12}, enable_progress_bar=False)
    np.testing.assert_array_equal(model.get_latent_representation(), before)
    model.train(1, enable_progress_bar=False)
    assert np.isfinite(model.get_latent_representation()).all()


def test_an_interrupted_training_keeps_what_it_has_and_can_be_repeated(
    data: CellData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SCVI(data, **SMALL)
    untrained = model.get_latent_representation()
    encode, calls = type(model.module).reconstruction, []

    def interrupted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return encode(*args, **kwargs)

    monkeypatch.setattr(type(model.module), "reconstruction", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.train(30, enable_progress_bar=False)
    assert model.is_trained
    assert len(model.history["elbo_train"]) >= 1
    assert not np.allclose(model.get_latent_representation(), untrained)
    model.train(1, enable_progress_bar=False)
    assert len(model.history["elbo_train"]) >= 2


def test_a_run_that_goes_on_has_one_history(data: CellData, tmp_path: Path) -> None:
    model, plan = SCVI(data, **SMALL), {"n_steps_kl_warmup": 5}
    for epochs in (1, 3):
        model.train(epochs, run=tmp_path / "run", plan_kwargs=plan, enable_progress_bar=False)
    assert list(model.history["elbo_train"].index) == [0, 1, 2]


def test_a_second_training_goes_on_with_the_history_of_the_first(data: CellData) -> None:
    model = SCVI(data, **SMALL)
    for _ in range(2):
        model.train(2, enable_progress_bar=False)
    assert list(model.history["elbo_train"].index) == [0, 1, 2, 3]
    assert list(model.history["elbo_validation"].index) == [0, 1, 2, 3]


def test_early_stopping_ends_training(data: CellData) -> None:
    model = SCVI(data, **SMALL)
    stopping = {"early_stopping": True, "early_stopping_patience": 2, "early_stopping_min_delta": 1e9}
    model.train(30, "cpu", 1, 0.8, check_val_every_n_epoch=1, enable_progress_bar=False, **stopping)
    assert len(model.history["elbo_train"]) < 6


def test_no_cells_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^SCVI needs cells: an AnnData after setup_anndata, a store, or"):
        SCVI()


@pytest.fixture(scope="module")
def reference(adata: ad.AnnData) -> SCVI:
    model = SCVI(dist_scvi.open_data(adata, batch_key="batch", categorical_covariate_keys=["site"]), **DEEP)
    model.train(3, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def query(adata: ad.AnnData) -> ad.AnnData:
    cells = adata[:120].copy()
    cells.obs["batch"] = pd.Categorical(["new"] * 120)
    return cells[:, ::-1].copy()


def test_a_query_moves_what_is_new_and_nothing_else(reference: SCVI, query: ad.AnnData, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in reference.module.state_dict().items()}
    mapped = SCVI.load_query_data(query, reference)
    assert mapped.spec.batch.categories == ("b0", "b1", "new")
    untrained = mapped.get_latent_representation()
    mapped.train(3, plan_kwargs={"weight_decay": 0.1}, enable_progress_bar=False)
    assert not np.allclose(mapped.get_latent_representation(), untrained, atol=1e-3)
    for name, value in mapped.module.state_dict().items():
        if value.shape == before[name].shape and name.endswith("weight"):
            np.testing.assert_array_equal(value, before[name], err_msg=name)
    for name, value in reference.module.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    mapped.save(tmp_path / "mapped")
    again = SCVI.load(tmp_path / "mapped", query)
    np.testing.assert_array_equal(again.get_latent_representation(), mapped.get_latent_representation())


def test_a_query_of_one_new_batch_moves_onto_a_reference_with_batch_normalisation(
    adata: ad.AnnData, query: ad.AnnData
) -> None:
    """By the statistics of its own minibatches, what all cells of a minibatch share would fall out again."""
    reference = SCVI(dist_scvi.open_data(adata, batch_key="batch"), **SMALL, n_layers=2, encode_covariates=True)
    reference.train(2, enable_progress_bar=False)
    mapped = SCVI.load_query_data(query, reference)
    before = mapped.get_latent_representation()
    mapped.train(20, enable_progress_bar=False)
    assert np.abs(mapped.get_latent_representation() - before).max() > 1e-2


def test_a_reference_is_taken_from_its_folder_too(reference: SCVI, query: ad.AnnData, tmp_path: Path) -> None:
    reference.save(tmp_path / "reference")
    mapped = [SCVI.load_query_data(query, source) for source in (reference, tmp_path / "reference")]
    np.testing.assert_array_equal(*(model.get_latent_representation() for model in mapped))


@pytest.mark.filterwarnings("ignore:training on the query will not change:UserWarning", "error:Trying to query")
def test_a_query_without_new_batches_may_be_asked_at_once(reference: SCVI, adata: ad.AnnData) -> None:
    mapped = SCVI.load_query_data(adata, reference)
    assert mapped.is_trained
    before = mapped.get_latent_representation()
    with pytest.warns(UserWarning, match=r"^nothing of this query is trained: its reference knows all its batches"):
        mapped.train(1, enable_progress_bar=False)
    np.testing.assert_array_equal(mapped.get_latent_representation(), before)
    moved = SCVI.load_query_data(adata, reference, freeze_reference_categories=False)
    moved.train(1, enable_progress_bar=False)
    assert not np.array_equal(moved.get_latent_representation(), before)


@pytest.mark.filterwarnings("ignore:training on the query will not change:UserWarning")
def test_cells_of_the_reference_stay_where_they_were(reference: SCVI, adata: ad.AnnData) -> None:
    mapped = SCVI.load_query_data(adata, reference)
    np.testing.assert_allclose(
        mapped.get_latent_representation(), reference.get_latent_representation(), rtol=1e-4, atol=1e-5
    )


def test_a_reference_of_one_batch_gets_a_second(adata: ad.AnnData, query: ad.AnnData) -> None:
    one = adata[adata.obs["batch"] == "b0"].copy()
    reference = SCVI(dist_scvi.open_data(one, batch_key="batch"), **DEEP)
    mapped = SCVI.load_query_data(query, reference)
    assert mapped.spec.batch.categories == ("b0", "new")
    known = SCVI.load_query_data(ad.concat([one, query], merge="same", index_unique="-"), reference)
    latent = known.get_latent_representation(indices=range(one.n_obs))
    np.testing.assert_allclose(latent, reference.get_latent_representation(), rtol=1e-4, atol=1e-5)


def test_a_reference_that_scvi_tools_wrote_is_taken_too(reference: SCVI, query: ad.AnnData, tmp_path: Path) -> None:
    reference.save(tmp_path / "theirs", format="scvi-tools")
    mapped = [SCVI.load_query_data(query, source, seed=3) for source in (reference, tmp_path / "theirs")]
    np.testing.assert_array_equal(*(model.get_latent_representation() for model in mapped))


def test_a_query_file_is_mapped_as_an_anndata_is(reference: SCVI, query: ad.AnnData, tmp_path: Path) -> None:
    query.write_h5ad(tmp_path / "query.h5ad")
    mapped = [SCVI.load_query_data(source, reference) for source in (query, tmp_path / "query.h5ad")]
    for model in mapped:
        model.train(1, enable_progress_bar=False)
    np.testing.assert_array_equal(*(model.get_latent_representation() for model in mapped))


def test_a_query_without_half_of_the_genes_is_refused_unless_asked(reference: SCVI, query: ad.AnnData) -> None:
    few = query[:, :10].copy()
    with pytest.raises(ValueError, match=r"10 of .*50"):
        SCVI.load_query_data(few, reference)
    with pytest.warns(UserWarning, match="gene"):
        mapped = SCVI.load_query_data(few, reference, min_overlap=0.1)
    assert mapped.get_latent_representation().shape == (120, 4)


def test_a_query_of_another_class_is_refused(reference: SCVI, query: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"^the reference is SCVI: use SCVI\.load_query_data$"):
        SCANVI.load_query_data(query, reference)


def test_a_surgery_that_cannot_change_the_latent_space_says_so(adata: ad.AnnData, query: ad.AnnData) -> None:
    plain = SCVI(dist_scvi.open_data(adata, batch_key="batch"), **SMALL)
    with pytest.warns(UserWarning, match="encode_covariates"):
        SCVI.load_query_data(query, plain)


def test_labels_of_a_query_are_told_by_the_reference(adata: ad.AnnData, query: ad.AnnData) -> None:
    cells = adata.copy()
    cells.obs["told"] = cells.obs["label"].astype(str)
    reference = SCANVI(
        dist_scvi.open_data(cells, batch_key="batch", labels_key="told", unlabeled_category="Unknown"),
        **{**DEEP, "n_hidden": 32},
    )
    reference.train(12, enable_progress_bar=False)
    with pytest.warns(UserWarning, match="has no labels"):
        mapped = SCANVI.load_query_data(query, reference)
    mapped.train(2, plan_kwargs={"weight_decay": 0.0}, enable_progress_bar=False)
    assert (mapped.predict() == query.obs["label"].to_numpy()).mean() > 0.8


def test_an_anndata_is_given_the_genes_of_the_reference_if_asked(reference: SCVI, query: ad.AnnData) -> None:
    cells = query.copy()
    mapped = SCVI.load_query_data(cells, reference, inplace_subset_query_vars=True, accelerator="cpu")
    assert tuple(cells.var_names) == mapped.spec.var_names


def test_a_query_can_be_prepared_before_it_is_mapped(reference: SCVI, query: ad.AnnData) -> None:
    prepared = SCVI.prepare_query_data(query, reference)
    assert tuple(prepared.store.var_names) == reference.spec.var_names
    mapped = [SCVI.load_query_data(source, reference) for source in (query, prepared)]
    np.testing.assert_array_equal(*(model.get_latent_representation() for model in mapped))


def test_genes_of_a_query_are_put_into_the_order_of_the_reference(reference: SCVI, query: ad.AnnData) -> None:
    cells = query[:, :40].copy()
    SCVI.prepare_query_anndata(cells, reference)
    assert tuple(cells.var_names) == reference.spec.var_names
    assert SCVI.prepare_query_anndata(query.copy(), reference, inplace=False).shape == (120, 50)
