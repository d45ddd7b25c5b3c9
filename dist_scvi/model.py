"""The models, under the names of ``scvi.model``."""

from dist_scvi.linear_model import LinearSCVI
from dist_scvi.scanvi_model import SCANVI
from dist_scvi.scvi_model import SCVI

__all__ = ["SCANVI", "SCVI", "LinearSCVI"]
