"""A model and its cells as a source for differential expression and importance weights.

Shape letters in this file
    n   cells of the store
    g   genes
    k   latent dimensions
    s   samples, cells with a draw each
    a   anchors
    q   groups of cells
    m   some cells
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.expression.de_groups import RawMoments
from dist_scvi.inference.cell_selection import select
from dist_scvi.inference.encode_decode import LatentCells, covariates_of, decoded_with, draw_posterior, latent_cells
from dist_scvi.inference.importance import Anchors, Candidates
from dist_scvi.inference.likelihood_estimates import marginal_log_likelihood
from dist_scvi.inference.obs_query import queried
from dist_scvi.inference.progress import with_progress
from dist_scvi.loaders.data import CellData, check_counts
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.network.likelihood import GeneLikelihood
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.world import World

_MARGINAL_VALUES = 1 << 26
_MARGINAL_KEY = 1 << 40
"""Added to the seed, so that the marginal likelihood uses other noise than the candidates."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The cells of a store, and a model that decodes their expression; see `ExpressionSource`."""

    module: VAE
    spec: ModelSpec
    data: CellData
    seed: int = 0
    chunk_cells: int = 1024
    """Cells computed at a time."""
    world: World = World()  # noqa: RUF009 - a frozen record
    obs: pd.DataFrame | None = None
    """obs of an AnnData, which is queried instead of the columns of the store."""
    on_progress: Callable[[int, int], None] | None = None
    """Called during the pass over the counts: cells that this worker has read, and cells that it has to read."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.data.n_cells

    @property
    def var_names(self) -> Sequence[str]:
        """Genes, in the order of the model."""
        return self.spec.var_names

    @property
    def batch_categories(self) -> Sequence[str]:
        """Batches in the order of their codes; none if the model knows no batches."""
        return self.spec.batch.categories if self.spec.batch else ()

    @property
    def gene_likelihood(self) -> GeneLikelihood:
        """Distribution of the counts."""
        return self.spec.model.gene_likelihood

    @torch.no_grad()
    def scale(self, row_s: NDArray[np.int64], draw_s: NDArray[np.int64], batch: int | None) -> NDArray[np.float32]:
        """Return the scale of cells, shape (s, g), each at its draw of the posterior; rows may be in any order."""
        scale_sg = np.empty((len(row_s), len(self.var_names)), dtype=np.float32)
        for part, cells in self.encoded(row_s):
            z_sk, _ = draw_posterior(self.module, cells, self.seed, draw_s[part])
            covariates = decoded_with(covariates_of(cells, self.module.device), batch)
            scale_sg[part] = self.module.shares(self.module.latent(z_sk), covariates).cpu().numpy()
        return scale_sg

    def latent_mean(self, row_m: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the mean of the posterior of cells, shape (m, k)."""
        mean_mk = np.empty((len(row_m), self.spec.model.n_latent), dtype=np.float32)
        for part, cells in self.encoded(row_m):
            mean_mk[part] = cells.qzm_nk
        return mean_mk

    def group_codes(self, groupby: str) -> tuple[NDArray[np.int32], Sequence[str]]:
        """Return the category of each cell in an obs column, -1 where there is none, and the categories."""
        column = self.data.store.categorical(groupby)
        return column.codes(0, self.n_cells), column.vocabulary

    def obs_query(self, text: str) -> NDArray[np.bool_]:
        """Return a mask of the cells for which the pandas expression `text` is true."""
        return queried(self.data.store if self.obs is None else self.obs, text)

    def raw_moments(self, group_n: NDArray[np.int32], n_groups: int) -> RawMoments:
        """Sum the counts of each group in one pass that all workers share; cells of group -1 are left out."""
        check_counts(self.data, "differential_expression with all_stats=True, or mode='change' without pseudocounts,")
        sums = np.zeros((3, n_groups, len(self.var_names)))
        selection = select(self.data, group_n >= 0)

        def add(minibatch: MiniBatch) -> None:
            for total_qg, part_qg in zip(sums, _sums(minibatch, group_n[minibatch.row_n], n_groups), strict=True):
                # A plain += on fancy indices is safe: a product of CSR arrays has no index pair twice.
                total_qg[part_qg.row, part_qg.col] += part_qg.data

        world, chunk_cells = self.world, self.chunk_cells
        add_told = with_progress(add, selection, self.on_progress, world=world, chunk_cells=chunk_cells)
        for minibatch in selection.minibatches(world, chunk_cells=chunk_cells):
            add_told(minibatch)
        joined = np.sum(world.from_all(sums), axis=0)
        cells_q = np.bincount(group_n[group_n >= 0], minlength=n_groups)
        return RawMoments(joined[0], joined[1].astype(np.int64), joined[2], cells_q)

    @torch.no_grad()
    def candidates(self, row_s: NDArray[np.int64], draw_s: NDArray[np.int64], batch: int | None) -> Candidates:
        """Draw z for each row and decode it with `batch`; None is the cell's own. The draws are those of `scale`."""
        parts: list[tuple[Any, ...]] = []
        for part, cells in self.encoded(row_s):
            z_sk, library_s = draw_posterior(self.module, cells, self.seed, draw_s[part])
            covariates = decoded_with(covariates_of(cells, self.module.device), batch)
            px = self.module.decode(self.module.latent(z_sk), library_s, covariates)
            parts.append((part, z_sk, px.scale_ng, px.theta_ng, px.zi_logits_ng))
        # `encoded` yields chunks in the order of the rows; this is the inverse permutation.
        back_s = torch.from_numpy(np.argsort(np.concatenate([part for part, *_ in parts]))).to(self.module.device)
        _, z_p, scale_p, theta_p, zi_logits_p = (list(column) for column in zip(*parts, strict=True))
        return Candidates(
            torch.cat(z_p)[back_s],
            torch.cat(scale_p)[back_s],
            theta_p[0] if theta_p[0].dim() == 1 else torch.cat(theta_p)[back_s],
            None if zi_logits_p[0] is None else torch.cat(zi_logits_p)[back_s],
        )

    @torch.no_grad()
    def anchors(self, row_a: NDArray[np.int64], n_mc_samples: int, n_mc_samples_per_pass: int) -> Anchors:
        """Read and encode the sorted rows `row_a` and estimate their marginal likelihood."""
        check_counts(self.data, "weights='importance'")
        device, width = self.module.device, max(1, _MARGINAL_VALUES // (n_mc_samples_per_pass * len(self.var_names)))
        minibatch = rows_minibatch(self.data, row_a)
        cells = latent_cells(self.module, minibatch)
        log_marginal_a = [
            marginal_log_likelihood(
                self.module,
                rows_minibatch(self.data, row_a[start : start + width]),
                n_samples=n_mc_samples,
                n_samples_per_pass=n_mc_samples_per_pass,
                seed=self.seed + _MARGINAL_KEY,
            )
            for start in range(0, len(row_a), width)
        ]
        arrays = (minibatch.counts.indptr, minibatch.counts.genes_e.astype(np.int64), minibatch.counts.counts_e)
        indptr, gene_e, count_e = (torch.from_numpy(array.astype(np.int64)).to(device) for array in arrays)
        floats = (cells.library_n, cells.qzm_nk, cells.qzv_nk, np.concatenate(log_marginal_a))
        return Anchors(indptr, gene_e, count_e.float(), *(torch.from_numpy(array).to(device) for array in floats))

    def encoded(self, row_s: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], LatentCells]]:
        """Encode rows in chunks; yield the positions of a chunk in `row_s`, and the cells at these positions.

        A row that occurs several times in a chunk is read and encoded once.
        """
        # In sorted order, so that a chunk reads neighbouring rows of the store.
        order_s = np.argsort(row_s, kind="stable")
        for start in range(0, len(row_s), self.chunk_cells):
            part = order_s[start : start + self.chunk_cells]
            row_m, of_part = np.unique(row_s[part], return_inverse=True)
            yield part, latent_cells(self.module, rows_minibatch(self.data, row_m)).take(of_part)


def _sums(minibatch: MiniBatch, group_n: NDArray[np.int32], n_groups: int) -> list[sparse.coo_array]:
    """Return sums of counts, numbers of cells with counts, and sums of counts at a total of 1e4, each (q, g)."""
    rows, n = minibatch.counts, minibatch.n_cells
    shape = (n, minibatch.n_genes)
    counts = sparse.csr_array((rows.counts_e.astype(np.float64), rows.genes_e.astype(np.int64), rows.indptr), shape)
    detected = sparse.csr_array(((rows.counts_e > 0).astype(np.float64), counts.indices, counts.indptr), shape)
    found: list[sparse.coo_array] = []
    for table, weight_n in (
        (counts, np.ones(n)),
        (detected, np.ones(n)),
        (counts, 1e4 / np.maximum(minibatch.library_n, 1)),
    ):
        of_group = sparse.csr_array((weight_n, (group_n, np.arange(n))), (n_groups, n))
        found.append(sparse.coo_array(of_group @ table))
    return found
