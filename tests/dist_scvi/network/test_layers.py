"""Layers: one-hot covariates without the zeros, normalisations where they are asked for."""

import pytest
import torch
from torch import nn

from dist_scvi.network.layers import Classifier, FCLayers


@pytest.fixture
def hidden() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(17, 4) * 3 + torch.arange(4)


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
