"""Layout of a minified atlas: file names, array names and format strings.

The layout is described in ``dist_scvi/README.md``, section "The atlas on disk".
"""

from dist_scvi.loaders.arrays.anndata_layout import LIBRARY, QZM, QZV, SOURCE_ROW

__all__ = ["LIBRARY", "QZM", "QZV", "SOURCE_ROW"]

FORMAT_1, FORMAT_2 = "dist_scvi.atlas/1", "dist_scvi.atlas/2"
MANIFEST, MODEL = "ATLAS.json", "model"
CELLS, LEAVES, NEIGHBOURHOODS = "cells.zarr", "leaves.zarr", "neighbourhoods.zarr"
ATLAS_PARTS = (MANIFEST, MODEL, CELLS, LEAVES, NEIGHBOURHOODS)
"""All top-level names of an atlas; other files there do not belong to it."""

LOG_VARIANCE_CODE = "log_variance_code"
FACTOR = "library_factor"
"""obs column of the factor of the shares, if this is not the total count."""
LOG_NORMALIZER = "log_normalizer"
LEAF = "leaf"
OWN_COLUMNS = (LIBRARY, FACTOR, LOG_NORMALIZER, SOURCE_ROW, LEAF)

N_CELLS, N_SKETCH = "n_cells", "n_sketch"
"""Columns of the table of leaves."""
COUNT_SUM = "X"
DETECTED, SQUARE_SUM, NORMALIZED_SUM = "layers/detected", "layers/square_sum", "layers/normalized_sum"
SCALE_MEAN, SCALE_VAR, SCALE_MAX = "layers/scale_mean", "layers/scale_var", "layers/scale_max"
QUANTILES = "uns/scale_quantiles"
