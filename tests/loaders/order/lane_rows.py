"""The rows of one lane in one step, computed without a stream: what the streams are compared with."""

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders.order.plan import Plan, lane_span, window_rows


def minibatch_rows(plan: Plan, epoch: int, step: int, lane: int) -> NDArray[np.int64]:
    """Return the rows that `lane` trains on in `step`."""
    window = step // plan.window_steps
    begin, _ = lane_span(plan, lane, window * plan.window_steps)
    low, high = lane_span(plan, lane, step)
    return window_rows(plan, epoch, lane, window)[low - begin : high - begin]
