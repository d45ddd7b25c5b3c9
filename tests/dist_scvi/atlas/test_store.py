"""What an atlas holds is what its source said; any damage or mixture is refused with its path."""

import json
import shutil
import tarfile
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.store.verify import verify_atlas
from dist_scvi.inference.encode_decode import covariates_of
from dist_scvi.model import SCVI
from dist_scvi.network.noise import row_normal


def test_latents_are_those_of_the_model_within_the_stated_error(model: SCVI, atlas: Atlas) -> None:
    rows = atlas.read_source_row()
    assert sorted(rows) == list(range(403))
    mean, variance = model.get_latent_representation(return_dist=True)
    found_mean, found_variance = atlas.read_latent()
    np.testing.assert_allclose(found_mean, mean[rows], rtol=2**-10, atol=1e-5)
    error = np.abs(np.sqrt(found_variance / variance[rows]) - 1).max()
    assert error <= atlas.manifest["log_variance"]["max_relative_sd_error"] * 1.001 < 0.02


def test_rows_columns_and_names_belong_together(atlas: Atlas, more: ad.AnnData) -> None:
    rows = atlas.read_source_row()
    obs = atlas.obs.to_pandas()
    assert list(obs.index) == list(more.obs_names[rows])
    for key in ("batch", "label", "site", "group"):
        assert list(obs[key].astype(object).fillna("none")) == list(
            more.obs[key].astype(object).fillna("none")[obs.index]
        )
    np.testing.assert_array_equal(obs["depth"], rows)
    assert obs["depth"].dtype == np.int16
    np.testing.assert_array_equal(obs["quality"].isna(), rows % 5 == 0)
    np.testing.assert_array_equal(atlas.read_library(), np.asarray(more.X.sum(1)).ravel()[rows])
    some = np.array([300, 2, 300])
    np.testing.assert_array_equal(atlas.obs.values("depth", some), rows[some])
    np.testing.assert_array_equal(atlas.obs.codes("site", slice(60, 70)), atlas.obs.codes("site")[60:70])
    assert atlas.obs[["depth"]].shape == (403, 1)
    np.testing.assert_array_equal(
        np.concatenate([atlas.read_library(part) for part in atlas.chunks(10)]), atlas.read_library()
    )


def test_columns_of_many_categories_are_dropped_with_a_reason(atlas: Atlas) -> None:
    assert "barcode" not in atlas.obs
    assert atlas.manifest["dropped_obs"] == {"barcode": "403 categories, more than 100: name it to keep it"}


def test_genes_are_found_by_any_column_of_var(atlas: Atlas) -> None:
    assert list(atlas.var.columns) == ["symbol", "length"]
    assert atlas.gene_index(["SYM3", "gene3", "gene0"]).tolist() == [3, 3, 0]
    with pytest.raises(ValueError, match=r"'SYM23' names 3 genes of .*\(gene23, gene46, gene47\): name one of these"):
        atlas.gene_index(["SYM23"])
    with pytest.raises(ValueError, match=r"has no gene 'sym7': did you mean 'gene7' \(its symbol is 'SYM7'\)\?"):
        atlas.gene_index(["sym7"])


def test_a_gene_is_decoded_with_the_normalizer_as_with_all_others(atlas: Atlas) -> None:
    cells, normalizer = atlas.read_cells(), atlas.read_log_normalizer()
    with torch.no_grad():
        covariates, z = covariates_of(cells, torch.device("cpu")), torch.from_numpy(cells.qzm_nk)
        logits = atlas.module.decoder(*atlas.module._with_covariates(z, covariates)).scale_logits_ng
        whole = atlas.module.shares(z, covariates)
    np.testing.assert_allclose(np.exp(logits[:, 7].numpy() - normalizer), whole[:, 7], rtol=1e-5)


def test_neighbourhoods_are_contiguous_near_their_centroids_and_in_random_order(atlas: Atlas) -> None:
    near, (mean, _) = atlas.neighbourhoods, atlas.read_latent()
    distance = np.linalg.norm(mean[:, None] - near.centroids[None], axis=2)
    own = np.repeat(np.arange(len(near)), np.diff(near.offsets))
    assert len(near) == 25
    np.testing.assert_allclose(distance[np.arange(403), own], distance.min(axis=1), rtol=1e-5)
    for at in range(len(near)):
        inside = slice(*near.offsets[at : at + 2])
        assert distance[inside, at].max(initial=0) == pytest.approx(near.radius[at], rel=1e-5)
        assert (np.diff(atlas.read_source_row(inside)) < 0).any() or np.diff(near.offsets)[at] < 6
    counts = sparse.coo_array((np.ones(403), (own, atlas.read_leaf()))).toarray()
    np.testing.assert_array_equal(near.leaf_counts.toarray(), counts)


def test_leaves_hold_the_exact_sums_of_their_cells(atlas: Atlas, more: ad.AnnData) -> None:
    leaves, leaf = atlas.leaves, atlas.read_leaf()
    counts = more.X.toarray().astype(float)[atlas.read_source_row()]
    of_leaf = np.equal.outer(np.arange(leaves.n_leaves), leaf).astype(float)
    np.testing.assert_array_equal(leaves.n_cells, of_leaf.sum(1))
    np.testing.assert_array_equal(leaves.count_sum(), of_leaf @ counts)
    np.testing.assert_array_equal(leaves.detected(), of_leaf @ (counts > 0))
    np.testing.assert_array_equal(leaves.square_sum(), of_leaf @ counts**2)
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(leaves.normalized_sum(), of_leaf @ (1e4 * counts / total), rtol=1e-12)
    scale = atlas.get_normalized_expression().to_numpy().astype(float)
    mean = of_leaf @ scale / of_leaf.sum(1, keepdims=True)
    np.testing.assert_allclose(leaves.scale_mean(), mean, rtol=1e-5)
    variance = of_leaf @ scale**2 / of_leaf.sum(1, keepdims=True) - mean**2
    np.testing.assert_allclose(leaves.scale_var(), variance, rtol=1e-3, atol=1e-10)
    some = np.array([5, 1, 5])
    np.testing.assert_array_equal(leaves.count_sum(some), leaves.count_sum()[some])
    table = leaves.table
    for key in leaves.columns:
        np.testing.assert_array_equal(leaves.codes[leaf, leaves.columns.index(key)], atlas.obs.codes(key))
        assert list(table[key].cat.categories) == list(atlas.obs.categorical(key).vocabulary)


def test_quantiles_are_those_of_one_draw_of_each_cell(model: SCVI, atlas: Atlas) -> None:
    leaves, rows = atlas.leaves, atlas.read_source_row()
    _, variance = model.get_latent_representation(return_dist=True)
    z = atlas.read_latent()[0] + np.sqrt(variance[rows]) * row_normal(0, rows, 0, 4)
    with torch.no_grad():
        scale = atlas.module.shares(torch.from_numpy(z), covariates_of(atlas.read_cells(), torch.device("cpu")))
    log = np.log2(scale.numpy())
    for leaf in (0, 7, leaves.n_leaves - 1):
        here = log[atlas.read_leaf() == leaf]
        expected = np.quantile(here, leaves.levels, axis=0, method="hazen").T
        np.testing.assert_allclose(leaves.quantiles(np.array([leaf]))[0], expected, atol=0.008)
        np.testing.assert_allclose(leaves.scale_max(np.array([leaf]))[0], np.exp2(here.max(0)), rtol=1e-4)
    genes = np.array([4, 2])
    np.testing.assert_array_equal(leaves.quantiles(None, genes), leaves.quantiles()[:, genes])


def test_a_sketch_holds_the_same_cells_for_any_order_and_any_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_scvi.atlas.writer import encode_pieces

    monkeypatch.setattr(encode_pieces, "SKETCH_CELLS", 3)
    leaf, row = np.repeat([0, 1, 2], [10, 2, 5]), np.arange(17)
    whole = row[encode_pieces.sketch_order(leaf, row, 0)]
    assert len(whole) == 3 + 2 + 3
    shuffled = np.random.default_rng(0).permutation(17)
    parts = [shuffled[:6][encode_pieces.sketch_order(leaf[shuffled[:6]], shuffled[:6], 0)]]
    parts.append(shuffled[6:][encode_pieces.sketch_order(leaf[shuffled[6:]], shuffled[6:], 0)])
    merged = np.concatenate(parts)
    np.testing.assert_array_equal(merged[encode_pieces.sketch_order(leaf[merged], merged, 0)], whole)


def ask_everything(path: Path) -> None:
    """Read all that an atlas holds."""
    atlas = open_atlas(path)
    atlas.obs.to_pandas()
    atlas.read_cells()
    assert atlas.var.shape == (50, 2)
    for read in ("count_sum", "detected", "square_sum", "normalized_sum", "scale_mean", "scale_var", "scale_max"):
        getattr(atlas.leaves, read)()
    assert len(atlas.leaves.quantiles()) == len(atlas.leaves.table) == len(atlas.leaves.n_sketch)
    assert len(atlas.neighbourhoods.offsets) == len(atlas.neighbourhoods.centroids) + 1
    assert len(atlas.neighbourhoods.radius) == atlas.neighbourhoods.leaf_counts.shape[0]


def test_every_damaged_file_is_refused_with_its_path(copy: Path) -> None:
    files = [file for file in copy.rglob("*") if file.is_file()]
    chunks = [file for file in files if "c" in file.parts and file.name.isdigit()]
    assert len(chunks) > 60
    # obsm/scvi_latent_qzv and metadata are for other readers: nothing here reads them but `verify_atlas`.
    unread = [file for file in files if file.name == "zarr.json" or "scvi_latent_qzv" in file.parts]
    unread += [file for file in files if file.parent.parent == copy / "leaves.zarr/var" or "obs/_index/c" in str(file)]
    for number, file in enumerate(files):
        good, changed = file.read_bytes(), bytearray(file.read_bytes())
        changed[len(good) // 2] ^= (1, 0x80, 0xFF)[number % 3]
        for content in (bytes(changed), good[: len(good) // 2], None):
            file.unlink() if content is None else file.write_bytes(content)
            problems = verify_atlas(copy)
            assert problems, file
            assert str(copy) in problems[0]
            if number % 5 == 0 and file not in unread and "leaves.zarr" not in str(file):
                with pytest.raises(ValueError, match=str(copy)):
                    ask_everything(copy)
            if number % 4:  # one kind of damage is enough for most files
                break
        file.write_bytes(good)
    assert verify_atlas(copy) == []
    ask_everything(copy)


@pytest.mark.parametrize(
    "part", ["cells.zarr", "cells.zarr/obsm/scvi_latent_qzm/c/2/0", "leaves.zarr/X/c/0/0", "model"]
)
def test_parts_of_another_atlas_are_refused(
    copy: Path, model: SCVI, more: ad.AnnData, tmp_path: Path, part: str
) -> None:
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    changed = SCVI(model.data, n_hidden=16, n_latent=4)
    changed.save(other / "model", overwrite=True)
    for file in other.rglob("c/*"):
        if file.is_file() and file.name != "zarr.json":
            file.write_bytes(bytes(file.read_bytes()[::-1]))
    for file in (other / "cells.zarr/obsm/scvi_latent_qzm/c/2/0", other / "leaves.zarr/X/c/0/0"):
        file.write_bytes(file.read_bytes()[::-1])
    if (copy / part).is_dir():
        shutil.rmtree(copy / part)
        shutil.copytree(other / part, copy / part)
    else:
        shutil.copy(other / part, copy / part)
    with pytest.raises(
        ValueError, match=r"is damaged or of another atlas|bytes, ATLAS\.json says|cannot be read|SHA-256"
    ):
        ask_everything(copy)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", "[" * 100_000])
def test_a_folder_that_is_no_atlas_is_refused(copy: Path, content: str | None) -> None:
    (copy / "ATLAS.json").unlink()
    if content is not None:
        (copy / "ATLAS.json").write_text(content)
    with pytest.raises(ValueError, match=r"atlas is no minified atlas: its ATLAS\.json is (missing|unreadable)"):
        open_atlas(copy)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no minified atlas .*nowhere: make one with"):
        open_atlas(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "dist_scvi.atlas/3"}, r"has format 'dist_scvi\.atlas/3'.*read it with a newer version"),
        ({"n_cells": 404}, r"ATLAS\.json was changed: its digest is not its own"),
        ({"n_cells": "many"}, r"ATLAS\.json is damaged \(n_cells: "),
        ({"files": {"../../etc/passwd": [1, "a"]}}, r"leads out of the atlas"),
        ({"arrays": {}}, r"its digest is not its own"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(copy: Path, change: dict, message: str) -> None:
    manifest = json.loads((copy / "ATLAS.json").read_text()) | change
    (copy / "ATLAS.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        open_atlas(copy)


@pytest.fixture
def first_format(tmp_path: Path) -> Path:
    """An atlas of format 1, as version 0.1 wrote it, with answers that version gave."""
    with tarfile.open(Path(__file__).parent / "files" / "atlas_format_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "atlas"


def test_an_atlas_of_format_1_still_answers(first_format: Path) -> None:
    atlas = open_atlas(first_format)
    assert (atlas.format, atlas.leaves, atlas.neighbourhoods, atlas.n_cells) == (1, None, None, 60)
    assert "upgrade_atlas" in repr(atlas)
    with np.load(first_format.parent / "answers.npz") as answers:
        np.testing.assert_array_equal(atlas.get_latent_representation(), answers["z"])
        np.testing.assert_allclose(atlas.get_normalized_expression(), answers["e"], rtol=1e-5)
    assert atlas.read_log_normalizer() is None
    assert atlas.group_sizes("label").sum() == (atlas.obs.codes("label") >= 0).sum()
    assert verify_atlas(first_format) == []
    chunk = first_format / "cells.zarr/obsm/scvi_latent_qzm/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 4
    chunk.write_bytes(content)
    assert verify_atlas(first_format)
