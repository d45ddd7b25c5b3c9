"""A run on a small simulated store, for workers started in every way."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from anndata import AnnData
from scipy import sparse


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    n_cells, n_genes = 1501, 40
    batch = np.where(np.arange(n_cells) % 3 == 0, "b1", "b0")
    counts = rng.poisson(rng.gamma(0.6, 3.0, n_genes) * rng.lognormal(0, 0.4, (n_cells, 1)))
    obs = pd.DataFrame({"batch": pd.Categorical(batch)}, index=[f"cell{row}" for row in range(n_cells)])
    var = pd.DataFrame(index=[f"gene{gene}" for gene in range(n_genes)])
    path = tmp_path_factory.mktemp("store") / "cells.h5ad"
    AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var).write_h5ad(path)
    return path


@pytest.fixture
def run_yaml(store: Path, tmp_path: Path) -> Path:
    """A configuration of 4 epochs of 21 steps, saved every 5, told every step."""
    train = {
        "max_epochs": 4,
        "batch_size": 64,
        "lanes": 4,
        "micro_cells": 16,
        "save_every_n_steps": 5,
        "log_every_n_steps": 1,
        "collective_timeout_s": 30,
        "n_steps_kl_warmup": 40,
    }
    path = tmp_path / "run.yaml"
    data = {"uri": str(store), "batch_key": "batch"}
    path.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "data": data, "train": train}))
    return path
