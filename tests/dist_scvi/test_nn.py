"""Batch normalisation by micro-minibatch: torch's own for one, and for several the same whoever holds them."""

import pytest
import torch
from torch import nn

from dist_scvi.nn import FCLayers, MicroBatchNorm

SIZES = (5, 9, 3)


@pytest.fixture
def hidden() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(17, 4) * 3 + torch.arange(4)


def norm_of(seed: int = 1) -> MicroBatchNorm:
    torch.manual_seed(seed)
    norm = MicroBatchNorm(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def reference_of(norm: MicroBatchNorm) -> nn.BatchNorm1d:
    reference = nn.BatchNorm1d(4, momentum=0.01, eps=0.001)
    reference.load_state_dict(norm.state_dict())
    return reference


def backward(output: torch.Tensor) -> None:
    (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()


def test_one_micro_minibatch_is_torchs_batch_norm_in_value_and_gradient(hidden: torch.Tensor) -> None:
    norm = norm_of()
    reference = reference_of(norm)
    mine, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    output, expected = norm.normalise(mine, (17,)), reference(other)
    assert torch.equal(output, expected)
    backward(output)
    backward(expected)
    for found, needed in ((mine, other), (norm.weight, reference.weight), (norm.bias, reference.bias)):
        assert torch.equal(found.grad, needed.grad)


def test_running_statistics_of_one_micro_minibatch_are_torchs(hidden: torch.Tensor) -> None:
    norm = norm_of()
    reference = reference_of(norm)
    for step in range(3):
        norm.normalise(hidden + step, (17,))
        norm.update(norm.sums, 17)
        reference(hidden + step)
    torch.testing.assert_close(norm.running_mean, reference.running_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(norm.running_var, reference.running_var, rtol=1e-6, atol=1e-7)
    assert norm.num_batches_tracked == reference.num_batches_tracked == 3


def test_each_micro_minibatch_is_normalised_alone(hidden: torch.Tensor) -> None:
    norm = norm_of()
    output = norm.normalise(hidden, SIZES)
    parts = [reference_of(norm)(part) for part in hidden.split(SIZES)]
    assert torch.equal(output, torch.cat(parts))


def test_the_sums_over_processes_give_the_statistics_of_one(hidden: torch.Tensor) -> None:
    alone, first, second = norm_of(), norm_of(), norm_of()
    alone.normalise(hidden, SIZES)
    first.normalise(hidden[:14], SIZES[:2])
    second.normalise(hidden[14:], SIZES[2:])
    torch.testing.assert_close(first.sums + second.sums, alone.sums, rtol=1e-6, atol=1e-6)


def test_running_statistics_are_the_mean_weighted_by_cells(hidden: torch.Tensor) -> None:
    norm = norm_of()
    norm.normalise(hidden, SIZES)
    assert torch.equal(norm.running_mean, torch.zeros(4))  # until update
    norm.update(norm.sums, 17)
    parts = list(zip(SIZES, hidden.split(SIZES), strict=True))
    mean = sum(n * part.mean(0) for n, part in parts) / 17
    var = sum(n * part.var(0) for n, part in parts) / 17
    torch.testing.assert_close(norm.running_mean, 0.01 * mean)
    torch.testing.assert_close(norm.running_var, 0.99 + 0.01 * var)


def test_outside_training_the_running_statistics_are_used_and_kept(hidden: torch.Tensor) -> None:
    norm = norm_of()
    norm.running_mean.normal_()
    norm.eval()
    reference = reference_of(norm).eval()
    torch.testing.assert_close(norm.normalise(hidden, ()), reference(hidden), rtol=0, atol=0)
    torch.testing.assert_close(norm.normalise(hidden[:1], ()), reference(hidden[:1]), rtol=0, atol=0)
    assert norm.sums is None


def test_a_covariate_with_one_category_takes_no_weights() -> None:
    layers = FCLayers(4, 6, n_cat_list=[1, 3], n_layers=2, n_hidden=5)
    assert [layer[0].in_features for layer in layers.fc_layers] == [4 + 3, 5 + 3]


def test_covariates_enter_every_layer_one_hot(hidden: torch.Tensor) -> None:
    layers = FCLayers(4, 6, n_cat_list=[1, 3], n_layers=2, n_hidden=5, dropout_rate=0.0).eval()
    code = torch.arange(17) % 3
    x = hidden
    for linear, norm in layers.fc_layers:
        x = torch.relu(norm.normalise(linear(torch.cat([x, torch.eye(3)[code]], dim=1)), ()))
    torch.testing.assert_close(layers(hidden, [torch.zeros_like(code), code], (), None), x)
