import json

import numpy as np
import pytest

from dist_scvi.report.scores.neighbours import nearest_within
from dist_scvi.report.scores.scores import CONSERVATION, INTEGRATION, ScoredCells, score_cells
from dist_scvi.report.scores.weighted import weighted_median
from tests.dist_scvi.report.scib_reference import REFERENCE, cells

_RANDOM = {"nmi_ari_cluster_labels_kmeans_nmi", "nmi_ari_cluster_labels_kmeans_ari"}
"""Scores of clusters whose start is random in scib-metrics."""


def _scored(seed: int, weight: float = 1.0) -> ScoredCells:
    z_nk, batch_n, label_n = cells(seed)
    near = nearest_within(z_nk, 90)
    weight_n = np.full(len(z_nk), weight)
    return ScoredCells(z_nk, batch_n, label_n, weight_n, near, batch_n[near.index_nj], label_n[near.index_nj])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_of_all_cells_are_those_of_scib_metrics(seed: int) -> None:
    found = score_cells(_scored(seed), n_bootstrap=5)
    for name, value in json.loads(REFERENCE.read_text())[str(seed)].items():
        assert found[name].value == pytest.approx(value, abs=0.1 if name in _RANDOM else 1e-4), name


def test_summaries_are_means_and_lie_in_their_intervals() -> None:
    found = score_cells(_scored(0), n_bootstrap=20)
    assert found["integration"].value == pytest.approx(np.mean([found[name].value for name in INTEGRATION]))
    assert found["conservation"].value == pytest.approx(np.mean([found[name].value for name in CONSERVATION]))
    assert found["integration"].low <= found["integration"].value <= found["integration"].high
    assert found["integration"].low < found["integration"].high


def test_cells_that_stand_for_several_alike_do_not_change_scores() -> None:
    once, often = (score_cells(_scored(0, weight), n_bootstrap=2, fast=True) for weight in (1.0, 4.0))
    assert {name: score.value for name, score in once.items()} == pytest.approx(
        {name: score.value for name, score in often.items()}, abs=2e-3
    )
    assert "kbet_per_label" not in once


def test_a_weighted_median_is_that_of_repeated_values() -> None:
    value_n, times_n = np.array([3.0, 1.0, 2.0, 9.0]), np.array([1.0, 4.0, 2.0, 3.0])
    assert weighted_median(value_n)(times_n) == np.median(np.repeat(value_n, times_n.astype(int)))
