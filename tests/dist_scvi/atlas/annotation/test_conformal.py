"""Calibration against oracles: a grid search, numpy's quantiles, and coverage of drawn labels."""

import math

import numpy as np
import pytest

from dist_scvi.atlas.annotation.conformal import (
    calibration_error,
    conformal_threshold,
    fit_temperature,
    tempered,
)


@pytest.fixture(scope="module")
def overconfident() -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities that are three times too far apart, and labels."""
    rng = np.random.default_rng(0)
    logit_nl = rng.normal(0, 1.5, (20000, 5))
    label_n = (tempered(logit_nl, 1.0) + rng.gumbel(size=logit_nl.shape)).argmax(axis=1)
    return tempered(3 * logit_nl, 1.0), label_n


def test_the_temperature_is_that_of_a_grid_search(overconfident):
    log_nl, label_n = overconfident
    grid = np.linspace(2, 4, 201)
    loss = [-tempered(log_nl, value)[np.arange(len(label_n)), label_n].mean() for value in grid]
    found = fit_temperature(log_nl, label_n)
    assert abs(found - grid[np.argmin(loss)]) < 0.02
    assert abs(found - 3) < 0.15


def test_the_calibration_error_falls_to_that_of_true_probabilities(overconfident):
    log_nl, label_n = overconfident
    before = calibration_error(log_nl, label_n)
    after = calibration_error(tempered(log_nl, fit_temperature(log_nl, label_n)), label_n)
    assert before > 0.15
    assert after < 0.02
    confidence_n, right_n = np.exp(log_nl.max(axis=1)), log_nl.argmax(axis=1) == label_n
    bins = [(confidence_n >= low / 15) & (confidence_n < (low + 1) / 15 + (low == 14)) for low in range(15)]
    by_hand = sum(abs(confidence_n[b].mean() - right_n[b].mean()) * b.mean() for b in bins if b.any())
    assert math.isclose(before, by_hand, rel_tol=1e-9)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.99])
def test_sets_cover_the_share_that_is_asked_for(overconfident, coverage):
    log_nl, label_n = overconfident
    half = len(label_n) // 2
    threshold = conformal_threshold(log_nl[:half], label_n[:half], coverage)
    score_n = 1 - np.exp(log_nl[np.arange(half), label_n[:half]])
    level = np.ceil((half + 1) * coverage) / half
    assert math.isclose(1 - math.exp(threshold), np.quantile(score_n, level, method="inverted_cdf"), rel_tol=1e-9)
    inside_nl = log_nl[half:] >= threshold
    assert abs(inside_nl[np.arange(len(inside_nl)), label_n[half:]].mean() - coverage) < 0.02


def test_sets_hold_every_label_where_too_few_cells_promise_coverage():
    log_nl = np.log([[0.7, 0.3], [0.6, 0.4]])
    assert conformal_threshold(log_nl, np.array([0, 1]), 0.9) == -math.inf
