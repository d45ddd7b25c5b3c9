"""``pp.scvi`` writes what its model says, wherever the counts lie, and what scanpy's wrote."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from dist_scvi import pp
from dist_scvi.model import SCVI, LinearSCVI

SMALL: dict[str, Any] = {"n_hidden": 16, "n_latent": 3, "n_epochs": 1, "batch_key": "batch", "use_cuda": False}
RESULTS = {"X_scvi": 3, "X_scvi_denoised": 8, "X_scvi_sample_rate": 8}
GENES = [f"gene{gene}" for gene in (7, 2, 40, 41, 3, 11, 19, 5)]


@pytest.fixture
def cells(adata: ad.AnnData) -> ad.AnnData:
    cells = adata.copy()
    cells.var["highly_variable"] = cells.var_names.isin(GENES)
    return cells


@pytest.fixture
def path(cells: ad.AnnData, tmp_path: Path) -> Path:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def run(cells: Any, **options: Any) -> Any:
    return pp.scvi(cells, **(SMALL | options))


def test_the_model_and_the_anndata_come_as_asked(cells: ad.AnnData) -> None:
    for copy, return_posterior in itertools.product((True, False), repeat=2):
        given = cells.copy()
        answer = run(given, copy=copy, return_posterior=return_posterior)
        kinds = [ad.AnnData] * copy + [SCVI] * return_posterior
        parts = [] if answer is None else answer if isinstance(answer, tuple) else [answer]
        assert [type(part) for part in parts] == kinds
        written = parts[0] if copy else given
        assert {key: written.obsm[key].shape for key in RESULTS} == {key: (403, k) for key, k in RESULTS.items()}
        assert (len(given.obsm) == 0) == copy


def test_results_are_what_the_model_says(cells: ad.AnnData) -> None:
    model = run(cells)
    np.testing.assert_array_equal(cells.obsm["X_scvi"], model.get_latent_representation())
    for key, size in (("X_scvi_denoised", 1.0), ("X_scvi_sample_rate", "latent")):
        expected = model.get_normalized_expression(n_samples=1, library_size=size)
        np.testing.assert_allclose(cells.obsm[key], expected, rtol=1e-4)
    np.testing.assert_allclose(cells.obsm["X_scvi_denoised"].sum(axis=1), 1, rtol=1e-5)


def test_a_logistic_normal_gives_its_mean(cells: ad.AnnData) -> None:
    model = run(cells, model_kwargs={"latent_distribution": "ln"})
    np.testing.assert_allclose(cells.obsm["X_scvi"], model.get_latent_representation(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "genes"),
    [
        ({}, [f"gene{gene}" for gene in (2, 3, 5, 7, 11, 19, 40, 41)]),
        ({"use_highly_variable_genes": False}, [f"gene{gene}" for gene in range(50)]),
        ({"subset_genes": ["gene9", "gene4", "gene8"]}, ["gene9", "gene4", "gene8"]),
        ({"subset_genes": np.array([9, 4, 8])}, ["gene9", "gene4", "gene8"]),
    ],
)
def test_the_genes_asked_for_are_trained_on(cells: ad.AnnData, path: Path, options: dict, genes: list[str]) -> None:
    for source in (cells, path):
        model = run(source, **options)
        assert [*model.spec.var_names] == genes
    assert cells.obsm["X_scvi_denoised"].shape == (403, len(genes))


def test_without_a_mark_all_genes_are_trained_on(adata: ad.AnnData) -> None:
    copied, model = run(adata, copy=True)
    assert len(model.spec.var_names) == copied.obsm["X_scvi_sample_rate"].shape[1] == 50


def test_a_linear_decoder_leaves_its_loadings(cells: ad.AnnData) -> None:
    model = run(cells, linear_decoder=True)
    assert isinstance(model, LinearSCVI)
    pd.testing.assert_frame_equal(cells.uns["ldvae_loadings"], model.get_loadings())
    assert cells.uns["ldvae_loadings"].shape == (8, 3)


def test_options_reach_the_model_and_its_training(cells: ad.AnnData, capsys: pytest.CaptureFixture[str]) -> None:
    model = run(
        cells,
        n_layers=2,
        dispersion="gene-batch",
        n_epochs=2,
        train_size=0.8,
        model_kwargs={"gene_likelihood": "nb"},
        trainer_kwargs={"batch_size": 64, "check_val_every_n_epoch": 1, "lr_min": 1e-5, "enable_progress_bar": False},
    )
    config = model.spec.model
    assert (config.n_layers, config.dispersion, config.gene_likelihood) == (2, "gene-batch", "nb")
    assert model.spec.batch.key == "batch"
    assert len(model.train_indices) == 322
    assert len(model.history["elbo_train"]) == len(model.history["elbo_validation"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("linear_decoder", [False, True])
def test_results_for_a_store_lie_beside_it_and_equal_those_for_an_anndata(
    cells: ad.AnnData, path: Path, linear_decoder: bool
) -> None:
    run(cells, linear_decoder=linear_decoder)
    before = path.read_bytes()
    assert run(path, linear_decoder=linear_decoder, return_posterior=False) is None
    written = ad.read_zarr(f"{path}.scvi.zarr")
    for key in RESULTS:
        np.testing.assert_allclose(written.obsm[key], cells.obsm[key], rtol=1e-4, atol=1e-6)
    assert [*written.obs_names] == [*cells.obs_names]
    assert {*written.var_names} == {*GENES}
    assert {*written.uns} == ({"ldvae_loadings"} if linear_decoder else set())
    if linear_decoder:
        pd.testing.assert_frame_equal(written.uns["ldvae_loadings"], cells.uns["ldvae_loadings"], rtol=1e-4)
    assert path.read_bytes() == before


def test_the_name_of_a_folder_may_end_with_a_slash(cells: ad.AnnData, save: Callable[..., Path]) -> None:
    path = save(cells)
    run(f"{path}/")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["cells.zarr", "cells.zarr.scvi.zarr"]


def test_results_that_are_there_are_never_replaced(path: Path) -> None:
    run(path)
    with pytest.raises(ValueError, match=r"cells\.h5ad\.scvi\.zarr exists, .*: move it or remove it$"):
        run(path, n_epochs=10**9)
    shutil.rmtree(f"{path}.scvi.zarr")
    run(path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"subset_genes": ["gene7", "CD4"]}, "CD4"),
        ({"subset_genes": "gene7"}, r"^subset_genes='gene7' is one text, a list is needed: subset_genes=\['gene7'\]$"),
        ({"subset_genes": []}, r"^no gene is left: var\['highly_variable'\] marks none, or subset_genes is empty$"),
        ({"subset_genes": [3, 50]}, "^subset_genes holds 50: names of genes are needed, or places from 0 to 49$"),
        ({"subset_genes": [0.5]}, r"^subset_genes holds 0\.5"),
        ({"subset_genes": [True, False]}, "^subset_genes holds True"),
        ({"batch_key": "bach"}, "no obs column 'bach': did you mean 'batch'"),
        ({"trainer_kwargs": {"n_steps": 3}}, "n_steps"),
        ({"dispersion": "gene-gene"}, "dispersion"),
    ],
)
def test_what_cannot_be_is_refused(cells: ad.AnnData, path: Path, options: dict, told: str) -> None:
    for source in (cells, path):
        with pytest.raises(ValueError, match=told):
            run(source, **options)
    assert not cells.obsm
    assert [entry.name for entry in path.parent.iterdir()] == ["cells.h5ad"]


def test_no_gene_that_is_marked_is_refused(cells: ad.AnnData) -> None:
    cells.var["highly_variable"] = False
    with pytest.raises(ValueError, match=r"^no gene is left: var\['highly_variable'\] marks none"):
        run(cells)


def test_a_copy_of_a_store_and_a_url_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"^copy=True is for an AnnData in memory"):
        run(path, copy=True)
    with pytest.raises(ValueError, match=r"^s3://bucket/cells\.zarr is a URL, next to which nothing is written"):
        run("s3://bucket/cells.zarr")


def test_counts_that_are_none_are_refused(cells: ad.AnnData) -> None:
    cells.X = cells.X * -1
    with pytest.raises(ValueError, match="raw counts"):
        run(cells)
