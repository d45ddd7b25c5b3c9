"""The cells of one step: sent to the device in narrow types and widened there.

Shape letters in this file
    n   cells of this rank's part of a minibatch
    g   genes
    e   stored entries of these cells
"""

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
    library_n: NDArray[Any]
    """Total count, int64, or float64 of fractional counts."""
    size_factor_n: NDArray[np.float32] | None
    """Size factor, if it replaces the total count."""
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
    hash_n: NDArray[np.uint64] | None = None
    """Hash of the content of each cell, in training; see `data.hash_cells`."""
    posterior: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    """Mean and variance of q(z | x) of minified cells, each of shape (n, latent dimensions)."""

    @property
    def n_cells(self) -> int:
        """Cells in this part."""
        return len(self.row_n)

    def to(self, device: torch.device | str) -> "Tensors":
        """Send the narrow arrays to `device` and widen them there."""

        def send(array: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device).to(dtype)

        stored = None if self.posterior is None else tuple(send(part, torch.float32) for part in self.posterior)
        return Tensors(
            self.n_genes,
            send(self.counts.indptr, torch.int64),
            send(self.counts.genes_e, torch.int32),
            send(self.counts.counts_e, torch.float32),
            send(self.library_n if self.size_factor_n is None else self.size_factor_n, torch.float32),
            Covariates(
                send(self.batch_n, torch.int64),
                send(self.label_n, torch.int64),
                send(self.categorical_nc, torch.int64),
                send(self.continuous_nc, torch.float32),
            ),
            None if stored is None else (stored[0], stored[1]),
        )


@dataclass(frozen=True, slots=True)
class Covariates:
    """Covariates of cells, on the device of the model."""

    batch_n: Tensor
    label_n: Tensor
    """Code of the label, -1 where it is missing."""
    categorical_nc: Tensor
    continuous_nc: Tensor


@dataclass(frozen=True, slots=True)
class Tensors:
    """A minibatch on its device."""

    n_genes: int
    indptr: Tensor
    """Where each cell begins in the stored entries, int64, shape (n + 1,)."""
    gene_e: Tensor
    """Gene of each stored entry, int32."""
    count_e: Tensor
    """The stored entries, float32."""
    library_n: Tensor
    """Total count or size factor: what the expected share of each gene is multiplied by."""
    covariates: Covariates
    posterior: tuple[Tensor, Tensor] | None = None
    """Mean and variance of q(z | x), if the cells are minified; the encoder is then not asked."""

    @property
    def place_e(self) -> Tensor:
        """Position of the stored entries in the flattened dense counts, int64."""
        # int64: the product of cells and genes can exceed 2**31. `output_size` spares a synchronisation with the GPU.
        first_n = torch.arange(len(self.indptr) - 1, device=self.indptr.device) * self.n_genes
        return torch.repeat_interleave(first_n, self.indptr.diff(), output_size=len(self.gene_e)) + self.gene_e

    @property
    def counts_ng(self) -> Tensor:
        """Counts, dense, float32; computed at each access."""
        if self.count_e.device.type != "cpu":
            counts_ng = self.count_e.new_zeros((len(self.indptr) - 1) * self.n_genes)
            counts_ng[self.place_e] = self.count_e
            return counts_ng.view(-1, self.n_genes)
        # numpy allocates large arrays in huge pages. torch does not, and filling its arrays takes five times as long.
        filled_ng = np.zeros((len(self.indptr) - 1, self.n_genes), dtype=np.float32)
        spread_rows(self.count_e.numpy(), self.gene_e.numpy(), self.indptr.numpy(), filled_ng)
        return torch.from_numpy(filled_ng)
