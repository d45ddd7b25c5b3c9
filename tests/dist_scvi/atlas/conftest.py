"""An atlas of 403 cells in several files of every kind, and what it was made of."""

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.loaders import open_data
from dist_scvi.model import SCVI

PARTS = {
    "_CHUNK_ROWS": 144,
    "_NAME_ROWS": 48,
    "_SMALLEST_PIECE": 16,
    "_PIECES": 4,
    "_LEAF_CHUNK_BYTES": 30 * 64 * 50,
    "_BATCH_CELLS": (32, 32),
}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 403 cells make 4 pieces and 3 files of rows, and leaves files of 30."""
    for name, value in PARTS.items():
        monkeypatch.setattr(f"dist_scvi.atlas.writer.plan.{name}", value)


@pytest.fixture(scope="session")
def more(adata: ad.AnnData) -> ad.AnnData:
    """The cells with more columns of obs and with gene symbols."""
    cells = adata.copy()
    cells.obs["group"] = pd.Categorical.from_codes(np.arange(403) % 4 - 1, ["g1", "g0", "g2"])
    cells.obs["depth"] = np.arange(403, dtype=np.int16)
    cells.obs["quality"] = np.where(np.arange(403) % 5 == 0, np.nan, 0.5)
    cells.obs["barcode"] = pd.Categorical([f"AC{row}" for row in range(403)])
    cells.var["symbol"] = [f"SYM{gene // 2 if gene > 45 else gene}" for gene in range(50)]
    cells.var["length"] = np.arange(50)
    return cells


@pytest.fixture(scope="session")
def written(model: SCVI, more: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas whose store is gone."""
    folder = tmp_path_factory.mktemp("atlas")
    more.copy().write_h5ad(folder / "cells.h5ad")
    keys = {"batch_key": "batch", "labels_key": "label"}
    covariates = {"categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}
    data = open_data(folder / "cells.h5ad", **keys, **covariates)
    model.save(folder / "model")
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.MonkeyPatch.context() as categories,
    ):
        categories.setattr("dist_scvi.atlas.writer.columns.MOST_CATEGORIES", 100)
        for name, value in PARTS.items():
            patch.setattr(f"dist_scvi.atlas.writer.plan.{name}", value)
        SCVI.load(folder / "model", data).minify(folder / "atlas")
    data.store.close()
    (folder / "cells.h5ad").unlink()
    return folder / "atlas"


@pytest.fixture(scope="session")
def atlas(written: Path) -> Atlas:
    return open_atlas(written)


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A copy of the atlas, to damage it."""
    return Path(shutil.copytree(written, tmp_path / "atlas"))
