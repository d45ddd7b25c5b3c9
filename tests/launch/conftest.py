"""A run on a small simulated store, for workers started in every way."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from anndata import AnnData
from scipy import sparse

from tests.launch.fault_runs import (
    Crew,
    Toy,
    assert_each_cell_once,
    finish_here,
    steps_done_again,
    toy_cells,
    write_config,
)


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


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.close()


@pytest.fixture(scope="session")
def toy_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run that faults are tried on; see `fault_runs.write_config`."""
    folder = tmp_path_factory.mktemp("toy")
    toy_cells().write_h5ad(folder / "cells.h5ad")
    return write_config(folder / "run.yaml", folder / "cells.h5ad")


@pytest.fixture
def toy(toy_config: Path, tmp_path: Path) -> Toy:
    return Toy(toy_config, tmp_path)


@pytest.fixture(scope="session")
def undisturbed(crew: Crew, toy_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Toy]:
    """The run as so many workers do it when nothing happens."""

    @cache
    def of(workers: int) -> Toy:
        toy = Toy(toy_config, tmp_path_factory.mktemp("undisturbed"))
        crew.finish(toy, workers=workers) if workers > 1 else finish_here(toy)
        assert_each_cell_once(toy)
        assert steps_done_again(toy) == 0
        return toy

    return of
