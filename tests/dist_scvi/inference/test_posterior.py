"""The aggregated posterior is torch's own mixture in bounded memory, and a logistic normal has the mean that it has."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

from dist_scvi.inference import posterior
from dist_scvi.inference.posterior import AggregatedPosterior, logistic_normal_mean, rows_by_category
from dist_scvi.loaders import CellData


@pytest.fixture
def moments() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 3, generator=generator), torch.rand(30, 3, generator=generator) + 0.1


@pytest.mark.parametrize("block_values", [6, 50, 1 << 22])
@pytest.mark.parametrize("dof", [None, 3.0])
def test_the_density_is_that_of_the_mixture_of_torch_in_blocks_of_any_size(
    moments: Any, monkeypatch: pytest.MonkeyPatch, dof: float | None, block_values: int
) -> None:
    monkeypatch.setattr(posterior, "_BLOCK_VALUES", block_values)
    point = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1)) * 3
    for variance_as_scale in (False, True):
        scale = moments[1] if variance_as_scale else moments[1].sqrt()
        parts = Normal(moments[0], scale) if dof is None else StudentT(dof, moments[0], scale)
        plain = MixtureSameFamily(Categorical(logits=torch.zeros(30)), Independent(parts, 1))
        mixed = AggregatedPosterior(*moments, dof, variance_as_scale=variance_as_scale)
        torch.testing.assert_close(mixed.log_prob(point), plain.log_prob(point))
        torch.testing.assert_close(mixed.log_prob(point[0, 0]), plain.log_prob(point[0, 0]))


def test_draws_come_from_the_mixture(moments: Any) -> None:
    torch.manual_seed(0)
    mixed = AggregatedPosterior(*moments, None)
    drawn = mixed.sample((20_000,))
    torch.testing.assert_close(drawn.mean(0), mixed.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.var(0), mixed.variance, rtol=0.05, atol=0)
    assert mixed.sample().shape == (3,)


@pytest.mark.parametrize("dof", [0, -1.0, float("nan")])
def test_degrees_of_freedom_are_above_zero(moments: Any, dof: float) -> None:
    with pytest.raises(ValueError, match="a number above 0 is needed, or None"):
        AggregatedPosterior(*moments, dof)


def test_the_mean_of_a_logistic_normal_is_its_integral(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, var = torch.tensor([[0.5, -1.0], [3.0, 0.0]]), torch.tensor([[0.3, 0.7], [4.0, 0.5]])
    # of two, the first share is a sigmoid of the difference, which is normal
    grid, weight = np.polynomial.hermite_e.hermegauss(80)
    difference = (mean[:, 0] - mean[:, 1]).numpy()[:, None] + np.sqrt(var.sum(1).numpy())[:, None] * grid
    expected = (weight / weight.sum() / (1 + np.exp(-difference))).sum(1)
    whole = logistic_normal_mean(mean, var, 4000)
    np.testing.assert_allclose(whole[:, 0], expected, atol=3e-4)
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-6)
    monkeypatch.setattr(posterior, "_BLOCK_VALUES", 28)
    torch.testing.assert_close(logistic_normal_mean(mean, var, 4000), whole)
    assert not torch.equal(logistic_normal_mean(mean, var, 500, seed=1), logistic_normal_mean(mean, var, 500))


def test_rows_of_each_category_are_listed_or_as_many_as_allowed(
    data: CellData, adata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posterior, "PAGE_ROWS", 100)
    column = data.store.categorical("site")
    every = rows_by_category(column, 403)
    assert list(every) == ["x", "y", "z"]
    for name, row_n in every.items():
        np.testing.assert_array_equal(row_n, np.flatnonzero(adata.obs["site"] == name))
    some = rows_by_category(column, 403, most=20, seed=1)
    assert {len(row_n) for row_n in some.values()} == {20}
    assert all(len(np.unique(row_n)) == 20 and np.isin(row_n, every[name]).all() for name, row_n in some.items())
    again, other = (rows_by_category(column, 403, most=20, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(again["x"], some["x"])
    assert not np.array_equal(other["x"], some["x"])
