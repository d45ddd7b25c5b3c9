"""The minified atlas answers alone, as the model would."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.loaders import open_data
from dist_scvi.model import SCANVI, SCVI

GENES = ["gene7", "gene49", "gene0"]
NEAR = {"rtol": 1e-2, "atol": 1e-6}
"""Answers from means in 16 and variances in 8 bits."""


def test_cells_come_in_the_order_requested_also_twice(atlas: Atlas) -> None:
    whole, names = atlas.get_latent_representation(), atlas.obs_names()
    for indices in ([400, 3, 3, 17, 399], [5], [], np.arange(402, -1, -7)):
        chosen = np.asarray(indices, dtype=int)
        np.testing.assert_array_equal(atlas.get_latent_representation(indices), whole[chosen])
        np.testing.assert_array_equal(atlas.obs_names(indices), names[chosen])


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
    rows = np.asarray(options.pop("indices", np.arange(403)))
    found = atlas.get_normalized_expression(indices=rows, **options)
    expected = model.get_normalized_expression(indices=atlas.read_source_row(rows), **options)
    pd.testing.assert_frame_equal(found, expected, check_names=False, **NEAR)


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
    model.is_trained = True  # as good as any weights
    atlas, some = model.minify(tmp_path / "atlas"), [300, 7, 9]
    rows = atlas.read_source_row(np.array(some))
    for dist in (False, True):
        found = atlas.get_latent_representation(some, return_dist=dist, mc_samples=300)
        expected = model.get_latent_representation(indices=rows, return_dist=dist, mc_samples=300)
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3)
    for size in (1.0, "latent"):
        asked = {"library_size": size, "n_samples": None}
        found = atlas.get_normalized_expression(indices=some, **asked)
        expected = model.get_normalized_expression(indices=rows, **asked)
        pd.testing.assert_frame_equal(found, expected, check_names=False, **NEAR)
    assert (atlas.read_log_normalizer() is None) == ("size_factor_key" in keys)


def test_labels_are_predicted_as_the_model_does(adata: ad.AnnData, tmp_path: Path) -> None:
    data = open_data(adata, batch_key="batch", labels_key="label", unlabeled_category="NK")
    model = SCANVI(data, n_hidden=16, n_latent=4)
    model.is_trained = True
    log_nl = np.log(model.predict(soft=True))
    with torch.no_grad():  # half of the cells get either label
        model.module.classifier.classifier[-1].bias[0] -= float((log_nl["B"] - log_nl["T"]).median())
    atlas = model.minify(tmp_path / "atlas")
    rows = atlas.read_source_row()
    pd.testing.assert_frame_equal(atlas.predict(soft=True), model.predict(soft=True).iloc[rows], **NEAR)
    sure = np.abs(np.diff(model.predict(soft=True).to_numpy()[rows], axis=1))[:, 0] > 0.01
    np.testing.assert_array_equal(atlas.predict()[sure], model.predict()[rows][sure])
    assert {*atlas.predict()} == {"B", "T"}
    np.testing.assert_array_equal(atlas.predict([300, 7, 300]), atlas.predict()[[300, 7, 300]])
    assert atlas.predict([]).tolist() == []
    assert "NK" in atlas.obs.categorical("label").vocabulary


@pytest.mark.parametrize("indices", [None, np.arange(0, 403, 3)])
def test_mean_expression_is_the_mean_by_group(atlas: Atlas, indices: np.ndarray | None) -> None:
    options = {"indices": indices, "transform_batch": "b0", "n_samples": 2, "library_size": "latent"}
    frame = atlas.get_normalized_expression(GENES, **options)
    expected = frame.astype(float).groupby(atlas.obs["group"].loc[frame.index].astype(object)).mean()
    found = atlas.mean_expression("group", GENES, **options)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, check_names=False)
    assert found.index.name == "group"


def test_cells_without_a_label_are_in_no_group(atlas: Atlas) -> None:
    assert atlas.group_sizes("group").to_dict() == {"g0": 101, "g1": 101, "g2": 100}
    of_none = atlas.rows_named(["cell0", "cell4"])
    assert atlas.group_sizes("group", of_none).to_dict() == {"g0": 0, "g1": 0, "g2": 0}
    assert atlas.mean_expression("group", GENES, indices=of_none).empty


def test_rows_are_found_by_columns_and_by_names(atlas: Atlas, adata: ad.AnnData) -> None:
    expected = adata.obs_names[(adata.obs["site"] == "x") & (adata.obs["batch"] == "b1")]
    assert {*atlas.obs_names(atlas.rows_where({"site": "x", "batch": ["b1"]}))} == {*expected}
    assert len(atlas.rows_where({})) == 403
    names = ["cell400", "cell2", "cell400"]
    assert list(atlas.obs_names(atlas.rows_named(names))) == names
    assert atlas.rows_named([]).tolist() == []


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda atlas: atlas.rows_where({"sites": "x"}), r"atlas has no obs column 'sites': did you mean 'site'"),
        (lambda atlas: atlas.rows_where({"site": "w"}), r"^obs column 'site' has no value 'w': it has x, y, z$"),
        (lambda atlas: atlas.rows_named(["cell1", "c9"]), r"atlas has no cell named c9 \(1 of 2 requested\)$"),
        (lambda atlas: atlas.mean_expression("sites"), r"atlas has no obs column 'sites': did you mean 'site'"),
        (
            lambda atlas: atlas.get_latent_representation([403]),
            r"^indices run from 403 to 403: there are cells 0 to 402",
        ),
        (lambda atlas: atlas.obs_names([-1]), r"^indices run from -1 to -1"),
        (lambda atlas: atlas.group_sizes("label", [999]), r"^indices run from 999 to 999"),
        (lambda atlas: atlas.get_normalized_expression(["CD4"]), r"no gene '?CD4"),
        (lambda atlas: atlas.predict(), r"atlas was made with SCVI: only SCANVI predicts labels$"),
    ],
)
def test_what_is_not_there_is_named(atlas: Atlas, ask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(atlas)


def test_an_atlas_says_what_it_holds(atlas: Atlas) -> None:
    text = repr(atlas)
    for part in ("403 cells and 50 genes", "SCVI", "cell", "symbol", "leaves", "bytes a cell"):
        assert part in text
    assert "0x" not in text
    assert atlas._repr_html_().startswith("<pre>Atlas of 403 cells")
