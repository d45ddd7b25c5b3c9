"""Random values of a cell and gene: distributed as they should be, and the same in any company."""

import numpy as np
import pytest
from scipy import stats

from dist_scvi.expression.keyed_counts import EntryNoise, gamma, negative_binomial, poisson

ROWS, GENES = np.arange(200), np.arange(300)
NOISE = EntryNoise(1, ROWS, GENES)
UNIFORM = np.array([1e-12, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 1e-9])


def uncorrelated(values: np.ndarray) -> bool:
    between_cells, between_genes = np.corrcoef(values), np.corrcoef(values.T)
    return max(np.abs(np.triu(table, 1)).max() for table in (between_cells, between_genes)) < 0.4


def test_uniform_values_are_uniform_and_neither_cells_nor_genes_resemble_each_other() -> None:
    values = NOISE.uniform(3)
    assert stats.kstest(values.ravel(), "uniform").pvalue > 1e-3
    assert 0 < values.min() < values.max() < 1
    assert uncorrelated(values)
    assert np.linalg.matrix_rank(values) == len(ROWS)
    assert stats.kstest(NOISE.normal(3).ravel(), "norm").pvalue > 1e-3


def test_every_key_and_seed_draws_anew() -> None:
    drawn = [NOISE.uniform(3), NOISE.uniform(4), NOISE.uniform(3, 0), EntryNoise(2, ROWS, GENES).uniform(3)]
    for at, first in enumerate(drawn):
        for second in drawn[:at]:
            assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_the_value_of_a_cell_and_gene_is_the_same_in_any_company() -> None:
    rows, genes = np.array([7, 3, 199]), np.array([250, 0])
    few = EntryNoise(1, rows, genes)
    np.testing.assert_array_equal(few.uniform(5), NOISE.uniform(5)[np.ix_(rows, genes)])
    shape = np.linspace(0.01, 3, len(GENES))
    np.testing.assert_array_equal(gamma(few, shape[genes], 5), gamma(NOISE, shape, 5)[np.ix_(rows, genes)])


@pytest.mark.parametrize("theta", [1e-3, 0.2, 1.0, 40.0, 1e5])
@pytest.mark.parametrize("mean", [1e-6, 0.3, 5.0, 700.0])
def test_quantiles_of_a_negative_binomial_are_the_least_counts_that_reach_them(mean: float, theta: float) -> None:
    expected = stats.nbinom.ppf(UNIFORM, theta, theta / (theta + mean))
    found = negative_binomial(UNIFORM, np.full(7, mean), np.full(7, theta))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mean", [0.0, 1e-6, 0.3, 5.0, 700.0])
def test_quantiles_of_a_poisson_are_the_least_counts_that_reach_them(mean: float) -> None:
    np.testing.assert_array_equal(poisson(UNIFORM, np.full(7, mean)), stats.poisson.ppf(UNIFORM, mean))


def test_counts_have_a_bound_and_extreme_parameters_end() -> None:
    uniform = np.full(4, 1 - 1e-15)
    found = negative_binomial(uniform, np.array([1e12, 1e8, 0.0, 1e-30]), np.array([1e-7, 1e-4, 1.0, 1e-30]))
    assert 0 <= found.min() <= found.max() <= 1 << 27
    assert found[2] == 0


@pytest.mark.parametrize("shape", [0.03, 0.7, 1.0, 2.5, 80.0])
def test_gamma_values_follow_the_gamma_distribution(shape: float) -> None:
    drawn = gamma(NOISE, np.full((len(ROWS), len(GENES)), shape), 6)
    assert stats.kstest(drawn.ravel(), stats.gamma(shape).cdf).pvalue > 1e-3
    assert uncorrelated(np.log(drawn + 1e-300))
