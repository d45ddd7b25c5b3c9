"""Importance weights against torch's own distributions, one candidate and anchor at a time."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.distributions import Normal

from dist_scvi.inference import importance
from dist_scvi.inference.importance import (
    Anchors,
    Candidates,
    Importance,
    ImportanceSampling,
    importance_of,
    log_weights,
    normalized_weights,
)
from dist_scvi.network.likelihood import dense_log_likelihood

S, A, G, K = 7, 5, 11, 3


def made(likelihood: str, *, theta_by_cell: bool = False) -> tuple[Candidates, Anchors, torch.Tensor]:
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.8, (A, G)).astype(np.float32))
    scale = torch.from_numpy(rng.dirichlet(np.ones(G), S).astype(np.float32))
    theta = torch.from_numpy(rng.gamma(2, 1, (S, G) if theta_by_cell else G).astype(np.float32))
    logits = torch.from_numpy(rng.normal(size=(S, G)).astype(np.float32)) if likelihood == "zinb" else None
    normal = torch.from_numpy(rng.normal(size=(2 * A + S, K)).astype(np.float32))
    anchors = Anchors(
        torch.from_numpy(counts.indptr).long(),
        torch.from_numpy(counts.indices).long(),
        torch.from_numpy(counts.data),
        torch.tensor([3.0, 9.0, 8.0, 12.0, 7.0]),
        normal[:A],
        normal[A : 2 * A].square() + 0.1,
        torch.linspace(-30, -10, A),
    )
    return Candidates(normal[2 * A :], scale, theta, logits), anchors, torch.from_numpy(counts.toarray())


def by_hand(candidates: Candidates, anchors: Anchors, counts: torch.Tensor, likelihood: str) -> np.ndarray:
    weights = []
    for s in range(S):
        z = candidates.z_sk[s]
        theta = candidates.theta_sg if candidates.theta_sg.dim() == 1 else candidates.theta_sg[s]
        logits = None if candidates.zi_logits_sg is None else candidates.zi_logits_sg[s]
        above, below = 0.0, 0.0
        for a in range(A):
            rate = anchors.library_a[a] * candidates.scale_sg[s]
            log_x = dense_log_likelihood(likelihood, counts[a], rate, theta, logits)
            above += (Normal(0, 1).log_prob(z).sum() + log_x - anchors.log_marginal_a[a]).double().exp()
            below += Normal(anchors.qzm_ak[a], anchors.qzv_ak[a].sqrt()).log_prob(z).sum().double().exp()
        weights.append(float(torch.log(above / below)))
    return np.array(weights)


@pytest.mark.parametrize("block_values", [1 << 22, 2 * G])
@pytest.mark.parametrize("theta_by_cell", [False, True])
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_a_weight_is_the_ratio_of_two_mixtures_over_the_anchors(likelihood, theta_by_cell, block_values, monkeypatch):
    monkeypatch.setattr(importance, "_BLOCK_VALUES", block_values)  # anchors all at once, or two at a time
    candidates, anchors, counts = made(likelihood, theta_by_cell=theta_by_cell)
    expected = by_hand(candidates, anchors, counts, likelihood)
    np.testing.assert_allclose(log_weights(candidates, anchors, likelihood), expected, rtol=1e-5)


def test_weights_become_probabilities_however_small_they_are():
    found = normalized_weights(np.log([1.0, 3.0]) - 5000, truncation=False)
    np.testing.assert_allclose(found, [0.25, 0.75])


def test_truncation_limits_the_large_weights_and_leaves_the_small_ones_in_proportion():
    log_weight = np.log([100.0, 1.0, 2.0, 1.0])
    found = normalized_weights(log_weight, truncation=True)
    np.testing.assert_allclose(found * 56, [52, 1, 2, 1])  # mean 26, times the root of 4
    even = np.zeros(4)
    np.testing.assert_array_equal(normalized_weights(even, truncation=True), normalized_weights(even, truncation=False))


@pytest.mark.parametrize("value", [-np.inf, np.nan, np.inf])
def test_weights_of_which_none_is_finite_are_refused(value):
    with pytest.raises(ValueError, match=r"^none of 3 importance weights is finite"):
        normalized_weights(np.full(3, value), truncation=False)


class Source:
    """Weights that depend on row and batch alone: row 1 is explained, and row 2 in batch 5."""

    gene_likelihood = "poisson"

    def __init__(self) -> None:
        self.passes: list[int] = []

    def candidates(self, row_s, draw_s, batch):
        self.passes.append(len(row_s))
        liked = (row_s == (2 if batch == 5 else 1))[:, None]
        scale = torch.from_numpy(np.where(liked, [0.9, 0.1], [0.1, 0.9]))
        return Candidates(torch.zeros(len(row_s), 1), scale, torch.ones(2), None)

    def anchors(self, row_a, n_mc_samples, n_mc_samples_per_pass):
        one = torch.ones(1, 1)
        return Anchors(
            torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([100.0]), torch.tensor([100.0]), one, one, one[0]
        )


def test_candidates_are_chosen_by_weight_within_the_share_of_each_batch():
    source = Source()
    weighing = Importance(source, ImportanceSampling())
    row_s, draw_s = np.tile([0, 1, 2], 200), np.arange(600)
    chosen = weighing.choose(row_s, draw_s, [None, 5], weighing.anchors(np.array([0])), 50, np.random.default_rng(0))
    assert (chosen[:50] < 300).all()
    assert (chosen[50:] >= 300).all()
    assert row_s[chosen].tolist() == [1] * 50 + [2] * 50
    assert source.passes == [256, 44] * 2


def test_options_are_read_by_name():
    assert ImportanceSampling.of(None) == ImportanceSampling(1024, False, 500, 250)
    assert ImportanceSampling.of({"max_cells": 3, "truncation": True}) == ImportanceSampling(3, True)
    assert importance_of(Source(), "importance", {"n_mc_samples": 9}).sampling.n_mc_samples == 9
    assert importance_of(Source(), "uniform", None) is None
    assert importance_of(Source(), None, {}) is None


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (
            "importance",
            {"max_cell": 3},
            r"has no 'max_cell': it has max_cells, truncation, n_mc_samples, n_mc_samples_p",
        ),
        ("importance", {"max_cells": 0}, r"max_cells=0: a whole number from 1"),
        ("importance", {"n_mc_samples": 2.5}, r"n_mc_samples=2.5: a whole number from 1"),
        ("importance", {"truncation": "yes"}, r"truncation='yes': True or False"),
        ("best", None, r"^weights='best': 'uniform' or 'importance'"),
        ("uniform", {"max_cells": 3}, r"^importance_weighting_kwargs is given with weights='uniform'"),
    ],
)
def test_options_that_make_no_sense_are_refused(weights, options, message):
    with pytest.raises(ValueError, match=message):
        importance_of(Source(), weights, options)


def test_a_source_without_counts_gives_no_weights():
    with pytest.raises(ValueError, match=r"^weights='importance': the counts are needed"):
        importance_of(object(), "importance", None)
