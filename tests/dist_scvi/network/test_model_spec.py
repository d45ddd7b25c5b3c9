"""A saved model: equal when read, refused when damaged, and used only on genes and categories it knows."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import safetensors.torch
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders import CellData, open_data
from dist_scvi.model import SCVI
from dist_scvi.network.fit_data import fit_to_spec, open_for
from dist_scvi.network.model_files import load_history, load_model, save_model
from dist_scvi.network.model_spec import Covariate, ModelSpec, spec_of
from dist_scvi.storage.atomic_files import read_folder, write_folder
from dist_scvi.storage.run_storage import open_run_storage
from tests.loaders.object_server import ObjectServer


def reopen(adata: ad.AnnData, **changes: object) -> CellData:
    keys = {"batch_key": "batch", "categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}
    return open_data(adata.copy(), **(keys | changes))


@pytest.fixture
def saved(model: SCVI, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", model.module, model.spec)
    return tmp_path / "model"


def test_a_saved_model_reads_back_equal(model: SCVI, saved: Path) -> None:
    module, spec = load_model(saved)
    assert spec == model.spec
    assert not module.training
    for name, value in model.module.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_building_leaves_the_random_state_of_torch_alone(model: SCVI) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = model.spec.build(), model.spec.build()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.px_r, second.px_r)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    files = read_folder(saved)
    weights = safetensors.torch.load(files["weights.safetensors"]) | {"px_r": torch.zeros(7)}
    write_folder(saved, files | {"weights.safetensors": safetensors.torch.save(weights)})
    with pytest.raises(ValueError, match=r"^weights and specification in .* do not fit each other: px_r$"):
        load_model(saved)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("spec.json", b"{}", r"^the model in .*model cannot be read"),
        ("spec.json", b"\x80\x04K\x01.", r"^the model in .*model cannot be read"),
        ("weights.safetensors", b"\x80\x04K\x01.", r"^the model in .*model cannot be read"),
    ],
)
def test_files_that_hold_no_model_are_refused(saved: Path, name: str, content: bytes, message: str) -> None:
    write_folder(saved, read_folder(saved) | {name: content})
    with pytest.raises(ValueError, match=message):
        load_model(saved)


def test_a_specification_of_another_format_is_refused(saved: Path) -> None:
    files = read_folder(saved)
    changed = json.loads(files["spec.json"]) | {"format": "dist_scvi.model/3"}
    write_folder(saved, files | {"spec.json": json.dumps(changed).encode()})
    with pytest.raises(ValueError, match=r"cannot be read(.|\n)*dist_scvi\.model/1"):
        load_model(saved)


def test_a_model_is_saved_and_read_in_object_storage_as_on_a_disk(model: SCVI, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    with ObjectServer(tmp_path) as server:
        for uri in ("s3://bucket/model", str(tmp_path / "model")):
            place = open_run_storage(uri, storage_options=server.s3_options)
            save_model(place, model.module, model.spec, history={"a": 1}, is_trained=False)
            module, spec = load_model(place)
            assert spec == model.spec
            assert all(map(torch.equal, module.state_dict().values(), model.module.state_dict().values()))
            assert load_history(place) == ({"a": 1}, False)
            place.write("spec.json", b"{}")
            with pytest.raises(ValueError, match=rf"^{uri}/spec.json has 2 bytes"):
                load_model(place)


def test_a_model_that_is_not_there_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    for read in (load_model, load_history):
        with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/model does not exist"):
            read(tmp_path / "model")


def test_a_folder_of_something_else_is_no_model(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", {"state.json": b"{}"})
    with pytest.raises(ValueError, match=r"is no model folder: weights\.safetensors and spec\.json are needed"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["weights.safetensors", "spec.json", "MANIFEST.json"])
def test_a_flipped_byte_is_refused_with_the_path(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    for at in np.linspace(0, len(content) - 3, 9).astype(int):
        content[at] ^= 0x80
        (saved / name).write_bytes(content)
        with pytest.raises(ValueError, match=str(saved)):
            load_model(saved)
        content[at] ^= 0x80


def test_lacking_genes_are_named(model: SCVI, adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"on 50 genes, memory lacks 3 of them \(gene0, gene1, gene2\): prepare"):
        fit_to_spec(reopen(adata[:, 3:]), model.spec)


def test_genes_in_another_order_and_further_genes_are_refused(model: SCVI, adata: ad.AnnData) -> None:
    more = ad.concat(
        [adata, ad.AnnData(adata.X[:, :1], adata.obs, adata.var[:0].reindex(["new"]))], axis=1, merge="same"
    )
    for other in (adata[:, ::-1], more):
        with pytest.raises(ValueError, match=r"on 50 genes, memory has others, or another order: prepare"):
            fit_to_spec(reopen(other), model.spec)


def test_unknown_categories_are_named(model: SCVI, adata: ad.AnnData) -> None:
    other = adata.copy()
    other.obs["site"] = other.obs["site"].cat.rename_categories({"y": "w"})
    with pytest.raises(
        ValueError,
        match=r"^obs column 'site' has 1 categories that the model was not trained on \(w\): extend .*it knows x, y",
    ):
        fit_to_spec(reopen(other), model.spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_key": None}, r"batch_key='batch' \(found None\)$"),
        ({"categorical_covariate_keys": []}, r"categorical_covariate_keys=\('site',\) \(found \(\)\)$"),
        ({"continuous_covariate_keys": []}, r"continuous_covariate_keys=\('age',\) \(found \(\)\)$"),
        ({"size_factor_key": "age"}, r"size_factor_key=None \(found 'age'\)$"),
    ],
)
def test_what_the_data_was_opened_without_is_named(
    model: SCVI, adata: ad.AnnData, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^memory was not opened as the model needs it: .*" + message):
        fit_to_spec(reopen(adata, **changes), model.spec)


def test_cells_with_some_of_the_categories_get_the_codes_of_the_model(model: SCVI, adata: ad.AnnData) -> None:
    some = np.flatnonzero((adata.obs["site"] != "x") & (adata.obs["batch"] == "b1"))
    opened = reopen(adata[some])
    assert opened.categorical_covariates[0].vocabulary == ("y", "z")
    fitted = fit_to_spec(opened, model.spec)
    assert fitted.batch is not None
    np.testing.assert_array_equal(fitted.batch.codes(0, 50), np.ones(50))
    np.testing.assert_array_equal(
        fitted.categorical_covariates[0].codes(0, len(some)), model.data.categorical_covariates[0].codes(0, 403)[some]
    )


def test_categories_in_another_order_get_the_codes_of_the_model(model: SCVI, adata: ad.AnnData) -> None:
    site = Covariate(key="site", categories=("z", "x", "y"))
    spec = model.spec.model_copy(update={"categorical_covariates": (site,)})
    column = fit_to_spec(reopen(adata), spec).categorical_covariates[0]
    assert [site.categories[code] for code in column.codes(0, 403)] == list(adata.obs["site"])


def scanvi_spec(data: CellData, **options: object) -> ModelSpec:
    return spec_of(ModelConfig(model_name="SCANVI", n_hidden=8, **options), 0, data)


def test_the_unlabeled_category_is_no_label_and_the_last_one_takes_its_place(adata: ad.AnnData) -> None:
    data = open_data(adata, labels_key="label", unlabeled_category="B")
    assert scanvi_spec(data).label.categories == ("T", "NK")
    assert scanvi_spec(data).n_labels == 2
    np.testing.assert_array_equal(data.label.codes(0, 403) < 0, adata.obs["label"] == "B")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"^SCANVI learns labels: name their obs column as labels_key$"),
        ("U", r"^obs column 'told' has 0 labels besides 'U' \(all cells are unlabelled\): SCANVI needs two or more"),
        ("one", r"^obs column 'told' has 1 label besides 'U' \(one\): SCANVI needs two or more"),
    ],
)
def test_scanvi_without_two_labels_is_refused(adata: ad.AnnData, labels: str | None, message: str) -> None:
    other = adata.copy()
    other.obs["told"] = labels or "U"
    keys = {} if labels is None else {"labels_key": "told", "unlabeled_category": "U"}
    with pytest.raises(ValueError, match=message):
        scanvi_spec(open_data(other, **keys))


def test_a_label_that_looks_like_none_is_asked_about(adata: ad.AnnData) -> None:
    other = adata.copy()
    other.obs["told"] = other.obs["label"].astype(object).where(np.arange(403) % 2 == 0, "Unknown")
    with pytest.raises(ValueError, match=r"^obs column 'told' has a label 'Unknown': name it as unlabeled_category"):
        scanvi_spec(open_data(other, labels_key="told"))
    assert "Unknown" in scanvi_spec(open_data(other, labels_key="told", unlabeled_category="not told")).label.categories


def test_a_prior_of_another_number_of_labels_is_refused(data: CellData) -> None:
    with pytest.raises(ValueError, match=r"^y_prior has 2 probabilities: 3 labels are in 'label'$"):
        scanvi_spec(data, y_prior=(0.5, 0.5))


def test_linear_scvi_with_covariates_is_refused(data: CellData) -> None:
    with pytest.raises(ValueError, match=r"^LinearSCVI has no covariate but the batch: leave out \['site', 'age'\]$"):
        spec_of(ModelConfig(model_name="LinearSCVI"), 0, data)


def test_cells_without_a_column_of_labels_are_unlabelled_to_scanvi(adata: ad.AnnData) -> None:
    spec = scanvi_spec(open_data(adata, labels_key="label", unlabeled_category="none"))
    unlabelled = open_for(
        adata[:, ::-1], spec.model_copy(update={"label": Covariate(key="absent", categories=("a", "b"))})
    )
    assert (unlabelled.label.codes(0, 403) == -1).all()
    assert tuple(unlabelled.store.var_names) == spec.var_names  # in whatever order they lie


def test_a_label_that_dispersion_needs_must_be_there(adata: ad.AnnData) -> None:
    other = adata.copy()
    other.obs["gap"] = other.obs["label"].astype(object).where(np.arange(403) != 7)
    data = open_data(other, labels_key="gap")
    spec = spec_of(ModelConfig(dispersion="gene-label"), 0, data)
    with pytest.raises(ValueError, match=r"^obs column 'gap' has no value at row 7"):
        fit_to_spec(data, spec).columns_of([(0, 20)])
    open_for(other, spec.model_copy(update={"model": ModelConfig()})).columns_of([(0, 20)])


def test_history_and_what_was_trained_come_back(model: SCVI, tmp_path: Path) -> None:
    history = {"elbo_train": {"index": [0], "columns": ["elbo_train"], "data": [[3.5]]}}
    save_model(tmp_path / "model", model.module, model.spec, history=history, is_trained=False)
    assert load_history(tmp_path / "model") == (history, False)
