"""Labels of the cells of an atlas by the classifier of its model.

Shape letters in this file
    n   cells
    l   labels
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.annotation.conformal import F8
from dist_scvi.atlas.annotation.label_scores import classified
from dist_scvi.atlas.queries.cell_values import chosen_rows
from dist_scvi.atlas.queries.query_plan import READ_BYTES_PER_S, QueryPlan
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import Cells
from dist_scvi.inference.encode_decode import Indices
from dist_scvi.network.scanvae import SCANVAE

_PART_CELLS = 4096
_CLASSIFY_S_PER_CELL = 5e-6


def predict(
    atlas: AtlasReader,
    indices: Indices | None = None,
    soft: bool = False,  # noqa: FBT001, FBT002 - the position in scvi-tools
    *,
    where: Cells = None,
) -> NDArray[np.object_] | pd.DataFrame:
    """Predict the labels of cells from the means of their posteriors.

    Parameters
    ----------
    indices
        Cells in the order wanted; all by default.
    soft
        Return the probability of each label.
    where
        Cells by a filter, a mask, or values of obs columns, in place of `indices`; by ascending row.

    Returns
    -------
    numpy.ndarray or pandas.DataFrame
        Labels, or cells by labels.

    Raises
    ------
    ValueError
        If the model is not SCANVI, or a cell does not exist.
    """
    names = _classes(atlas)
    if indices is not None and not len(indices):
        row_n, probability_nl = np.zeros(0, np.int64), np.zeros((0, len(names)))
    else:
        _, rows = chosen_rows(atlas, where, indices)
        row_n = np.arange(atlas.n_cells) if rows is None else rows
        probability_nl = _probabilities(atlas, row_n, len(names))
    if soft:
        return pd.DataFrame(probability_nl.astype(np.float32), index=atlas.obs_names(row_n), columns=names)
    predicted_n: NDArray[np.object_] = names[probability_nl.argmax(axis=1)]
    return predicted_n


def plan_predict(atlas: AtlasReader, given: dict[str, Any]) -> QueryPlan:
    """Estimate the cost of `predict`."""
    _classes(atlas)
    _, rows = chosen_rows(atlas, given["where"], given["indices"])
    n = atlas.n_cells if rows is None else len(rows)
    n_bytes = 2 * n * atlas.spec.model.n_latent
    return QueryPlan("predict", "classifier", n, 0, n_bytes, n_bytes / READ_BYTES_PER_S + n * _CLASSIFY_S_PER_CELL)


def _classes(atlas: AtlasReader) -> NDArray[np.object_]:
    if not isinstance(atlas.module, SCANVAE) or atlas.spec.label is None:
        raise ValueError(f"{atlas.uri} was made with {atlas.spec.model.model_name}: only SCANVI predicts labels")
    return np.array(atlas.spec.label.categories, dtype=object)


def _probabilities(atlas: AtlasReader, row_n: NDArray[np.int64], n_labels: int) -> F8:
    assert isinstance(atlas.module, SCANVAE)
    probability_nl = np.empty((len(row_n), n_labels), np.float32)
    unique_m, order_n = np.unique(row_n, return_inverse=True)
    for start in range(0, len(unique_m), _PART_CELLS):
        part = slice(start, start + _PART_CELLS)
        probability_nl[part][: len(unique_m[part])] = np.exp(classified(atlas.module, atlas.read_mean(unique_m[part])))
    return np.asarray(probability_nl[order_n])
