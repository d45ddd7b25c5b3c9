"""The cells of one step as they leave the loader: narrow on the way to the device, widened there.

Shape letters in this file
    n   cells of this rank's part of a minibatch
    g   genes
    e   stored entries of these cells
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_scvi.loaders.arrays.csr_rows import CsrRows
from dist_scvi.loaders.arrays.kernels import spread_rows


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """One rank's part of a global minibatch, or some cells to infer."""

    counts: CsrRows
    n_genes: int
    batch_n: NDArray[np.int32]
    """Code of the batch covariate."""
    label_n: NDArray[np.int32]
    """Code of the label, -1 where it is missing."""
    categorical_nc: NDArray[np.int32]
    """Codes of further categorical covariates, one column each."""
    continuous_nc: NDArray[np.float32]
    library_n: NDArray[np.int64]
    """Total count."""
    size_factor_n: NDArray[np.float32] | None
    """Size factor, where one takes the place of the total count."""
    row_n: NDArray[np.int64]
    """Row of the store, the identity of the cell."""
    epoch: int
    step: int
    """Step in the epoch."""
    micro_n: tuple[int, ...]
    """Sizes of the micro-minibatches, in the order of the cells."""
    micro_keys: tuple[int, ...]
    """Number of each micro-minibatch in the global minibatch, the same for any world size."""
    global_cells: int
    """Cells of the global minibatch over all ranks."""

    @property
    def n_cells(self) -> int:
        """Cells in this part."""
        return len(self.row_n)

    def to(self, device: torch.device | str) -> "Tensors":
        """Send the narrow arrays to `device` and make them dense there."""

        def send(array: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device).to(dtype)

        counts_ng, place_e, count_e = self._dense_here() if torch.device(device).type == "cpu" else self._dense_on(send)
        return Tensors(
            counts_ng.view(self.n_cells, self.n_genes),
            place_e,
            count_e,
            send(self.library_n if self.size_factor_n is None else self.size_factor_n, torch.float32),
            Covariates(
                send(self.batch_n, torch.int64),
                send(self.label_n, torch.int64),
                send(self.categorical_nc, torch.int64),
                send(self.continuous_nc, torch.float32),
            ),
        )

    def _dense_here(self) -> tuple[Tensor, Tensor, Tensor]:
        """Make the counts dense, and give place and count of the stored entries."""
        n_entries = len(self.counts.counts_e)
        # numpy's large arrays lie in large pages; torch's do not, and filling them takes five times as long.
        counts_ng = np.zeros(self.n_cells * self.n_genes, dtype=np.float32)
        place_e, count_e = np.empty(n_entries, dtype=np.int64), np.empty(n_entries, dtype=np.float32)
        rows = self.counts
        spread_rows(rows.counts_e, rows.genes_e, rows.indptr, self.n_genes, counts_ng, place_e, count_e)
        return torch.from_numpy(counts_ng), torch.from_numpy(place_e), torch.from_numpy(count_e)

    def _dense_on(self, send: Callable[[NDArray[Any], torch.dtype], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Do the same on the device that `send` sends to."""
        length_n = send(np.diff(self.counts.indptr), torch.int64)
        row_e = torch.repeat_interleave(torch.arange(self.n_cells, device=length_n.device), length_n)
        place_e = row_e * self.n_genes + send(self.counts.genes_e, torch.int64)
        count_e = send(self.counts.counts_e, torch.float32)
        counts_ng = torch.zeros(self.n_cells * self.n_genes, device=length_n.device)
        counts_ng[place_e] = count_e
        return counts_ng, place_e, count_e


@dataclass(frozen=True, slots=True)
class Covariates:
    """What is known of cells besides their counts, on the device of the model."""

    batch_n: Tensor
    label_n: Tensor
    """Code of the label, -1 where it is missing."""
    categorical_nc: Tensor
    continuous_nc: Tensor


@dataclass(frozen=True, slots=True)
class Tensors:
    """A minibatch on its device."""

    counts_ng: Tensor
    """Counts, dense, float32."""
    place_e: Tensor
    """Where the stored entries lie in the flattened counts, int64."""
    count_e: Tensor
    """The stored entries, float32."""
    library_n: Tensor
    """Total count or size factor: what the expected share of each gene is multiplied by."""
    covariates: Covariates
