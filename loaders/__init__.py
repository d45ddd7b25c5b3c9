"""Stores of raw counts to minibatches: opened lazily, read in order, checked as they are read."""

from .data import CellData, open_data
from .plan import Plan, make_plan
from .store import CellStore, open_store

__all__ = ["CellData", "CellStore", "Plan", "make_plan", "open_data", "open_store"]
