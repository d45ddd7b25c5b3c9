"""Likelihoods: those of scipy, and the fast form equal to the plain one in value and gradient."""

import numpy as np
import pytest
import torch
from scipy import stats

from dist_scvi.network.likelihood import (
    GeneLikelihood,
    dense_log_likelihood,
    log_nb,
    log_normal,
    log_poisson,
    log_zinb,
    sparse_log_likelihood,
)

N, G = 6, 30
LIKELIHOODS: list[GeneLikelihood] = ["zinb", "nb", "poisson", "normal"]


@pytest.fixture
def counts() -> np.ndarray:
    """Mostly zeros; cell 0 has no counts, cell 1 a large one."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (N, G)) * (rng.random((N, G)) < 0.3)
    counts[0] = 0
    counts[1, 4] = 70_000
    return counts.astype(np.float64)


def parameters(counts: np.ndarray, *, theta_by_cell: bool) -> list[torch.Tensor]:
    """Mean (0 in the cell without counts), inverse dispersion and logits of zero inflation, as leaves."""
    rng = np.random.default_rng(1)
    share = rng.dirichlet(np.ones(G), N)
    mean = share * counts.sum(1, keepdims=True)
    theta = rng.lognormal(0, 2, (N, G) if theta_by_cell else G)
    return [torch.tensor(array, requires_grad=True) for array in (mean, theta, rng.normal(0, 3, (N, G)))]


def stored(counts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The counts as a store holds them, every seventh zero among them."""
    place = np.flatnonzero((counts.ravel() > 0) | (np.arange(counts.size) % 7 == 0))
    return torch.from_numpy(place), torch.from_numpy(counts.ravel()[place])


def gradients(log_p: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    weight = torch.arange(1.0, N + 1, dtype=torch.float64)
    found = torch.autograd.grad((log_p * weight).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if value is None else value for value, leaf in zip(found, leaves, strict=True)]


def test_nb_is_that_of_scipy(counts: np.ndarray) -> None:
    mean, theta, _ = (leaf.detach().numpy() for leaf in parameters(counts, theta_by_cell=False))
    found = log_nb(*(torch.from_numpy(array[1:] if array.ndim == 2 else array) for array in (counts, mean, theta)))
    expected = stats.nbinom.logpmf(counts[1:], theta, theta / (theta + mean[1:]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_normal_is_that_of_scipy(counts: np.ndarray) -> None:
    mean, sigma, _ = (leaf.detach().numpy() for leaf in parameters(counts, theta_by_cell=False))
    found = log_normal(*(torch.from_numpy(array) for array in (counts, mean, sigma)))
    np.testing.assert_allclose(found, stats.norm.logpdf(counts, mean, sigma), rtol=1e-9)


def test_zinb_is_an_nb_that_is_zero_more_often(counts: np.ndarray) -> None:
    mean, theta, logits = (leaf.detach().numpy() for leaf in parameters(counts, theta_by_cell=False))
    arrays = (counts[1:], mean[1:], theta, logits[1:])
    nb = stats.nbinom.logpmf(counts[1:], theta, theta / (theta + mean[1:]))
    log_pi, log_rest = -np.logaddexp(0, -logits[1:]), -np.logaddexp(0, logits[1:])
    expected = np.where(counts[1:] == 0, np.logaddexp(log_pi, log_rest + nb), log_rest + nb)
    np.testing.assert_allclose(log_zinb(*map(torch.from_numpy, arrays)), expected, rtol=1e-5, atol=1e-6)


def test_poisson_is_that_of_scipy_also_at_rate_zero(counts: np.ndarray) -> None:
    mean = parameters(counts, theta_by_cell=False)[0].detach()
    np.testing.assert_allclose(
        log_poisson(torch.from_numpy(counts), mean), stats.poisson.logpmf(counts, mean), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("theta_by_cell", [False, True])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_fast_form_is_the_plain_one_in_value_and_gradient(
    counts: np.ndarray, likelihood: GeneLikelihood, theta_by_cell: bool
) -> None:
    leaves = parameters(counts, theta_by_cell=theta_by_cell)
    fast = sparse_log_likelihood(likelihood, *stored(counts), *leaves)
    plain = dense_log_likelihood(likelihood, torch.from_numpy(counts), *leaves)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
    for found, expected in zip(gradients(fast, leaves), gradients(plain, leaves), strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_stored_zeros_change_nothing(counts: np.ndarray, likelihood: GeneLikelihood) -> None:
    leaves = parameters(counts, theta_by_cell=False)
    place = torch.from_numpy(np.flatnonzero(counts))
    without = sparse_log_likelihood(likelihood, place, torch.from_numpy(counts.ravel())[place], *leaves)
    with_zeros = sparse_log_likelihood(likelihood, *stored(counts), *leaves)
    torch.testing.assert_close(with_zeros, without, rtol=1e-12, atol=1e-12)
    for found, expected in zip(gradients(with_zeros, leaves), gradients(without, leaves), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_cells_without_counts_have_finite_values_and_gradients(likelihood: GeneLikelihood) -> None:
    leaves = parameters(np.zeros((N, G)), theta_by_cell=False)
    nothing = torch.zeros(0)
    log_p = sparse_log_likelihood(likelihood, nothing.long(), nothing.double(), *leaves)
    assert torch.isfinite(log_p).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(log_p, leaves))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_single_precision_is_close_to_double(counts: np.ndarray, likelihood: GeneLikelihood) -> None:
    leaves = parameters(counts, theta_by_cell=False)
    place, count = stored(counts)
    single = sparse_log_likelihood(likelihood, place, count.float(), *(leaf.float() for leaf in leaves))
    double = sparse_log_likelihood(likelihood, place, count, *leaves)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0.1)
