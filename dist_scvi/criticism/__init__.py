"""Posterior predictive checks: whether counts drawn from a model look like those that were observed.

`PosteriorPredictiveCheck` and `create_criticism_report` have the names and the results of ``scvi.criticism``.
"""

from dist_scvi.criticism.criticism_report import create_criticism_report
from dist_scvi.criticism.posterior_predictive_check import PosteriorPredictiveCheck

__all__ = ["PosteriorPredictiveCheck", "create_criticism_report"]
