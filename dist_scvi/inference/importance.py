"""Importance weights of draws of z, by how well they explain a whole group of cells.

Boyeau et al. 2023, doi:10.1073/pnas.2209124120; scvi-tools 1.4.2, model/base/_rnamixin.py: get_importance_weights.

Shape letters in this file
    s   candidates: draws of z
    a   anchors: cells of the group from which the weights are estimated
    g   genes
    k   latent dimensions
    e   stored entries of the anchors
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_scvi.network.likelihood import GeneLikelihood, sparse_log_likelihood

_CANDIDATES_PER_PASS = 256
"""Candidates decoded at a time: all of them would need an array of candidates times genes for each parameter."""
_BLOCK_VALUES = 1 << 22
"""Values of a block of pairs times genes, which bounds the memory of the likelihood."""


@dataclass(frozen=True, slots=True)
class ImportanceSampling:
    """Options of the estimate of weights; names and defaults of scvi-tools."""

    max_cells: int = 1024
    """Largest number of anchors."""
    truncation: bool = False
    """Whether to limit the largest weights."""
    n_mc_samples: int = 500
    """Draws for the marginal likelihood of an anchor."""
    n_mc_samples_per_pass: int = 250
    """Draws in memory at a time."""

    def __post_init__(self) -> None:
        for name in ("max_cells", "n_mc_samples", "n_mc_samples_per_pass"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"importance_weighting_kwargs: {name}={value!r}: a whole number from 1 is needed")
        if self.truncation not in (True, False):
            raise ValueError(f"importance_weighting_kwargs: truncation={self.truncation!r}: True or False is needed")

    @classmethod
    def of(cls, options: dict[str, Any] | None) -> "ImportanceSampling":
        """Build it from the options of a user.

        Raises
        ------
        ValueError
            If an option is unknown or out of range.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in options or {} if name not in known]
        if unknown:
            raise ValueError(f"importance_weighting_kwargs has no {unknown[0]!r}: it has {', '.join(known)}")
        return cls(**(options or {}))


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Draws of z and their decoded parameters."""

    z_sk: Tensor
    """Before the softmax of a logistic-normal latent distribution."""
    scale_sg: Tensor
    theta_sg: Tensor
    """Inverse dispersion, or standard deviation, also of shape (g,)."""
    zi_logits_sg: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Anchors:
    """Some cells of the group."""

    indptr: Tensor
    """Offset of the first entry of each cell, shape (a + 1,)."""
    gene_e: Tensor
    count_e: Tensor
    library_a: Tensor
    """Factor of the scale: total count or size factor."""
    qzm_ak: Tensor
    qzv_ak: Tensor
    log_marginal_a: Tensor
    """Logarithm of the marginal likelihood p(x)."""


@runtime_checkable
class ImportanceSource(Protocol):
    """What a source of expression additionally provides for weights; draws are those of its `scale`."""

    @property
    def gene_likelihood(self) -> GeneLikelihood:
        """Distribution of the counts."""

    def candidates(self, row_s: NDArray[np.int64], draw_s: NDArray[np.int64], batch: int | None) -> Candidates:
        """Draw z for each row and decode it with `batch`; None is the cell's own batch."""

    def anchors(self, row_a: NDArray[np.int64], n_mc_samples: int, n_mc_samples_per_pass: int) -> Anchors:
        """Read and encode the cells `row_a` and estimate their marginal likelihood, on the device of the model."""


@dataclass(frozen=True, slots=True)
class Importance:
    """A choice among candidates by weight."""

    source: ImportanceSource
    sampling: ImportanceSampling

    def anchors(self, row_a: NDArray[np.int64]) -> Anchors:
        """Prepare the cells from which weights are estimated."""
        return self.source.anchors(row_a, self.sampling.n_mc_samples, self.sampling.n_mc_samples_per_pass)

    def choose(
        self,
        row_s: NDArray[np.int64],
        draw_s: NDArray[np.int64],
        batches: Sequence[int | None],
        anchors: Anchors,
        n_chosen: int,
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Choose candidates with replacement: `n_chosen` for each batch, from the equal part that it decodes.

        Raises
        ------
        ValueError
            If no candidate of a batch has a finite weight.
        """
        chosen = []
        for batch, part_s in zip(batches, np.split(np.arange(len(row_s)), len(batches)), strict=True):
            passes = np.split(part_s, range(_CANDIDATES_PER_PASS, len(part_s), _CANDIDATES_PER_PASS))
            decoded = (self.source.candidates(row_s[part], draw_s[part], batch) for part in passes)
            log_weight_s = [log_weights(candidates, anchors, self.source.gene_likelihood) for candidates in decoded]
            weight_s = normalized_weights(np.concatenate(log_weight_s), truncation=self.sampling.truncation)
            chosen.append(rng.choice(part_s, n_chosen, p=weight_s))
        return np.concatenate(chosen)


def importance_of(source: object, weights: str | None, options: dict[str, Any] | None) -> Importance | None:
    """Check the arguments `weights` and `importance_weighting_kwargs`; return None for uniform weights.

    Raises
    ------
    ValueError
        If an argument is invalid, or the source has no counts to compute weights from.
    """
    if weights not in (None, "uniform", "importance"):
        raise ValueError(f"weights={weights!r}: 'uniform' or 'importance' is needed")
    if weights == "importance" and isinstance(source, ImportanceSource):
        return Importance(source, ImportanceSampling.of(options))
    if weights == "importance":
        raise ValueError("weights='importance': the counts are needed, which are not kept here; use 'uniform'")
    if options:
        raise ValueError(f"importance_weighting_kwargs is given with weights={weights!r}: 'importance' is needed")
    return None


def normalized_weights(log_weight_s: NDArray[np.float64], *, truncation: bool) -> NDArray[np.float64]:
    """Return probabilities proportional to the weights.

    Parameters
    ----------
    truncation
        Limit each weight to the mean weight times the square root of their number (Ionides 2008,
        doi:10.1198/106186008X320456). scvi-tools 1.4.2 instead raises small weights to the mean.

    Raises
    ------
    ValueError
        If no weight is finite.
    """
    # Subtracted before exp, which sums of log-likelihoods over thousands of genes could otherwise under- or overflow.
    top = log_weight_s.max(initial=-np.inf)
    if not np.isfinite(top):
        raise ValueError(f"none of {len(log_weight_s)} importance weights is finite ({top}): use weights='uniform'")
    weight_s = np.exp(log_weight_s - top)
    if truncation:
        weight_s = np.minimum(weight_s, weight_s.mean() * math.sqrt(len(weight_s)))
    return np.asarray(weight_s / weight_s.sum())


@torch.no_grad()
def log_weights(candidates: Candidates, anchors: Anchors, likelihood: GeneLikelihood) -> NDArray[np.float64]:
    """Return the logarithm of the unnormalized weight of each candidate, shape (s,).

    Notes
    -----
    ``sum_a p(z) p(x_a | z) / p(x_a)`` over ``sum_a q(z | x_a)``.
    """
    z_sk = candidates.z_sk.double()
    log_prior_s = -0.5 * (z_sk.square() + math.log(2 * math.pi)).sum(dim=1)
    log_posterior_s = torch.logsumexp(_log_posterior(z_sk, anchors), dim=1)
    log_joint_sa = _log_likelihood(candidates, anchors, likelihood) - anchors.log_marginal_a.double()
    log_weight_s: NDArray[np.float64] = (
        (log_prior_s + torch.logsumexp(log_joint_sa, dim=1) - log_posterior_s).cpu().numpy()
    )
    return log_weight_s


def _log_posterior(z_sk: Tensor, anchors: Anchors) -> Tensor:
    """Return log q(z | x), shape (s, a).

    The square is expanded into matrix products, so that no array of shape (s, a, k) is allocated. The terms cancel,
    hence double precision.
    """
    mean_ak, variance_ak = anchors.qzm_ak.double(), anchors.qzv_ak.double()
    log_sa = z_sk.square() @ variance_ak.reciprocal().t() - 2 * z_sk @ (mean_ak / variance_ak).t()
    log_sa += (mean_ak.square() / variance_ak + variance_ak.log() + math.log(2 * math.pi)).sum(dim=1)
    return -0.5 * log_sa


def _log_likelihood(candidates: Candidates, anchors: Anchors, likelihood: GeneLikelihood) -> Tensor:
    """Return log p(x | z), shape (s, a): each anchor at its own library size, under each candidate.

    Blocks of candidates and anchors are computed together, because the overhead of a call for each candidate would
    exceed its arithmetic.
    """
    n_candidates, n_genes = candidates.scale_sg.shape
    n_anchors, width = len(anchors.library_a), max(1, _BLOCK_VALUES // n_genes)
    log_sa = torch.empty(n_candidates, n_anchors, dtype=torch.float64, device=anchors.library_a.device)
    for start in range(0, n_anchors, width):
        stop = min(start + width, n_anchors)
        height = max(1, _BLOCK_VALUES // (n_genes * (stop - start)))
        for first in range(0, n_candidates, height):
            block = slice(first, min(first + height, n_candidates))
            log_sa[block, start:stop] = _log_likelihood_block(candidates, anchors, likelihood, block, start, stop)
    return log_sa


def _log_likelihood_block(
    candidates: Candidates, anchors: Anchors, likelihood: GeneLikelihood, block: slice, start: int, stop: int
) -> Tensor:
    """Return log p(x | z) of some candidates and the anchors from `start` to `stop`, as one minibatch of pairs."""
    scale_sg, n = candidates.scale_sg[block], stop - start
    n_block, n_genes = scale_sg.shape
    indptr = anchors.indptr[start : stop + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    anchor_e = torch.repeat_interleave(torch.arange(n, device=indptr.device), indptr.diff())
    first_s1 = torch.arange(n_block, device=indptr.device)[:, None] * (n * n_genes)

    def of_pairs(value_sg: Tensor) -> Tensor:
        return value_sg[block, None].expand(n_block, n, n_genes).reshape(-1, n_genes)

    theta, zi_logits_sg = candidates.theta_sg, candidates.zi_logits_sg
    log_p = sparse_log_likelihood(
        likelihood,
        (first_s1 + anchor_e * n_genes + anchors.gene_e[entries]).flatten(),
        anchors.count_e[entries].repeat(n_block),
        (anchors.library_a[start:stop, None] * scale_sg[:, None]).reshape(-1, n_genes),
        theta if theta.dim() == 1 else of_pairs(theta),
        None if zi_logits_sg is None else of_pairs(zi_logits_sg),
    )
    return log_p.view(n_block, n).double()
