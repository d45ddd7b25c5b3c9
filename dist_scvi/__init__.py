"""SCVI trained out of core and distributed, and the minified atlas that answers afterwards.

``open`` names the cells, ``SCVI`` trains on them, ``open_atlas`` asks the result.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .atlas import Atlas, open_atlas
    from .loaders.data import open_data as open
    from .model import SCVI

__version__ = "0.1.0"
__all__ = ["SCVI", "Atlas", "__version__", "open", "open_atlas"]

# Imported on first use: torch alone takes a second, and the command line must answer at once.
_PLACES = {
    "SCVI": ("dist_scvi.model", "SCVI"),
    "Atlas": ("dist_scvi.atlas", "Atlas"),
    "open_atlas": ("dist_scvi.atlas", "open_atlas"),
    "open": ("dist_scvi.loaders.data", "open_data"),
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'dist_scvi' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
