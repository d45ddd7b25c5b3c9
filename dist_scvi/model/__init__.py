"""The models, under the names of ``scvi.model``."""

from dist_scvi.model.linear_scvi import LinearSCVI
from dist_scvi.model.scanvi import SCANVI
from dist_scvi.model.scvi import SCVI

__all__ = ["SCANVI", "SCVI", "LinearSCVI"]
