"""Batch normalisation by micro-minibatch: torch's own for one, and for several the same whoever holds them."""

import pytest
import torch
from torch import nn

from dist_scvi.nn import Classifier, FCLayers, MicroBatchNorm

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
        norm.update(norm.sums.pop(), 17)
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
    torch.testing.assert_close(first.sums[0] + second.sums[0], alone.sums[0], rtol=1e-6, atol=1e-6)


def test_running_statistics_are_the_mean_weighted_by_cells(hidden: torch.Tensor) -> None:
    norm = norm_of()
    norm.normalise(hidden, SIZES)
    assert torch.equal(norm.running_mean, torch.zeros(4))  # until update
    norm.update(norm.sums[0], 17)
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
    assert norm.sums == []


def test_each_pass_of_a_step_keeps_sums_of_its_own(hidden: torch.Tensor) -> None:
    norm = norm_of()
    norm.normalise(hidden, (17,))
    norm.normalise(hidden[:4], (4,))
    assert len(norm.sums) == 2
    torch.testing.assert_close(norm.sums[1][0], 4 * hidden[:4].mean(0))


def test_rows_before_the_cells_belong_to_the_same_micro_minibatch(hidden: torch.Tensor) -> None:
    norm, stacked = norm_of(), torch.stack([hidden, 2 * hidden, hidden - 1])
    output = norm.normalise(stacked, SIZES)
    parts = [reference_of(norm)(part.reshape(-1, 4)).view_as(part) for part in stacked.split(SIZES, dim=1)]
    assert torch.equal(output, torch.cat(parts, dim=1))


def test_a_worker_without_cells_adds_nothing_and_passes_nothing_on() -> None:
    norm = norm_of()
    assert norm.normalise(torch.zeros(0, 4), ()).shape == (0, 4)
    assert torch.equal(norm.sums[0], torch.zeros(2, 4))


def test_a_covariate_with_one_category_takes_no_weights() -> None:
    layers = FCLayers(4, 6, n_cat_list=[1, 3], n_layers=2, n_hidden=5)
    assert [layer[0].in_features for layer in layers.fc_layers] == [4 + 3, 5 + 3]


@pytest.mark.parametrize("inject", [True, False])
def test_covariates_enter_every_layer_one_hot_or_the_first(hidden: torch.Tensor, inject: bool) -> None:
    layers = FCLayers(4, 6, n_cat_list=[1, 3, 2], n_layers=2, n_hidden=5, dropout_rate=0.0, inject_covariates=inject)
    layers.eval()
    three, two = torch.arange(17) % 3, torch.arange(17) % 2
    x = hidden
    for i, (linear, norm) in enumerate(layers.fc_layers):
        joined = torch.cat([x, torch.eye(3)[three], torch.eye(2)[two]], dim=1) if inject or i == 0 else x
        x = torch.relu(norm.normalise(linear(joined), ()))
    torch.testing.assert_close(layers(hidden, [torch.zeros_like(three), three, two], (), None), x)


def test_codes_of_labels_spread_cells_over_all_of_them(hidden: torch.Tensor) -> None:
    layers = FCLayers(4, 6, n_cat_list=[3], dropout_rate=0.0).eval()
    spread = layers(hidden, [torch.arange(3)[:, None]], (), None)
    for label in range(3):
        one = layers(hidden, [torch.full((17,), label)], (), None)
        torch.testing.assert_close(spread[label], one)


def test_layer_normalisation_and_bare_layers_are_those_of_torch(hidden: torch.Tensor) -> None:
    plain = FCLayers(4, 6, use_batch_norm=False, use_activation=False, bias=False, dropout_rate=0.0)
    linear = plain.fc_layers[0][0]
    assert linear.bias is None
    torch.testing.assert_close(plain(hidden, [], (), None), hidden @ linear.weight.t())
    normed = FCLayers(4, 6, use_batch_norm=False, use_layer_norm=True, dropout_rate=0.0)
    expected = torch.relu(nn.LayerNorm(6, elementwise_affine=False)(normed.fc_layers[0][0](hidden)))
    torch.testing.assert_close(normed(hidden, [], (), None), expected)


def test_a_classifier_without_layers_is_linear(hidden: torch.Tensor) -> None:
    options = {"dropout_rate": 0.1, "use_batch_norm": True, "use_layer_norm": False}
    linear = Classifier(4, 3, n_layers=0, n_hidden=0, **options)
    assert [name for name, _ in linear.named_parameters()] == ["classifier.0.weight", "classifier.0.bias"]
    deep = Classifier(4, 3, n_layers=2, n_hidden=5, **options).eval()
    assert deep(hidden).shape == (17, 3)


def test_a_norm_that_is_held_normalises_by_what_it_knows_and_learns_nothing(hidden: torch.Tensor) -> None:
    norm = norm_of()
    norm.running_mean.normal_()
    norm.momentum = 0.0
    torch.testing.assert_close(norm.normalise(hidden, (17,)), reference_of(norm).eval()(hidden), rtol=0, atol=0)
    assert norm.sums == []
