"""How well a model predicts cells that it was not trained on, against a model without a latent space.

Shape letters in this file
    n   cells
    g   genes
    b   batches
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from dist_scvi.criticism.dense_counts import dense_counts
from dist_scvi.inference.cell_selection import select
from dist_scvi.inference.likelihood_estimates import elbo
from dist_scvi.inference.posterior import posterior_of
from dist_scvi.loaders.data import CellData
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.network.vae import VAE

Array = NDArray[np.float64]
_CHUNK_CELLS = 256
_PRIOR_COUNTS = 10_000.0
"""Counts of the whole sample that are added to those of each batch, so that no gene of a batch has the share 0."""
_DISPERSION = (1e-3, 1e4)


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutCells:
    """What a model and the baseline know about some cells, in ascending order of rows."""

    row_n: NDArray[np.int64]
    elbo_n: Array
    """Negative evidence lower bound in nats, as scvi-tools logs it; lower is better."""
    baseline_n: Array
    """Negative log-likelihood under the baseline, in nats."""
    qzm_nk: NDArray[np.float32]
    batch_n: NDArray[np.int32]
    label_n: NDArray[np.int32]

    @property
    def gain(self) -> float:
        """Share of the baseline's loss that the model saves; at most 0 if it has learnt nothing."""
        return float(1 - self.elbo_n.mean() / self.baseline_n.mean())


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """Independent negative binomials: the share of a gene depends on the batch alone, the mean also on the total count.

    It is what is known of a cell from its batch and its total count. For a model with normal likelihood it is a normal.
    """

    share_bg: Array
    theta_g: Array
    normal: bool

    def loss(self, counts_ng: Array, batch_n: NDArray[np.int32]) -> Array:
        """Return the negative log-likelihood of each cell, shape (n,)."""
        mean_ng = self.share_bg[batch_n] * counts_ng.sum(axis=1, keepdims=True)
        if self.normal:
            terms_ng = 0.5 * ((counts_ng - mean_ng) ** 2 / self.theta_g + np.log(2 * np.pi * self.theta_g))
            return np.asarray(terms_ng.sum(axis=1))
        total_ng = np.log(mean_ng + self.theta_g)
        loss_ng = self.theta_g * (total_ng - np.log(self.theta_g))
        # All other terms are 0 where the count is.
        at = np.nonzero(counts_ng)
        count_e, mean_e, theta_e = counts_ng[at], mean_ng[at], self.theta_g[at[1]]
        loss_ng[at] += count_e * (total_ng[at] - np.log(mean_e))
        loss_ng[at] += gammaln(theta_e) + gammaln(count_e + 1) - gammaln(count_e + theta_e)
        return np.asarray(loss_ng.sum(axis=1))


def fit_baseline(module: VAE, data: CellData, row_n: NDArray[np.int64], n_batches: int) -> Baseline:
    """Fit the baseline to some training cells, in two passes, by moments."""
    normal = module.config.gene_likelihood == "normal"
    sum_bg = np.zeros((n_batches, data.n_genes))
    for minibatch in _chunks(data, row_n):
        np.add.at(sum_bg, minibatch.batch_n, dense_counts(minibatch))
    total_g = sum_bg.sum(axis=0) + 0.5
    share_g = total_g / total_g.sum()
    share_bg = (sum_bg + _PRIOR_COUNTS * share_g) / (sum_bg.sum(axis=1, keepdims=True) + _PRIOR_COUNTS)
    excess_g, square_g = np.zeros(data.n_genes), np.zeros(data.n_genes)
    for minibatch in _chunks(data, row_n):
        counts_ng = dense_counts(minibatch)
        mean_ng = share_bg[minibatch.batch_n] * counts_ng.sum(axis=1, keepdims=True)
        excess_g += ((counts_ng - mean_ng) ** 2 - (0 if normal else mean_ng)).sum(axis=0)
        square_g += (mean_ng**2).sum(axis=0)
    if normal:
        return Baseline(share_bg, np.maximum(excess_g / len(row_n), 1e-6), normal=True)
    theta_g = np.where(excess_g > 0, square_g / np.where(excess_g > 0, excess_g, 1), np.inf)
    return Baseline(share_bg, np.clip(theta_g, *_DISPERSION), normal=False)


def predict_held_out(
    module: VAE, data: CellData, row_n: NDArray[np.int64], baseline: Baseline, *, seed: int = 0
) -> HeldOutCells:
    """Compute the loss of each cell under the model, at one draw of its posterior, and under the baseline."""
    parts: list[tuple[NDArray[np.generic], ...]] = []
    for minibatch in _chunks(data, row_n):
        loss_n = -elbo(module, minibatch, seed=seed).astype(np.float64)
        position_nk = posterior_of(module, minibatch)[0].cpu().numpy()
        baseline_n = baseline.loss(dense_counts(minibatch), minibatch.batch_n)
        parts.append((loss_n, baseline_n, position_nk, minibatch.batch_n, minibatch.label_n))
    loss_n, baseline_n, qzm_nk, batch_n, label_n = (np.concatenate(part) for part in zip(*parts, strict=True))
    return HeldOutCells(row_n, loss_n, baseline_n, qzm_nk, batch_n, label_n)


def _chunks(data: CellData, row_n: NDArray[np.int64]) -> Iterator[MiniBatch]:
    return select(data, row_n).minibatches(chunk_cells=_CHUNK_CELLS)
