"""Log-likelihoods of counts: the formulas of scvi-tools, and the same sums with fewer operations for zeros.

Shape letters in this file
    n   cells
    g   genes
    e   stored (non-zero) entries

Notes
-----
scvi-tools 1.4.2, distributions/_negative_binomial.py. For x = 0 the three lgamma terms cancel exactly, so they are only
needed at the stored entries (Notes on `sparse_log_likelihood`).
"""

import math
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GeneLikelihood = Literal["zinb", "nb", "poisson", "normal"]

Path = Literal["torch", "numba", "triton"]
"""Implementation of the likelihood: torch operations, loops compiled for the CPU, or a kernel compiled for the GPU."""

_EPS = 1e-8
_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def choose_path(device: torch.device) -> Path:
    """Return the fastest implementation for `device`; ``"torch"`` where no compiler for it is installed."""
    if device.type == "cpu":
        return "numba"
    return "triton" if device.type == "cuda" and find_spec("triton") else "torch"


def log_nb(x_ng: Tensor, mu_ng: Tensor, theta_ng: Tensor) -> Tensor:
    """Log-probability of a negative binomial of mean `mu_ng` and inverse dispersion `theta_ng`."""
    log_sum = torch.log(theta_ng + mu_ng + _EPS)
    return (
        theta_ng * (torch.log(theta_ng + _EPS) - log_sum)
        + x_ng * (torch.log(mu_ng + _EPS) - log_sum)
        + torch.lgamma(x_ng + theta_ng)
        - torch.lgamma(theta_ng)
        - torch.lgamma(x_ng + 1)
    )


def log_zinb(x_ng: Tensor, mu_ng: Tensor, theta_ng: Tensor, zi_logits_ng: Tensor) -> Tensor:
    """Log-probability of a negative binomial that is replaced by 0 with probability ``sigmoid(zi_logits_ng)``."""
    softplus_pi = F.softplus(-zi_logits_ng)
    log_sum = torch.log(theta_ng + mu_ng + _EPS)
    log_zero = -zi_logits_ng + theta_ng * (torch.log(theta_ng + _EPS) - log_sum)
    at_zero = F.softplus(log_zero) - softplus_pi
    above = (
        -softplus_pi
        + log_zero
        + x_ng * (torch.log(mu_ng + _EPS) - log_sum)
        + torch.lgamma(x_ng + theta_ng)
        - torch.lgamma(theta_ng)
        - torch.lgamma(x_ng + 1)
    )
    return torch.where(x_ng < _EPS, at_zero, above)


def log_poisson(x_ng: Tensor, mu_ng: Tensor) -> Tensor:
    """Log-probability of a Poisson of mean `mu_ng`.

    Where the count is 0 the rate may be 0 too (a cell without counts). The logarithm is then of 1, so that neither
    value nor gradient is NaN; in scvi-tools the gradient is NaN.
    """
    # `where` inside of the logarithm: outside, the gradient of the masked log(0) would be 0 times infinity, a NaN.
    log_mu = torch.log(torch.where(x_ng > 0, mu_ng, 1.0))
    return x_ng * log_mu - mu_ng - torch.lgamma(x_ng + 1)


def log_normal(x_ng: Tensor, mu_ng: Tensor, sigma_ng: Tensor) -> Tensor:
    """Log-density of a normal of mean `mu_ng` and standard deviation `sigma_ng`."""
    return -0.5 * ((x_ng - mu_ng) / sigma_ng).square() - torch.log(sigma_ng) - _HALF_LOG_2_PI


def dense_log_likelihood(
    likelihood: GeneLikelihood, x_ng: Tensor, mu_ng: Tensor, theta_ng: Tensor, zi_logits_ng: Tensor | None
) -> Tensor:
    """Sum the log-probability of each cell over its genes: the plain reference, shape (n,)."""
    if likelihood == "normal":
        return log_normal(x_ng, mu_ng, theta_ng).sum(-1)
    if likelihood == "poisson":
        return log_poisson(x_ng, mu_ng).sum(-1)
    if likelihood == "nb":
        return log_nb(x_ng, mu_ng, theta_ng).sum(-1)
    assert zi_logits_ng is not None
    return log_zinb(x_ng, mu_ng, theta_ng, zi_logits_ng).sum(-1)


def sparse_log_likelihood(
    likelihood: GeneLikelihood,
    place_e: Tensor,
    count_e: Tensor,
    mu_ng: Tensor,
    theta_ng: Tensor,
    zi_logits_ng: Tensor | None,
) -> Tensor:
    """Sum the log-probability of each cell over its genes, shape (n,); same value and gradient as the dense formula.

    Parameters
    ----------
    place_e, count_e
        Positions of the stored entries in the flattened (n, g) counts, sorted by cell, and their values. Stored zeros
        are allowed.
    mu_ng
        Mean, shape (n, g).
    theta_ng
        Inverse dispersion, shape (g,), or (n, g) by cell; for ``normal`` the standard deviation.
    zi_logits_ng
        Logits of zero inflation, for ``zinb`` only.

    Notes
    -----
    All counts are treated as 0 first; the stored entries then add the difference. The three lgamma of an entry, the
    most expensive terms, are thus computed for stored entries only.
    """
    n, g = mu_ng.shape
    mu_e = mu_ng.reshape(-1)[place_e]
    if likelihood == "poisson":
        at_zero_ng = -mu_ng
        difference_e = count_e * torch.log(torch.where(count_e > 0, mu_e, 1.0)) - torch.lgamma(count_e + 1)
        return at_zero_ng.sum(-1) + _sum_by_cell(difference_e, place_e, n, g)
    theta_place_e = place_e if theta_ng.dim() == 2 else place_e % g
    theta_e = theta_ng.reshape(-1)[theta_place_e]
    if likelihood == "normal":
        at_zero_ng = log_normal(mu_ng.new_zeros(()), mu_ng, theta_ng)
        return at_zero_ng.sum(-1) + _sum_by_cell(count_e * (mu_e - count_e / 2) / theta_e.square(), place_e, n, g)

    log_theta_ng, lgamma_theta_ng = torch.log(theta_ng + _EPS), torch.lgamma(theta_ng)
    log_sum_ng = torch.log(theta_ng + mu_ng + _EPS)
    log_zero_ng = theta_ng * (log_theta_ng - log_sum_ng)
    log_sum_e = log_sum_ng.reshape(-1)[place_e]
    difference_e = (
        count_e * (torch.log(mu_e + _EPS) - log_sum_e)
        + torch.lgamma(count_e + theta_e)
        - lgamma_theta_ng.reshape(-1)[theta_place_e]
        - torch.lgamma(count_e + 1)
    )
    if likelihood == "nb":
        return log_zero_ng.sum(-1) + _sum_by_cell(difference_e, place_e, n, g)

    assert zi_logits_ng is not None
    log_zero_ng = log_zero_ng - zi_logits_ng
    at_zero_ng = F.softplus(log_zero_ng) - F.softplus(-zi_logits_ng)
    log_zero_e = log_zero_ng.reshape(-1)[place_e]
    # t - softplus(t) = -softplus(-t)
    difference_e = torch.where(count_e > 0, difference_e - F.softplus(-log_zero_e), 0.0)
    return at_zero_ng.sum(-1) + _sum_by_cell(difference_e, place_e, n, g)


def _sum_by_cell(value_e: Tensor, place_e: Tensor, n_cells: int, n_genes: int) -> Tensor:
    return torch.zeros(n_cells, dtype=value_e.dtype, device=value_e.device).index_add(0, place_e // n_genes, value_e)


def kl_normal(
    mean_nk: Tensor, var_nk: Tensor, prior_mean: Tensor | float = 0.0, prior_var: Tensor | None = None
) -> Tensor:
    """Return the KL divergence of independent normals from their priors, standard by default, over the last axis."""
    if prior_var is None:
        return 0.5 * (var_nk + mean_nk.square() - 1 - var_nk.log()).sum(-1)
    ratio_nk = var_nk / prior_var
    return 0.5 * (ratio_nk + (mean_nk - prior_mean).square() / prior_var - 1 - ratio_nk.log()).sum(-1)
