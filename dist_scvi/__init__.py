"""SCVI, SCANVI and LinearSCVI trained out of core and distributed, and the minified atlas that answers afterwards.

``open_data`` opens the cells, ``model.SCVI`` trains on them, ``open_atlas`` opens the result for queries, ``connect``
that of a service.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dist_scvi.idle_threads import let_idle_threads_sleep

if TYPE_CHECKING:
    from dist_scvi import data, model, pp
    from dist_scvi.atlas.atlas import Atlas, open_atlas
    from dist_scvi.atlas.import_minified import import_minified
    from dist_scvi.client import connect
    from dist_scvi.hub import from_hub, push_to_hub
    from dist_scvi.loaders.data import open_data

    open = open_data
    from dist_scvi.model import SCANVI, SCVI, LinearSCVI
    from dist_scvi.session_settings import settings

let_idle_threads_sleep()  # before torch is imported, unless the program has imported it

__version__ = "0.1.0"
__all__ = [
    "SCANVI",
    "SCVI",
    "Atlas",
    "LinearSCVI",
    "__version__",
    "connect",
    "data",
    "from_hub",
    "import_minified",
    "model",
    "open_atlas",
    "open_data",
    "pp",
    "push_to_hub",
    "settings",
]

# Imported on first use: torch alone takes a second, and the command line must answer at once.
_PLACES = {
    "SCVI": ("dist_scvi.model", "SCVI"),
    "SCANVI": ("dist_scvi.model", "SCANVI"),
    "LinearSCVI": ("dist_scvi.model", "LinearSCVI"),
    "Atlas": ("dist_scvi.atlas.atlas", "Atlas"),
    "open_atlas": ("dist_scvi.atlas.atlas", "open_atlas"),
    "import_minified": ("dist_scvi.atlas.import_minified", "import_minified"),
    "connect": ("dist_scvi.client", "connect"),
    "from_hub": ("dist_scvi.hub", "from_hub"),
    "push_to_hub": ("dist_scvi.hub", "push_to_hub"),
    "open_data": ("dist_scvi.loaders.data", "open_data"),
    # An alias outside of __all__: a star import must not replace the builtin.
    "open": ("dist_scvi.loaders.data", "open_data"),
    "settings": ("dist_scvi.session_settings", "settings"),
}
_MODULES = ("data", "model", "pp")


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"dist_scvi.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'dist_scvi' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
