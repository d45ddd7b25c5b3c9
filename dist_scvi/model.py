"""The models, under the names of ``scvi.model``."""

from .linear_model import LinearSCVI
from .scanvi_model import SCANVI
from .scvi_model import SCVI

__all__ = ["SCANVI", "SCVI", "LinearSCVI"]
