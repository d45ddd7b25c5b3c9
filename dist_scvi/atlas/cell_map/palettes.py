"""Colours of the map that people with any colour vision can tell apart, as far as their number allows."""

import numpy as np
from numpy.typing import NDArray

CATEGORY_HEX = (
    # Okabe and Ito 2008, without black, then Tol's "muted" (SRON/EPS/TN/09-002, 2021); grey is that of missing values.
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#332288", "#ddcc77"),
    *("#882255", "#44aa99", "#999933", "#aa4499", "#117733", "#cc6677", "#88ccee", "#661100"),
    *("#6699cc", "#f0e442", "#4b0082", "#7a9a01"),
)
SEQUENTIAL_HEX = ("#dfe3e8", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#253494", "#081d58")
"""ColorBrewer's YlGnBu, which falls steadily in lightness, from a grey that shows on white."""
UNCERTAINTY_HEX = ("#e9e6e1", "#fdd9a8", "#fdae6b", "#f16913", "#a63603", "#4f1d02")
"""Oranges, so that a map of uncertainty is not taken for one of expression."""
PLAIN_HEX = "#4a628a"
"""Colour of cells without a value to colour by."""
MISSING_HEX = "#c9ccd1"


def _rgb(colors: tuple[str, ...]) -> NDArray[np.float64]:
    return np.array([[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in colors], dtype=np.float64)


def _ramp(colors: tuple[str, ...]) -> NDArray[np.float64]:
    stops, rgb = np.linspace(0, 255, len(colors)), _rgb(colors)
    return np.stack([np.interp(np.arange(256), stops, rgb[:, channel]) for channel in range(3)], axis=1)


CATEGORIES = _rgb(CATEGORY_HEX)
SEQUENTIAL, UNCERTAINTY = _ramp(SEQUENTIAL_HEX), _ramp(UNCERTAINTY_HEX)
MISSING_COLOR, PLAIN_COLOR = _rgb((MISSING_HEX, PLAIN_HEX))
