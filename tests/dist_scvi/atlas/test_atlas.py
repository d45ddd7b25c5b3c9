"""The minified atlas answers alone, as the model would, and refuses every damage with its path."""

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.loaders import open_data
from dist_scvi.model import SCANVI, SCVI

GENES = ["gene7", "gene49", "gene0"]


@pytest.fixture(scope="module")
def path(model: SCVI, adata: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas whose store is gone; every array has several shards of two chunks."""
    folder = tmp_path_factory.mktemp("atlas")
    cells = adata.copy()
    cells.obs["group"] = pd.Categorical.from_codes(np.arange(403) % 4 - 1, ["g1", "g0", "g2"])
    cells.write_h5ad(folder / "cells.h5ad")
    keys = {"batch_key": "batch", "labels_key": "label"}
    covariates = {"categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}
    data = open_data(folder / "cells.h5ad", **keys, **covariates)
    model.save(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dist_scvi.atlas.minify._CHUNK_CELLS", 16)
        SCVI.load(folder / "model", data).minify(folder / "atlas", obs_columns=["group"])
    data.store.close()
    (folder / "cells.h5ad").unlink()
    return folder / "atlas"


@pytest.fixture(scope="module")
def atlas(path: Path) -> Atlas:
    return open_atlas(path)


@pytest.fixture
def copy(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(path, tmp_path / "atlas"))


def ask_everything(path: Path) -> None:
    """Read all that an atlas holds."""
    atlas = open_atlas(path)
    atlas.obs_names()
    for key in ("label", "group"):
        atlas.mean_expression(key, GENES[:1], library_size="latent")


def test_the_latent_space_is_that_of_the_model(model: SCVI, atlas: Atlas) -> None:
    for found, expected in zip(
        atlas.get_latent_representation(return_dist=True),
        model.get_latent_representation(return_dist=True),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("indices", [[400, 3, 3, 17, 399], [5], [], np.arange(402, -1, -7)])
def test_cells_come_in_the_order_asked_also_twice(atlas: Atlas, indices: list[int]) -> None:
    whole = atlas.get_latent_representation()
    np.testing.assert_array_equal(atlas.get_latent_representation(indices), whole[np.asarray(indices, dtype=int)])
    assert list(atlas.obs_names(indices)) == [f"cell{row}" for row in indices]


def test_a_mask_chooses_cells(atlas: Atlas) -> None:
    mask = np.arange(403) % 50 == 1
    np.testing.assert_array_equal(
        atlas.get_latent_representation(mask), atlas.get_latent_representation(np.flatnonzero(mask))
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gene_list": GENES, "indices": [9, 300, 9]},
        {"gene_list": GENES, "transform_batch": ["b1", "b0"], "library_size": "latent"},
        {"gene_list": GENES, "n_samples": 3, "seed": 5, "library_size": 1e4},
    ],
)
def test_expression_is_that_of_the_model(model: SCVI, atlas: Atlas, options: dict) -> None:
    options = {"n_samples": None} | options
    found, expected = atlas.get_normalized_expression(**options), model.get_normalized_expression(**options)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, check_names=False)


def test_samples_under_one_seed_are_equal_and_differ_under_another(atlas: Atlas) -> None:
    first, again, other = (
        atlas.get_normalized_expression(GENES, indices=[3, 300], n_samples=2, seed=seed) for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(first, again)
    assert not np.isclose(first, other).any()


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({}, {"latent_distribution": "ln"}),
        ({}, {"use_observed_lib_size": False}),
        ({"size_factor_key": "age"}, {}),
        ({"labels_key": "label"}, {"dispersion": "gene-label"}),
    ],
)
def test_every_kind_of_model_answers_from_its_atlas(
    adata: ad.AnnData, tmp_path: Path, keys: dict, options: dict
) -> None:
    model = SCVI(open_data(adata, batch_key="batch", **keys), n_hidden=16, n_latent=4, **options)
    atlas, some = model.minify(tmp_path / "atlas"), [300, 7, 9]
    for dist in (False, True):
        found, expected = (
            asked.get_latent_representation(indices=some, return_dist=dist, mc_samples=300) for asked in (atlas, model)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for size in (1.0, "latent"):
        asked = {"indices": some, "library_size": size, "n_samples": None}
        found, expected = atlas.get_normalized_expression(**asked), model.get_normalized_expression(**asked)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, check_names=False)


def test_labels_are_predicted_as_the_model_does(adata: ad.AnnData, tmp_path: Path) -> None:
    data = open_data(adata, batch_key="batch", labels_key="label", unlabeled_category="NK")
    model = SCANVI(data, n_hidden=16, n_latent=4)
    log_nl = np.log(model.predict(soft=True))
    with torch.no_grad():  # half of the cells get either label
        model.module.classifier.classifier[-1].bias[0] -= float((log_nl["B"] - log_nl["T"]).median())
    atlas = model.minify(tmp_path / "atlas")
    pd.testing.assert_frame_equal(atlas.predict(soft=True), model.predict(soft=True), rtol=1e-4)
    pd.testing.assert_frame_equal(
        atlas.predict([300, 7, 300], soft=True), model.predict(indices=[300, 7, 300], soft=True), rtol=1e-4
    )
    assert {*atlas.predict()} == {"B", "T"}
    np.testing.assert_array_equal(atlas.predict([300, 7, 300]), model.predict()[[300, 7, 300]])
    assert atlas.predict([]).tolist() == []


@pytest.mark.parametrize("indices", [None, np.arange(0, 403, 3)])
@pytest.mark.parametrize("groupby", ["label", "group"])
def test_mean_expression_is_the_mean_by_group(atlas: Atlas, groupby: str, indices: np.ndarray | None) -> None:
    options = {"indices": indices, "transform_batch": "b0", "n_samples": 2, "library_size": "latent"}
    frame = atlas.get_normalized_expression(GENES, **options)
    column = atlas.obs.categorical(groupby)
    codes = column.codes(0, 403)[slice(None) if indices is None else indices]
    names = pd.Series(codes, frame.index).map(dict(enumerate(column.vocabulary)))
    expected = frame.astype(float).groupby(names).mean()
    found = atlas.mean_expression(groupby, GENES, **options)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, check_names=False)
    assert found.index.name == groupby


def test_cells_without_a_label_are_in_no_group(atlas: Atlas) -> None:
    sizes = atlas.group_sizes("group")
    assert sizes.to_dict() == {"g0": 101, "g1": 101, "g2": 100}
    assert atlas.group_sizes("group", [0, 1, 4, 5]).to_dict() == {"g0": 0, "g1": 2, "g2": 0}
    assert list(atlas.mean_expression("group", GENES, indices=[0, 1, 4, 5]).index) == ["g1"]


def test_cells_are_selected_by_their_columns(atlas: Atlas, adata: ad.AnnData) -> None:
    expected = np.flatnonzero((adata.obs["site"] == "x") & (adata.obs["batch"] == "b1"))
    np.testing.assert_array_equal(atlas.select(site="x", batch="b1"), expected)
    assert len(atlas.select()) == 403


def test_cells_are_found_by_name_in_the_order_given(atlas: Atlas) -> None:
    assert atlas.find(["cell400", "cell2", "cell400"]).tolist() == [400, 2, 400]
    assert atlas.find([]).tolist() == []


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda atlas: atlas.select(sites="x"), r"atlas has no obs column 'sites': did you mean 'site'"),
        (lambda atlas: atlas.select(site="w"), r"^obs column 'site' has no value 'w': it has x, y, z$"),
        (lambda atlas: atlas.find(["cell1", "c9"]), r"atlas has no cell named c9 \(1 of 2 asked for\)$"),
        (lambda atlas: atlas.mean_expression("sites"), r"atlas has no obs column 'sites': did you mean 'site'"),
        (
            lambda atlas: atlas.get_latent_representation([403]),
            r"^indices run from 403 to 403: there are cells 0 to 402",
        ),
        (lambda atlas: atlas.obs_names([-1]), r"^indices run from -1 to -1"),
        (lambda atlas: atlas.group_sizes("label", [999]), r"^indices run from 999 to 999"),
        (lambda atlas: atlas.get_normalized_expression(["CD4"]), r"^the model has no gene 'CD4'"),
        (lambda atlas: atlas.predict(), r"atlas was made with SCVI: only SCANVI predicts labels$"),
    ],
)
def test_what_is_not_there_is_named(atlas: Atlas, ask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(atlas)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no minified atlas .*nowhere: make one with"):
        open_atlas(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_a_folder_that_is_no_atlas_is_refused(copy: Path, content: str | None) -> None:
    (copy / "ATLAS.json").unlink()
    if content is not None:
        (copy / "ATLAS.json").write_text(content)
    with pytest.raises(ValueError, match=r"atlas is no minified atlas: its ATLAS\.json is missing or unreadable"):
        open_atlas(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "dist_scvi.atlas/2"}, r"has format 'dist_scvi\.atlas/2': 'dist_scvi\.atlas/1' is needed"),
        ({"n_cells": 404}, r"atlas disagrees with itself: its arrays hold \[403, 404\] cells, obs 403$"),
        ({"described": {}}, r"cells\.zarr/layers/zarr\.json is missing, new or changed"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(copy: Path, change: dict, message: str) -> None:
    manifest = json.loads((copy / "ATLAS.json").read_text()) | change
    (copy / "ATLAS.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        open_atlas(copy)


def test_a_manifest_without_the_number_of_cells_is_refused(copy: Path) -> None:
    (copy / "ATLAS.json").write_text('{"format": "dist_scvi.atlas/1"}')
    with pytest.raises(ValueError, match=r"ATLAS\.json lacks n_cells or described"):
        open_atlas(copy)


def test_a_flipped_byte_of_the_model_is_refused(copy: Path) -> None:
    weights = copy / "model" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.safetensors has changed"):
        open_atlas(copy)


ARRAYS = [
    "obsm/scvi_latent_qzm/c/{}/0",
    "obsm/scvi_latent_qzv/c/{}/0",
    "obs/observed_lib_size/c/{}",
    "obs/source_row/c/{}",
    "obs/_index/c/{}",
    "obs/age/c/{}",
    "obs/group/codes/c/{}",
]


@pytest.mark.parametrize("shard", [0, 12])
@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_or_truncated_chunk_is_refused_with_the_path(copy: Path, name: str, shard: int) -> None:
    file = copy / "cells.zarr" / name.format(shard)
    content = file.read_bytes()
    for kept in (0, 1, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=str(copy)):
            ask_everything(copy)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{copy!s}.* lacks 1 of 13 chunks, the first is {name.format(shard)}"):
        ask_everything(copy)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_byte_of_a_chunk_is_refused_with_the_path(copy: Path, name: str) -> None:
    file = copy / "cells.zarr" / name.format(7)
    good = file.read_bytes()
    for number, at in enumerate(np.unique(np.linspace(0, len(good) - 1, 12).astype(int))):
        content = bytearray(good)
        content[at] ^= (1, 0x80, 0xFF)[number % 3]
        file.write_bytes(content)
        with pytest.raises(ValueError, match=str(copy)):
            ask_everything(copy)


def test_a_flipped_byte_of_a_description_is_refused_with_its_path(copy: Path) -> None:
    small = [*copy.rglob("zarr.json"), *copy.rglob("categories/c/*"), *copy.rglob("var/*/c/*")]
    assert len(small) > 25
    for file in small:
        good = file.read_bytes()
        content = bytearray(good)
        content[len(good) // 3] ^= 2
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{file} is missing, new or changed"):
            open_atlas(copy)
        file.unlink()
        with pytest.raises(ValueError, match=f"{file} is missing, new or changed"):
            open_atlas(copy)
        file.write_bytes(good)
    ask_everything(copy)


def test_a_model_that_did_not_encode_the_cells_is_refused(copy: Path, model: SCVI) -> None:
    shutil.rmtree(copy / "model")
    SCVI(model.data, n_latent=3).save(copy / "model")
    with pytest.raises(ValueError, match=r"model/MANIFEST\.json is missing, new or changed"):
        open_atlas(copy)


@pytest.mark.parametrize("change", [{"n_cells": "403"}, {"n_cells": [1]}, {"described": []}, {"described": 3}])
def test_a_manifest_of_other_kinds_of_values_is_refused(copy: Path, change: dict) -> None:
    manifest = json.loads((copy / "ATLAS.json").read_text())
    (copy / "ATLAS.json").write_text(json.dumps(manifest | change))
    with pytest.raises(ValueError, match="lacks n_cells or described"):
        open_atlas(copy)
