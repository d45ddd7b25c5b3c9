"""Stores of raw counts to minibatches: opened lazily, read in order, checked as they are read."""

from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.data import CellData, open_data
from dist_scvi.loaders.order.plan import Plan, make_plan
from dist_scvi.loaders.stores.open import open_store

__all__ = ["CellData", "CellStore", "Plan", "make_plan", "open_data", "open_store"]
