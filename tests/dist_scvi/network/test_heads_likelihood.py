"""The compiled likelihood of the decoder's heads is the plain formula, in value and gradient."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from dist_scvi.loaders.minibatch import Covariates, Tensors
from dist_scvi.network import heads_likelihood
from dist_scvi.network.heads_likelihood import heads_log_likelihood
from dist_scvi.network.kernels.thread_parts import own_threads
from dist_scvi.network.likelihood import GeneLikelihood, dense_log_likelihood
from dist_scvi.network.linear import Linear

N, G, H = 40, 700, 8
THETA = ["by gene", "by cell", "head"]
KINDS: list[GeneLikelihood] = ["zinb", "nb", "poisson"]
Case = dict[str, Any]


@pytest.fixture(autouse=True)
def two_tiles_and_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_CELLS", 24), ("_ROWS", 9), ("_COLUMNS", 256)):
        monkeypatch.setattr(heads_likelihood, name, value)


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """Mostly zeros and small counts; cell 0 has none, and some are large."""
    rng = np.random.default_rng(0)
    counts = (1 + rng.poisson(0.5, (N, G))) * (rng.random((N, G)) < 0.2)
    counts[0], counts[1, 4], counts[2, 5], counts[3, :20] = 0, 5_000, 300, np.arange(20)
    return counts.astype(np.float64)


def tensors(counts: np.ndarray, *, stored_zeros: bool = False) -> Tensors:
    stored = counts + (np.arange(counts.size).reshape(counts.shape) % 7 == 0) * 1e9 if stored_zeros else counts
    rows = sparse.csr_matrix(stored)
    count_e = np.where(rows.data >= 1e9, rows.data - 1e9, rows.data).astype(np.float32)
    code = torch.zeros(len(counts), dtype=torch.int64)
    return Tensors(
        counts.shape[1],
        torch.from_numpy(rows.indptr.astype(np.int64)),
        torch.from_numpy(rows.indices.astype(np.int32)),
        torch.from_numpy(count_e),
        torch.from_numpy(counts.sum(1)).float(),
        Covariates(code, code, code[:, None], code[:, None].float()),
    )


def case(counts: np.ndarray, theta: str, dtype: torch.dtype) -> Case:
    """The same numbers in either precision."""
    torch.manual_seed(0)
    hidden = torch.randn(len(counts), H, dtype=torch.float64).relu()
    heads = [Linear(H, G, dtype=torch.float64) for _ in range(3)]
    log_theta = 2 * torch.randn(*((G,) if theta == "by gene" else (len(counts), G)), dtype=torch.float64)
    leaves = [hidden, torch.from_numpy(1.1 * counts.sum(1)), log_theta]
    hidden, library, log_theta = (leaf.float().to(dtype).requires_grad_() for leaf in leaves)
    heads = [head.float().to(dtype) for head in heads]
    leaves = [hidden, library, log_theta, *(value for head in heads for value in head.parameters())]
    return {"hidden": hidden, "library": library, "log_theta": log_theta, "heads": heads, "leaves": leaves}


def compiled(kind: GeneLikelihood, theta: str, given: Case, cells: Tensors) -> Tensor:
    heads = given["heads"][: 2 if kind == "zinb" else 1]
    if theta == "head" and kind != "poisson":
        heads = [*heads, given["heads"][2]]
    by_gene = None if theta == "head" or kind == "poisson" else given["log_theta"].exp()
    return heads_log_likelihood(kind, given["hidden"], heads, by_gene, given["library"], cells)


def plain(kind: GeneLikelihood, theta: str, given: Case, counts: np.ndarray) -> Tensor:
    scale, zero, dispersion = given["heads"]
    log_theta = dispersion(given["hidden"]) if theta == "head" else given["log_theta"]
    rate = torch.softmax(scale(given["hidden"]), -1) * given["library"][:, None]
    counts_ng = torch.from_numpy(counts).to(rate.dtype)
    return dense_log_likelihood(kind, counts_ng, rate, log_theta.exp(), zero(given["hidden"]))


def with_gradients(value: Tensor, given: Case, weight: Tensor) -> Iterator[Tensor]:
    yield value.detach().double()
    found = torch.autograd.grad((value * weight.to(value.dtype)).sum(), given["leaves"], allow_unused=True)
    for gradient in found:
        yield torch.zeros(()) if gradient is None else gradient.double()


@pytest.mark.parametrize("weight", [torch.full((N,), 0.3), torch.arange(1.0, N + 1)], ids=["alike", "unlike"])
@pytest.mark.parametrize("theta", THETA)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_the_plain_formula(
    counts: np.ndarray, kind: GeneLikelihood, theta: str, weight: Tensor
) -> None:
    exact = case(counts, theta, torch.float64)
    expected = list(with_gradients(plain(kind, theta, exact, counts), exact, weight))
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        given = case(counts, theta, dtype)
        found = with_gradients(compiled(kind, theta, given, tensors(counts, stored_zeros=True)), given, weight)
        for at, (value, wanted) in enumerate(zip(found, expected, strict=True)):
            known = slice(1, None) if at == 2 else ...  # a cell without counts has no slope in its library size
            distance = (value[known] - wanted[known]).norm() / wanted[known].norm().clamp(min=1e-30)
            assert distance < tolerance, (dtype, at, distance)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_the_number_of_threads(counts: np.ndarray, kind: GeneLikelihood) -> None:
    found, before = [], torch.get_num_threads()
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            given = case(counts, "by gene", torch.float32)
            with own_threads():
                value = compiled(kind, "by gene", given, tensors(counts))
                found.append(list(with_gradients(value, given, torch.ones(N))))
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_shows_in_the_value(counts: np.ndarray, head: int, bad: float) -> None:
    given = case(counts, "by gene", torch.float32)
    with torch.no_grad():
        given["heads"][head].bias[600] = bad
        assert torch.isnan(compiled("zinb", "by gene", given, tensors(counts))).all()


def test_extreme_parameters_stay_exact(counts: np.ndarray) -> None:
    """Dispersions near a Poisson and near nothing, zero inflation certain and impossible."""
    exact, given = (case(counts, "by gene", dtype) for dtype in (torch.float64, torch.float32))
    for one in (exact, given):
        with torch.no_grad():
            one["log_theta"][::3], one["log_theta"][1::3] = 16.0, -16.0
            one["heads"][1].bias[::2], one["heads"][1].bias[1::2] = 60.0, -60.0
    wanted = plain("zinb", "by gene", exact, counts)
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(compiled("zinb", "by gene", exact, tensors(counts)), wanted, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(
        compiled("zinb", "by gene", given, tensors(counts)).double(), wanted, rtol=1e-4, atol=1.0
    )


def test_counts_that_are_not_whole_are_taken_as_they_are(counts: np.ndarray) -> None:
    given, fractional = case(counts, "by gene", torch.float64), np.float32(counts * 0.37).astype(np.float64)
    wanted = plain("nb", "by gene", given, fractional)
    torch.testing.assert_close(compiled("nb", "by gene", given, tensors(fractional)), wanted, rtol=1e-8, atol=1e-8)


def test_products_are_rounded_where_the_layers_say_so(counts: np.ndarray) -> None:
    values, gradients = [], []
    for operands in (None, torch.bfloat16):
        given = case(counts, "by gene", torch.float32)
        for head in given["heads"]:
            head.operands = operands
        value, *slopes = with_gradients(compiled("zinb", "by gene", given, tensors(counts)), given, torch.ones(N))
        values.append(value)
        gradients.append(slopes[0])
    assert not torch.equal(*values)
    torch.testing.assert_close(*values, rtol=1e-2, atol=1.0)
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()


def test_no_cells_have_no_gradient_but_zero() -> None:
    given = case(np.zeros((0, G)), "by gene", torch.float32)
    value, *gradients = with_gradients(
        compiled("zinb", "by gene", given, tensors(np.zeros((0, G)))), given, torch.ones(0)
    )
    assert value.shape == (0,)
    assert not any(gradient.any() for gradient in gradients)
