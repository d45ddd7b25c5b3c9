"""A small atlas that every test here shares: counts computable from the seed, two batches, three labels."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from dist_scvi.loaders import CellData, open_data
from dist_scvi.model import SCVI

N_CELLS, N_GENES = 403, 50


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    batch = np.where(np.arange(N_CELLS) % 3 == 0, "b1", "b0")
    label = np.array(["T", "B", "NK"])[rng.integers(0, 3, N_CELLS)]
    mean = rng.gamma(0.6, 3.0, (3, N_GENES))[pd.Categorical(label).codes] * np.where(batch == "b1", 2.0, 1.0)[:, None]
    counts = rng.poisson(mean * rng.lognormal(0, 0.4, (N_CELLS, 1)))
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(batch),
            "label": pd.Categorical(label),
            "age": rng.normal(50, 10, N_CELLS).astype(np.float32),
            "site": pd.Categorical(rng.choice(["x", "y", "z"], N_CELLS)),
        },
        index=[f"cell{row}" for row in range(N_CELLS)],
    )
    var = pd.DataFrame(index=[f"gene{gene}" for gene in range(N_GENES)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="session")
def store(adata: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "cells.h5ad"
    adata.copy().write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def data(adata: ad.AnnData) -> CellData:
    return open_data(
        adata,
        batch_key="batch",
        labels_key="label",
        categorical_covariate_keys=["site"],
        continuous_covariate_keys=["age"],
    )


@pytest.fixture(scope="session")
def model(data: CellData) -> SCVI:
    """A trained model with every kind of covariate; do not train it again."""
    torch.set_num_threads(1)
    model = SCVI(data, n_hidden=16, n_latent=4)
    model.train(2, enable_progress_bar=False)
    return model
