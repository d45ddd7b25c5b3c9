"""Count the work of a training step: products, bytes that pass through memory, calls of kernels, and weights.

Every operator that torch dispatches in a few real steps is counted, forward and backward, at several small sizes. Each
number is of the form ``a + b n + c g + d n g + e n z`` for n cells, g genes and z stored entries a cell, so that the
coefficients, which are solved for, give it at any size. No clock is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dist_scvi.config.schema import DataConfig, RunConfig, TrainConfig
from dist_scvi.loaders.data import open_data
from dist_scvi.training.train import train

SIZES = ((128, 400, 40), (256, 400, 40), (512, 400, 40), (128, 800, 40), (256, 800, 40), (256, 800, 80))
"""Cells, genes, and entries of a cell, at which is counted."""
_STEPS = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What one worker does in a step, optimizer and sending apart."""

    flops: float
    memory_bytes: float
    """Read and written, if no operator finds in a cache what another has left there."""
    kernels: float
    parameters: float
    """Weights that are trained."""


@dataclass(frozen=True, slots=True)
class WorkOf:
    """The work of a step as a function of its size."""

    coefficients: NDArray[np.float64]
    """One row for each field of `Work`, one column for each term."""
    misfit: float
    """Largest relative difference from what was counted."""

    def __call__(self, n_cells: float, n_genes: float, entries_per_cell: float) -> Work:
        """Give the work of a step over `n_cells`."""
        return Work(*(self.coefficients @ _terms(n_cells, n_genes, entries_per_cell)).tolist())


class Counting(TorchDispatchMode):
    """Counts each operator but those of the optimizer, which are many in one."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = np.zeros(3)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count it."""
        out = func(*args, **(kwargs or {}))
        if not func._schema.name.startswith("aten::_fused_adam"):  # noqa: SLF001 -- how an operator is told
            self.counted += _work_of(func, args, kwargs or {}, out)
        return out


def _work_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> NDArray[np.float64]:
    read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    wrote = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor)]
    places = {value.untyped_storage().data_ptr() for value in read}
    is_view = not func._schema.is_mutable and all(v.untyped_storage().data_ptr() in places for v in wrote)  # noqa: SLF001
    if is_view or not wrote:
        return np.zeros(3)
    flops = (
        flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) if func.overloadpacket in flop_registry else 0
    )
    return np.array([flops, sum(map(_bytes, read)) + sum(map(_bytes, wrote)), 1.0])


def _bytes(tensor: torch.Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def count_work() -> WorkOf:
    """Count at `SIZES` and solve for the coefficients."""
    counted = np.stack([_counted(*size) for size in SIZES])
    terms = np.stack([_terms(*size) for size in SIZES])
    coefficients = np.linalg.lstsq(terms, counted, rcond=None)[0].T
    misfit = float(np.abs(terms @ coefficients.T / counted - 1).max())
    return WorkOf(coefficients, misfit)


def _terms(n_cells: float, n_genes: float, entries_per_cell: float) -> NDArray[np.float64]:
    return np.array([1.0, n_cells, n_genes, n_cells * n_genes, n_cells * entries_per_cell])


def _counted(n_cells: int, n_genes: int, entries_per_cell: int) -> NDArray[np.float64]:
    """Train on made-up cells and count one step, of the mean over some."""
    total = 2 * _STEPS * n_cells
    counts = sparse.csr_matrix(
        (
            np.ones(total * entries_per_cell, dtype=np.float32),
            np.tile(np.linspace(0, n_genes - 1, entries_per_cell).astype(np.int64), total),
            np.arange(total + 1) * entries_per_cell,
        ),
        shape=(total, n_genes),
    )
    obs = pd.DataFrame({"batch": pd.Categorical(["one"] * total)}, index=[f"cell{n}" for n in range(total)])
    data = open_data(anndata.AnnData(counts, obs), batch_key="batch")
    config = RunConfig(
        data=DataConfig(uri="memory", batch_key="batch"),
        train=TrainConfig(
            max_epochs=1, batch_size=n_cells, lanes=1, train_size=1.0, validation_size=0.0, log_every_n_steps=_STEPS
        ),
    )
    seen: list[NDArray[np.float64]] = []
    with Counting() as counting:
        module = train(config, data=data, on_metrics=_told(seen, counting)).module
    parameters = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    return np.append((seen[1] - seen[0]) / _STEPS, parameters)


def _told(seen: list[NDArray[np.float64]], counting: Counting) -> Callable[[dict[str, Any]], None]:
    return lambda row: seen.append(counting.counted.copy())
