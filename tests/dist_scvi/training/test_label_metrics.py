"""Metrics of classification: the plain formulas over all cells, however the cells are parted."""

import numpy as np
import pytest
import torch

from dist_scvi.training.label_metrics import classification_metrics, classification_sums, n_classification_sums

N_CELLS, N_LABELS = 300, 5


@pytest.fixture
def cells() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels of which a third is unknown and one never occurs, nor is it predicted."""
    rng = np.random.default_rng(0)
    label = rng.integers(-1, N_LABELS - 1, N_CELLS)
    logits = rng.normal(0, 1.5, (N_CELLS, N_LABELS)) + 1.5 * np.eye(N_LABELS)[label]
    logits[:, 4] = -30
    return torch.from_numpy(logits).float(), torch.from_numpy(label)


def plain(logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """The definitions, one cell and one label after the other."""
    shifted = logits - logits.max(1, keepdims=True)
    probability = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    said, confidence = probability.argmax(1), probability.max(1)
    f1 = []
    for name in range(logits.shape[1]):
        hit, wrong = ((said == name) & (label == name)).sum(), ((said == name) ^ (label == name)).sum()
        if hit + wrong:
            f1.append(2 * hit / (2 * hit + wrong))
    calibration = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        if inside.any():
            gap = abs((said == label)[inside].mean() - confidence[inside].mean())
            calibration += inside.mean() * gap
    accuracy = (said == label).mean()
    return {
        "classification_loss": -np.log(probability[np.arange(len(label)), label]).mean(),
        "accuracy": accuracy,
        "f1_score": accuracy,
        "f1_score_macro": np.mean(f1),
        "calibration_error": calibration,
        "labelled_cells": len(label),
    }


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_metrics_are_the_plain_formulas_however_the_cells_are_parted(
    cells: tuple[torch.Tensor, torch.Tensor], parts: int
) -> None:
    pieces = zip(*(part.tensor_split(parts) for part in cells), strict=True)
    sums = sum(classification_sums(logits, label) for logits, label in pieces)
    assert sums.shape == (n_classification_sums(N_LABELS),)
    assert sums.dtype == torch.float64
    known = cells[1] >= 0
    expected = plain(cells[0][known].double().numpy(), cells[1][known].numpy())
    assert 0.3 < expected["accuracy"] < 0.95
    assert classification_metrics(sums.numpy()) == pytest.approx(expected, rel=1e-5)


def test_no_cells_and_cells_without_labels_add_nothing() -> None:
    for n_cells in (0, 4):
        sums = classification_sums(torch.randn(n_cells, 3), torch.full((n_cells,), -1))
        assert sums.tolist() == [0.0] * n_classification_sums(3)
        assert classification_metrics(sums.numpy()) == {}


def test_a_certain_and_right_prediction_is_perfect() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [200.0, 0.0]])
    found = classification_metrics(classification_sums(logits, torch.tensor([0, 1, 0])).numpy())
    assert found == {
        "classification_loss": 0.0,
        "accuracy": 1.0,
        "f1_score": 1.0,
        "f1_score_macro": 1.0,
        "calibration_error": 0.0,
        "labelled_cells": 3,
    }


def test_logits_that_are_not_finite_show_in_the_loss() -> None:
    sums = classification_sums(torch.tensor([[float("nan"), 0.0]]), torch.tensor([1]))
    assert np.isnan(classification_metrics(sums.numpy())["classification_loss"])


def test_a_confidence_of_exactly_one_has_a_bin_of_its_own_as_in_torchmetrics() -> None:
    logits = torch.tensor([[200.0, 0.0], [4.0, 0.0]])
    found = classification_metrics(classification_sums(logits, torch.tensor([1, 0])).numpy())
    assert found["calibration_error"] == pytest.approx((1 + 1 - torch.sigmoid(torch.tensor(4.0)).item()) / 2, rel=1e-5)
