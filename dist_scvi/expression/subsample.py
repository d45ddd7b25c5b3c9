"""Normalized expression of a sample of cells, of which only the sampled ones are decoded.

Shape letters in this file
    s   samples, or candidates for them
    a   anchors
    g   requested genes
"""

from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_scvi.expression.de_groups import draw_numbers
from dist_scvi.expression.model_source import ModelSource
from dist_scvi.inference.cell_selection import Selection
from dist_scvi.inference.encode_decode import ExpressionQuery, expression_at
from dist_scvi.inference.importance import Importance, ImportanceSampling, importance_of

Weights = Literal["uniform", "importance"]

_CHOICE_KEY = 5


def checked_importance(source: ModelSource, weights: Weights | None, sampling: ImportanceSampling) -> Importance | None:
    """Check the arguments of importance weights; return None for uniform weights.

    Raises
    ------
    ValueError
        If `weights` is invalid, or `sampling` is changed for weights that do not use it.
    """
    options: dict[str, Any] = asdict(sampling)
    if weights != "importance":
        default = asdict(ImportanceSampling())
        options = {name: value for name, value in options.items() if value != default[name]}
    return importance_of(source, weights, options)


def sampled_expression(
    source: ModelSource, selection: Selection, query: ExpressionQuery, n_samples: int, importance: Importance | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Choose cells with replacement; return normalized expression at one draw of each, shape (s, g), and their rows.

    Raises
    ------
    ValueError
        If importance weights are requested for several batches.
    """
    if importance is not None and len(query.transform_batch) > 1:
        raise ValueError(
            "weights='importance': the draws of several batches cannot be weighed, give one transform_batch"
        )
    rng = np.random.default_rng([query.seed, _CHOICE_KEY])
    n_asked = selection.n_cells if isinstance(selection.order, slice) else len(selection.order)
    row_s = _rows_at(selection, rng.integers(n_asked, size=n_samples))
    draw_s = draw_numbers(row_s, 0)
    if importance is not None:
        place_a = rng.choice(n_asked, min(n_asked, importance.sampling.max_cells), replace=False)
        # unique: anchors are sorted rows, and a cell that is requested twice must not be an anchor twice.
        anchors = importance.anchors(np.unique(_rows_at(selection, place_a)))
        chosen_s = importance.choose(row_s, draw_s, query.transform_batch, anchors, n_samples, rng)
        row_s, draw_s = row_s[chosen_s], draw_s[chosen_s]
    expression_sg = np.empty((n_samples, len(query.gene_index)), dtype=np.float32)
    for part, cells in source.encoded(row_s):
        expression_sg[part] = expression_at(source.module, cells, query, draw_s[part])
    return expression_sg, row_s


def _rows_at(selection: Selection, place_s: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the requested cells at some positions."""
    if selection.row_n is None:
        return place_s
    return selection.row_n[place_s if isinstance(selection.order, slice) else selection.order[place_s]]
