"""How well drawn values agree with observed ones."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Agreement:
    """The numbers that scvi-hub shows for a coefficient of variation."""

    mae: float
    """Mean absolute error."""
    pearson: float
    spearman: float
    r2: float
    """Coefficient of determination of the observed value by the drawn one, as in scvi-tools: below 0 where the mean
    would predict better."""

    def to_dict(self) -> dict[str, float]:
        """Return plain values."""
        return asdict(self)


def agreement(observed: NDArray[np.float64], drawn: NDArray[np.float64]) -> Agreement:
    """Compare values, leaving out those that are NaN; NaN where there are fewer than two or all are equal.

    Notes
    -----
    scvi-tools 1.4.2, criticism/_create_criticism_report.py: r2 takes the drawn values for the true ones.
    """
    from scipy.stats import pearsonr, spearmanr

    known = ~(np.isnan(observed) | np.isnan(drawn))
    observed, drawn = observed[known], drawn[known]
    if len(observed) < 2:
        return Agreement(*[float("nan")] * 4)
    error = float(np.abs(drawn - observed).mean())
    spread = float(((drawn - drawn.mean()) ** 2).sum())
    r2 = 1 - float(((drawn - observed) ** 2).sum()) / spread if spread else float("nan")
    if np.ptp(observed) == 0 or np.ptp(drawn) == 0:
        return Agreement(error, float("nan"), float("nan"), r2)
    return Agreement(error, float(pearsonr(drawn, observed)[0]), float(spearmanr(drawn, observed)[0]), r2)
