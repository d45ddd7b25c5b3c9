"""A minified folder of scvi-tools becomes an atlas that answers as scvi-tools does, or is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import dist_scvi
from dist_scvi.atlas.import_minified import import_minified
from dist_scvi.loaders import open_data
from dist_scvi.model import SCVI, LinearSCVI
from tests.dist_scvi.golden import GOLDEN, needs_golden

KEPT = ["batch", "label", "site", "age", "depth", "lane"]
GOLDEN_CASES = [
    *("scvi_default_cov", "scvi_embedding_cov", "scvi_gene_label", "scvi_logistic_normal_cov", "scvi_no_batch"),
    *("scvi_size_factor", "scanvi_default"),
]


def minified(cells: ad.AnnData, name: str, qzm_nk: np.ndarray, qzv_nk: np.ndarray) -> ad.AnnData:
    """Make of `cells` what ``minify_adata`` of scvi-tools does."""
    left = ad.AnnData(sparse.csr_matrix(cells.shape, dtype=np.float32), cells.obs.copy(), cells.var.copy())
    left.obsm[f"{name}_latent_qzm"], left.obsm[f"{name}_latent_qzv"] = qzm_nk, qzv_nk
    left.obs["observed_lib_size"] = np.asarray(cells.X.sum(axis=1)).ravel()
    left.obs["_scvi_batch"] = 0
    left.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
    return left


@pytest.fixture(scope="module")
def cells(adata: ad.AnnData, model: SCVI) -> ad.AnnData:
    """The cells of the model, minified."""
    full = adata.copy()
    full.obs["depth"] = np.arange(403, dtype=np.int16)
    full.obs["lane"] = [f"lane{row % 3}" for row in range(403)]
    return minified(full, "scvi", *model.get_latent_representation(return_dist=True))


@pytest.fixture
def write(model: SCVI, cells: ad.AnnData, tmp_path: Path) -> Callable[..., Path]:
    def write(
        change: Callable[[ad.AnnData], Any] | None = None, of: SCVI | LinearSCVI = model, prefix: str = ""
    ) -> Path:
        folder, changed = tmp_path / "minified", cells.copy()
        if change is not None:
            change(changed)
        of.save(folder, prefix=prefix, format="scvi-tools", overwrite=True)
        changed.write_h5ad(folder / f"{prefix}adata.h5ad")
        return folder

    return write


@pytest.mark.parametrize(
    "options",
    [
        {"indices": [9, 300, 9]},
        {"gene_list": ["gene7", "gene0"], "transform_batch": ["b1", "b0"], "library_size": "latent"},
        {"gene_list": ["gene7", "gene0"], "n_samples": 3, "seed": 5},
    ],
)
def test_the_atlas_answers_as_the_model(model: SCVI, write: Callable[..., Path], tmp_path: Path, options: dict) -> None:
    atlas = dist_scvi.import_minified(write(), tmp_path / "atlas")
    rows = atlas.read_source_row()
    mean, variance = model.get_latent_representation(return_dist=True)
    found_mean, found_variance = atlas.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(found_mean, mean[rows], rtol=2**-10, atol=1e-5)
    np.testing.assert_allclose(found_variance, variance[rows], rtol=0.03)
    options = {"n_samples": None, "indices": np.arange(403)} | options
    found = atlas.get_normalized_expression(**options)
    options["indices"] = rows[options["indices"]]
    expected = model.get_normalized_expression(**options)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-2, atol=1e-6, check_names=False)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_golden) for name in GOLDEN_CASES])
def test_the_atlas_answers_as_scvi_tools(name: str, tmp_path: Path) -> None:
    said = dict(np.load(GOLDEN / name / "outputs.npz"))
    full = ad.read_h5ad(GOLDEN / name / "adata.h5ad")
    (tmp_path / name).mkdir()
    shutil.copy(GOLDEN / name / "model.pt", tmp_path / name)
    minified(full, name.split("_", maxsplit=1)[0], said["qzm"], said["qzv"]).write_h5ad(tmp_path / name / "adata.h5ad")
    atlas = import_minified(tmp_path / name, tmp_path / "atlas")
    some = np.argsort(atlas.read_source_row())  # what scvi-tools said is in the order of the source
    all_rows, some = some, some[: len(said["own.scale"])]
    for asked, key in ((1.0, "own.scale"), ("latent", "own.rate")):
        found = atlas.get_normalized_expression(indices=some, library_size=asked)
        np.testing.assert_allclose(found, said[key], rtol=1e-2, atol=1e-6)
    for code, batch in enumerate(atlas.spec.batch.categories if atlas.spec.batch else ()):
        found = atlas.get_normalized_expression(indices=some, transform_batch=batch)
        np.testing.assert_allclose(found, said[f"batch{code}.scale"], rtol=1e-2, atol=1e-6)
    if name.startswith("scanvi"):
        soft = atlas.predict(all_rows, soft=True)
        np.testing.assert_allclose(soft[[*said["predict.labels"]]], said["predict.soft"], rtol=1e-2, atol=1e-4)
        assert (atlas.predict(all_rows) == said["predict.hard"]).mean() > 0.99
        assert atlas.group_sizes("partial").to_dict() == full.obs["partial"].value_counts().to_dict()


def test_columns_are_carried_over_but_not_those_of_scvi_tools(
    cells: ad.AnnData, write: Callable[..., Path], tmp_path: Path
) -> None:
    atlas = import_minified(write(), tmp_path / "atlas")
    obs = ad.read_zarr(tmp_path / "atlas" / "cells.zarr").obs
    assert {*obs} == {*KEPT, "observed_lib_size", "log_normalizer", "source_row", "leaf"}
    rows = obs["source_row"].to_numpy()
    for key in KEPT:
        assert [*obs[key]] == [*cells.obs[key].iloc[rows]]
    np.testing.assert_array_equal(obs["observed_lib_size"], cells.obs["observed_lib_size"].iloc[rows])
    assert [*atlas.obs_names()] == [*cells.obs_names[rows]]
    assert not atlas.leaves.has_counts
    with pytest.raises(ValueError, match="was made without counts and has no sums of them"):
        atlas.leaves.count_sum()
    assert [*atlas.var_names] == [*cells.var_names]
    assert atlas.group_sizes("lane").to_dict() == {"lane0": 135, "lane1": 134, "lane2": 134}


def test_it_has_the_files_of_an_atlas_minified_here(model: SCVI, write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(lambda cells: cells.obs.drop(columns=["depth", "lane"], inplace=True))
    import_minified(path, tmp_path / "theirs")
    model.minify(tmp_path / "ours")
    theirs, ours = (
        {file.relative_to(tmp_path / name) for file in (tmp_path / name).rglob("*")} for name in ("theirs", "ours")
    )
    counts = ("leaves.zarr/X", "leaves.zarr/layers/detected", "square_sum", "normalized_sum")
    assert theirs == {file for file in ours if not any(name in str(file) for name in counts)}


def test_the_manifest_says_where_it_comes_from(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write()
    manifest = import_minified(path, tmp_path / "atlas").manifest
    assert manifest["source"]["uri"] == str(path / "adata.h5ad")
    assert manifest["lineage"] == {"scvi_tools_model": str(path), "scvi_tools": "1.4.2"}


@pytest.mark.parametrize("counts", [None, sparse.csr_matrix(np.full((403, 50), 0.5, dtype=np.float32))])
def test_counts_that_were_kept_or_taken_away_do_not_matter(
    write: Callable[..., Path], tmp_path: Path, counts: sparse.csr_matrix | None
) -> None:
    atlas = import_minified(write(lambda cells: setattr(cells, "X", counts)), tmp_path / "atlas")
    assert atlas.get_normalized_expression(["gene0"]).shape == (403, 1)


def test_names_of_files_may_have_a_prefix(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(prefix="pbmc_")
    with pytest.raises(FileNotFoundError):
        import_minified(path, tmp_path / "atlas")
    assert import_minified(path, tmp_path / "atlas", prefix="pbmc_").n_cells == 403


def test_an_atlas_is_replaced_only_when_asked(write: Callable[..., Path], tmp_path: Path) -> None:
    import_minified(write(), tmp_path / "atlas")
    path = write(lambda cells: cells.obs.drop(columns="lane", inplace=True))
    with pytest.raises(ValueError, match=r"atlas exists: give another path, or allow .*overwrite=True"):
        import_minified(path, tmp_path / "atlas")
    assert "lane" not in import_minified(path, tmp_path / "atlas", overwrite=True).obs.columns()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda cells: cells.uns.clear(), r"adata\.h5ad is not minified"),
        (lambda cells: cells.obs.pop("site"), "has no obs column 'site'"),
        (
            lambda cells: cells.obs.__setitem__("batch", "b7"),
            r"has 1 categories that the model was not trained on \(b7\)",
        ),
    ],
)
def test_cells_that_do_not_fit_are_refused_before_anything_is_written(
    write: Callable[..., Path], tmp_path: Path, change: Callable[[ad.AnnData], Any], told: str
) -> None:
    path = write(change)
    with pytest.raises(ValueError, match=told):
        import_minified(path, tmp_path / "atlas")
    assert [entry.name for entry in tmp_path.iterdir()] == ["minified"]


def test_a_cell_without_a_batch_leaves_no_atlas(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_scvi.loaders.data._PROBES", 0)
    path = write(lambda cells: cells.obs.loc.__setitem__(("cell402", "batch"), None))
    with pytest.raises(ValueError, match="'batch' has no value at row 402"):
        import_minified(path, tmp_path / "atlas")
    assert not (tmp_path / "atlas").exists()


def test_a_model_without_its_cells_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write()
    (path / "adata.h5ad").unlink()
    with pytest.raises(ValueError, match=r"minified holds no adata\.h5ad: the minified cells are needed"):
        import_minified(path, tmp_path / "atlas")


def test_a_latent_library_size_is_refused_for_it_is_not_among_minified_cells(
    adata: ad.AnnData, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(of=LinearSCVI(open_data(adata, batch_key="batch"), n_hidden=16))
    with pytest.raises(ValueError, match=r"has a latent library size, which minified cells lack.* LinearSCVI\.load"):
        import_minified(path, tmp_path / "atlas")
