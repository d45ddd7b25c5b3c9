"""Cells of which some have labels, and plans for them."""

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from dist_scvi.loaders import CellData, Plan, make_plan, open_data
from tests.loaders.order.lane_rows import minibatch_rows

NAMES = ("?", "alpha", "beta", "gamma")


def open_cells(label_n: np.ndarray, **columns: np.ndarray) -> CellData:
    """Cells whose first counts tell the row; label 0 is the unlabeled category, -1 a missing value."""
    row_n = np.arange(len(label_n))
    counts = np.stack([row_n % 97, row_n // 97, np.ones(len(row_n))], axis=1).astype(np.float32)
    obs = pd.DataFrame({"type": pd.Categorical.from_codes(label_n, NAMES), **columns}, index=row_n.astype(str))
    return open_data(AnnData(sparse.csr_matrix(counts), obs=obs), labels_key="type", unlabeled_category="?")


def some_cells(n_cells: int, share: float, seed: int = 0, **columns: np.ndarray) -> CellData:
    random = np.random.default_rng(seed)
    label_n = np.where(random.random(n_cells) < share, random.integers(1, 4, n_cells), random.integers(-1, 1, n_cells))
    return open_cells(label_n, **columns)


def plan_of(data: CellData, *, batch_size: int = 32, lanes: int = 4, window_cells: int = 10_000, **options) -> Plan:
    return make_plan(
        n_cells=data.n_cells,
        n_entries=9,
        n_genes=3,
        batch_size=batch_size,
        lanes=lanes,
        window_cells=window_cells,
        **{"train_size": 0.7, "validation_size": 0.2, "micro_cells": 8} | options,
    )


def labelled_rows(data: CellData, plan: Plan) -> list[int]:
    label_n = data.columns_of([(0, data.n_cells)]).label_n
    return np.flatnonzero((label_n >= 0) & plan.trains_on(0, data.n_cells)).tolist()


def pass_rows(plan: Plan, number: int) -> list[np.ndarray]:
    return [
        np.concatenate([minibatch_rows(plan, number, step, lane) for lane in range(plan.lanes)])
        for step in range(plan.steps_per_epoch)
    ]
