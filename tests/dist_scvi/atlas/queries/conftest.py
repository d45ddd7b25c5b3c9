"""Atlases in memory of the small model that all tests here share."""

import numpy as np
import pytest

from tests.dist_scvi.atlas.queries.memory_atlas import MemoryAtlas, memory_atlas


@pytest.fixture(scope="package")
def annotated(adata):
    """The cells of the model with a column of missing values and one of numbers."""
    cells = adata.copy()
    rng = np.random.default_rng(3)
    cells.obs["donor"] = [f"d{number}" for number in rng.integers(0, 5, cells.n_obs)]
    cells.obs["donor"] = cells.obs["donor"].where(rng.random(cells.n_obs) > 0.05).astype("category")
    cells.obs["n_counts"] = np.asarray(cells.X.sum(axis=1)).ravel()
    cells.obs["cluster"] = cells.obs["donor"].cat.codes.astype(str).astype("category")
    return cells


@pytest.fixture(scope="package")
def atlas(model, annotated) -> MemoryAtlas:
    return memory_atlas(model, annotated, ["label", "batch", "site"])


@pytest.fixture(scope="package")
def shuffled(model, annotated) -> MemoryAtlas:
    """The same atlas, its rows in another order and cut otherwise."""
    order = np.random.default_rng(1).permutation(annotated.n_obs)
    return memory_atlas(model, annotated, ["label", "batch", "site"], order=order, chunk=37)
