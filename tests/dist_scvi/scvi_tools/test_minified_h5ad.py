"""Cells that scvi-tools minified come with what queries need, or are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from dist_scvi.config.schema import ModelConfig
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.scvi_tools.minified_h5ad import open_minified_h5ad

N, K = 7, 3
GENES = tuple(f"g{gene}" for gene in range(5))


def spec_of_name(name: str = "SCVI") -> ModelSpec:
    known = {"layer": None, "batch": None, "label": None, "categorical_covariates": (), "continuous_covariates": ()}
    return ModelSpec(model=ModelConfig(model_name=name, n_latent=K), seed=0, var_names=GENES, **known)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(
        prefix: str = "scvi",
        library: str = "observed_lib_size",
        change: Callable[[ad.AnnData], Any] | None = None,
    ) -> Path:
        rng = np.random.default_rng(0)
        obs = pd.DataFrame(
            {"site": list("abcabca"), library: np.arange(N, dtype=np.float32)}, index=[f"c{n}" for n in range(N)]
        )
        cells = ad.AnnData(sparse.csr_matrix((N, len(GENES)), dtype=np.float32), obs, pd.DataFrame(index=list(GENES)))
        cells.obsm[f"{prefix}_latent_qzm"] = rng.normal(size=(N, K)).astype(np.float32)
        cells.obsm[f"{prefix}_latent_qzv"] = rng.random((N, K)).astype(np.float32)
        cells.obsm["X_latent_qzm"] = np.zeros((N, K), np.float32)
        cells.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
        if change is not None:
            change(cells)
        cells.write_h5ad(tmp_path / "adata.h5ad")
        return tmp_path / "adata.h5ad"

    return write


@pytest.mark.parametrize(
    ("name", "prefix", "library"),
    [
        ("SCVI", "scvi", "observed_lib_size"),
        ("SCANVI", "scanvi", "observed_lib_size"),
        ("LinearSCVI", "ldvae", "observed_lib_size"),
        ("SCVI", "_scvi", "_scvi_observed_lib_size"),
        ("SCANVI", "_scanvi", "_scanvi_observed_lib_size"),
    ],
)
def test_columns_are_found_under_the_names_of_each_model_and_version(
    write: Callable[..., Path], name: str, prefix: str, library: str
) -> None:
    path = write(prefix, library)
    found, stored = open_minified_h5ad(path, spec_of_name(name)), ad.read_h5ad(path)
    np.testing.assert_array_equal(found.qzm_nk, stored.obsm[f"{prefix}_latent_qzm"])
    np.testing.assert_array_equal(found.qzv_nk, stored.obsm[f"{prefix}_latent_qzv"])
    assert found.qzm_nk.dtype == found.qzv_nk.dtype == found.library_n.dtype == np.float32
    np.testing.assert_array_equal(found.library_n, np.arange(N))
    assert found.obs["site"].tolist() == list("abcabca")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda cells: cells.uns.clear(), "not minified"),
        (lambda cells: cells.obsm.pop("scvi_latent_qzv"), "no column scvi_latent_qzv"),
        (lambda cells: cells.obs.pop("observed_lib_size"), "no column observed_lib_size"),
        (lambda cells: cells.obsm.update(scvi_latent_qzm=np.zeros((N, K + 1))), r"shape \(7, 4\): \(7, 3\) is needed"),
        (lambda cells: cells.obsm["scvi_latent_qzm"].__setitem__((4, 1), np.nan), "at row 4"),
        (lambda cells: cells.obsm["scvi_latent_qzv"].__setitem__((2, 0), -1), "at row 2"),
        (lambda cells: cells.obs.loc.__setitem__(("c5", "observed_lib_size"), -3.0), "holds -3.0 at row 5"),
        (lambda cells: setattr(cells, "var_names", list("abcde")), "genes that are not the 5 of the model"),
    ],
)
def test_cells_that_cannot_be_those_of_the_model_are_refused(
    write: Callable[..., Path], change: Callable[[ad.AnnData], Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        open_minified_h5ad(write(change=change), spec_of_name())


def test_the_columns_of_another_model_are_not_taken(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="no column scanvi_latent_qzm or _scanvi_latent_qzm"):
        open_minified_h5ad(write(), spec_of_name("SCANVI"))


def test_a_file_that_is_no_h5ad_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adata.h5ad").write_bytes(b"no h5ad")
    with pytest.raises(ValueError, match="cannot be read as h5ad"):
        open_minified_h5ad(tmp_path / "adata.h5ad", spec_of_name())
