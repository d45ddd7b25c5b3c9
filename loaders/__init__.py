"""From stores of raw counts to minibatches. Stores are opened lazily, and counts are checked as they are read."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_scvi.loaders.cell_store import CellStore
    from dist_scvi.loaders.data import CellData, open_data
    from dist_scvi.loaders.order.plan import Plan, make_plan
    from dist_scvi.loaders.stores.open import open_store

__all__ = ["CellData", "CellStore", "Plan", "make_plan", "open_data", "open_store"]

# Imported on first use, so that a command that reads no cells does not wait for zarr, pandas and anndata.
_MODULES = {
    "CellData": "data",
    "CellStore": "cell_store",
    "Plan": "order.plan",
    "make_plan": "order.plan",
    "open_data": "data",
    "open_store": "stores.open",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'dist_scvi.loaders' has no attribute '{name}'")
    return getattr(import_module(f"dist_scvi.loaders.{_MODULES[name]}"), name)
