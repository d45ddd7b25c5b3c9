"""Differential expression as a whole: who is asked for, how often, and that the answers are those of scvi-tools.

Shape letters: n cells, g genes, k latent dimensions, s samples, h hidden units, b batches.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from dist_scvi.expression.de_scores import log_fold_change
from dist_scvi.expression.differential import differential_expression
from dist_scvi.inference.importance import Anchors, Candidates, ImportanceSampling
from tests.dist_scvi.expression.decoded_cells import NAMED, RAW, Cells, CountedCells

VANILLA = ["proba_m1", "proba_m2", "bayes_factor", "scale1", "scale2"]
CHANGE = [
    *("proba_de", "proba_not_de", "bayes_factor", "scale1", "scale2", "pseudocounts", "delta"),
    *("lfc_mean", "lfc_median", "lfc_std", "lfc_min", "lfc_max"),
]


@pytest.fixture
def cells() -> CountedCells:
    """Three types, of which B makes more of gene 3 and less of gene 4; 2 batches that differ in gene 7."""
    rng = np.random.default_rng(0)
    n = 300
    kind_n = np.repeat(["A", "B", "C"], [150, 100, 50])
    obs = pd.DataFrame({"kind": kind_n, "batch": pd.Categorical(["x", "y"] * 150)}, index=[f"c{i}" for i in range(n)])
    obs.loc["c149", "kind"] = None
    weight_kg = np.zeros((2, 12))
    weight_kg[0, [3, 4]], weight_kg[1] = [1.0, -1.0], 0.1 * rng.normal(size=12)
    qzm_nk = np.column_stack([2.0 * (kind_n == "B"), np.zeros(n)]) + 0.1 * rng.normal(size=(n, 2))
    source = CountedCells(qzm_nk, np.full((n, 2), 0.02), weight_kg, obs, [[0] * 12, [0] * 7 + [1.5] + [0] * 4])
    every = np.arange(n)
    source.counts_ng = rng.poisson(source.decoded(every, every * 0, None) * 200)
    return source


def test_a_gene_of_one_group_alone_comes_first_and_the_gene_it_lacks_last(cells):
    vanilla = differential_expression(cells, "kind", "B")
    assert (vanilla.index[0], vanilla.index[-1]) == ("g3", "g4")
    change = differential_expression(cells, "kind", "B", mode="change")
    assert set(change.index[:2]) == {"g3", "g4"}
    assert set(change.index[change["is_de_fdr_0.05"]]) == {"g3", "g4"}
    assert change.loc["g3", "lfc_mean"] == pytest.approx(2 / np.log(2) + change.loc["g0", "lfc_mean"], abs=0.3)


def test_columns_and_their_order_are_those_of_scvi_tools(cells):
    assert list(differential_expression(cells, "kind", "B").columns) == VANILLA + RAW + NAMED
    change = differential_expression(cells, "kind", "B", mode="change", fdr_target=0.1)
    assert list(change.columns) == [*CHANGE, *RAW, "is_de_fdr_0.1", *NAMED]
    options = {"n_samples_overall": 200, "mode": "change", "all_stats": False, "cred_interval_lvls": np.array([0.9])}
    bare = differential_expression(cells, idx1=[1, 2], idx2=[3], **options)
    interval = ["lfc_confidence_interval_0.9_min", "lfc_confidence_interval_0.9_max"]
    assert list(bare.columns) == [*CHANGE, *interval, "is_de_fdr_0.05"]


def test_every_category_is_compared_with_all_other_cells_in_their_order(cells):
    found = differential_expression(cells, "kind", n_samples_overall=500)
    assert found["comparison"].unique().tolist() == ["A vs Rest", "B vs Rest", "C vs Rest"]
    assert len(found) == 3 * 12
    assert cells.passes == 1
    for name, table in found.groupby("group1"):
        assert table["bayes_factor"].is_monotonic_decreasing
        inside = (cells.obs["kind"] == name).to_numpy()
        raw = table.loc[cells.var_names]
        np.testing.assert_allclose(raw["raw_mean1"], cells.counts_ng[inside].mean(axis=0))
        np.testing.assert_allclose(raw["raw_mean2"], cells.counts_ng[~inside].mean(axis=0))  # with the cell of no kind
        np.testing.assert_allclose(raw["non_zeros_proportion2"], (cells.counts_ng[~inside] > 0).mean(axis=0))
        share_ng = cells.counts_ng / cells.counts_ng.sum(axis=1, keepdims=True) * 1e4
        np.testing.assert_allclose(raw["raw_normalized_mean1"], share_ng[inside].mean(axis=0))


def test_only_as_many_cells_are_decoded_as_samples_are_wanted(cells):
    differential_expression(cells, "kind", "B", n_samples_overall=40)
    assert [len(row_s) for row_s, _, _ in cells.asked] == [40, 40]
    kind_n = cells.obs["kind"].to_numpy()
    assert set(kind_n[cells.asked[0][0]]) == {"B"}
    assert set(kind_n[cells.asked[1][0]]) <= {"A", "C", None}
    for row_s, _, _ in cells.asked:
        assert (np.diff(row_s) >= 0).all()


def test_the_cost_of_many_groups_is_that_of_their_samples_and_progress_counts_groups(cells):
    cells.obs["many"] = [f"m{row % 100}" for row in range(300)]
    told: list[tuple[int, int]] = []
    differential_expression(cells, "many", n_samples_overall=4, on_progress=lambda *at: told.append(at))
    assert len(cells.asked_rows) == 100 * 2 * 4
    assert cells.passes == 1
    assert told == [(done, 100) for done in range(1, 101)]


def test_samples_beyond_a_pass_are_asked_for_in_parts_and_a_shared_group_once(cells):
    differential_expression(cells, "kind", ["A", "B"], "C", n_samples_overall=2500)
    assert [len(row_s) for row_s, _, _ in cells.asked] == [1024, 1024, 452] * 3


def test_no_two_samples_share_a_draw_of_a_cell(cells):
    differential_expression(cells, "kind", "C", "C", n_samples_overall=400, batch_correction=True)
    drawn = [pair for row_s, draw_s, _ in cells.asked for pair in zip(row_s.tolist(), draw_s.tolist(), strict=True)]
    assert len(drawn) == 800 == len(set(drawn))


def test_a_group_against_itself_shows_no_difference(cells):
    found = differential_expression(cells, "kind", "A", "A")
    assert found["proba_m1"].between(0.46, 0.54).all()


def test_a_seed_gives_one_answer_and_another_seed_another(cells):
    options = {"groupby": "kind", "group1": "B", "n_samples_overall": 300, "mode": "change", "use_permutation": True}
    first, again, other = (differential_expression(cells, **options, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not first["lfc_mean"].sort_index().equals(other["lfc_mean"].sort_index())


def test_the_answer_for_a_group_does_not_depend_on_which_others_are_asked_for(cells):
    alone, among = (
        differential_expression(cells, "kind", group1, n_samples_overall=300) for group1 in ("C", ["A", "C"])
    )
    pd.testing.assert_frame_equal(alone, among[among["group1"] == "C"])


def test_batch_correction_takes_out_the_difference_of_two_batches(cells):
    plain = differential_expression(cells, "batch", "y", mode="change")
    corrected = differential_expression(cells, "batch", "y", mode="change", batch_correction=True)
    assert plain.loc["g7", "lfc_mean"] > 1
    assert abs(corrected.loc["g7", "lfc_mean"]) < 0.1
    assert {batch for _, _, batch in cells.asked[:10]} == {None}
    assert {batch for _, _, batch in cells.asked[10:]} == {0, 1}


@pytest.mark.parametrize("use_permutation", [False, True])
def test_samples_are_shared_among_the_batches_and_compared_within_each(cells, use_permutation):
    cells.qzm_nk[:], cells.qzv_nk[:] = 0, 1e-12
    cells.offset_bg[1] = 5 * np.arange(12)
    options = {"mode": "change", "batch_correction": True, "batchid2": ["y", "x"], "use_permutation": use_permutation}
    found = differential_expression(cells, "kind", "B", **options, n_samples_overall=41)
    assert [(len(row_s), batch) for row_s, _, batch in cells.asked] == [(20, batch) for batch in (0, 1, 1, 0)]
    np.testing.assert_allclose(found["lfc_max"], 0, atol=1e-4)


def test_each_group_and_each_batch_has_a_choice_of_cells_of_its_own(cells):
    differential_expression(cells, "kind", "A", "A", batch_correction=True, n_samples_overall=200)
    assert len({tuple(row_s) for row_s, _, _ in cells.asked}) == 4


def test_batches_that_differ_between_the_groups_are_compared_across(cells):
    cells.offset_bg[1, 7] = 3
    found = differential_expression(
        cells, "kind", "A", "C", mode="change", batch_correction=True, batchid1="y", batchid2=["x"]
    )
    assert [batch for _, _, batch in cells.asked[::5]] == [0, 1]
    assert found["lfc_mean"].idxmax() == "g7"


def test_groups_may_be_named_by_rows_mask_or_query(cells):
    mask = (cells.obs["kind"] == "B").to_numpy()
    tables = [
        differential_expression(cells, idx1=idx1, idx2=idx2, n_samples_overall=100)
        for idx1, idx2 in ((np.flatnonzero(mask), ~mask), (mask.tolist(), None), ("kind == 'B'", "kind != 'B'"))
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    np.testing.assert_allclose(tables[0].loc["g3", "raw_mean1"], cells.counts_ng[mask, 3].mean())


def test_random_pairs_leave_the_mean_effect_as_it_is(cells):
    options = {"groupby": "kind", "group1": "B", "mode": "change"}
    plain = differential_expression(cells, **options)
    mixed = differential_expression(cells, **options, use_permutation=True, m_permutation=20_000)
    np.testing.assert_allclose(mixed["lfc_mean"].sort_index(), plain["lfc_mean"].sort_index(), atol=0.02)
    assert not np.array_equal(mixed["lfc_mean"].sort_index(), plain["lfc_mean"].sort_index())


def test_a_change_function_that_is_the_default_gives_the_default(cells):
    options = {"groupby": "kind", "group1": "B", "mode": "change", "delta": None}
    default, named, own = (
        differential_expression(cells, **options, change_fn=change) for change in (None, "log-fold", log_fold_change)
    )
    pd.testing.assert_frame_equal(default, named)
    pd.testing.assert_frame_equal(default, own)
    assert default["delta"].nunique() == 1


def test_outlying_cells_are_left_out_of_the_samples(cells):
    cells.qzm_nk[[5, 6, 7]] += 30
    differential_expression(cells, "kind", "A", filter_outlier_cells=True)
    assert not {5, 6, 7} & set(cells.asked_rows.tolist())
    cells.asked.clear()
    differential_expression(cells, "kind", "A")
    assert {5, 6, 7} <= set(cells.asked_rows.tolist())


def test_a_group_too_small_to_tell_outliers_is_kept_whole_and_this_is_said(cells, caplog):
    differential_expression(cells, idx1=[0, 1], idx2=[2, 3], filter_outlier_cells=True, n_samples_overall=100)
    assert "filter_outlier_cells: 2 cells are too few" in caplog.text
    assert set(cells.asked_rows.tolist()) == {0, 1, 2, 3}


class WeighedCells(CountedCells):
    """Cells whose importance weights prefer a low first latent dimension: the anchors are far down there."""

    gene_likelihood = "poisson"

    def candidates(self, row_s, draw_s, batch):
        self.n_candidates = getattr(self, "n_candidates", 0) + len(row_s)
        scale_sg = torch.from_numpy(self.decoded(row_s, draw_s, batch))
        return Candidates(torch.from_numpy(self.z_sk(row_s, draw_s)), scale_sg, torch.ones(scale_sg.shape[1]), None)

    def anchors(self, row_a, n_mc_samples, n_mc_samples_per_pass):
        self.anchored = (row_a, n_mc_samples, n_mc_samples_per_pass)
        n, wide = len(row_a), torch.full((len(row_a), 2), 1e4)
        gene, count = torch.full((n,), 4), torch.full((n,), 50.0)
        return Anchors(torch.arange(n + 1), gene, count, torch.full((n,), 50.0), wide * 0, wide, torch.zeros(n))


def test_importance_prefers_draws_that_explain_the_group(cells):
    weighed = WeighedCells(cells.qzm_nk, cells.qzv_nk, cells.weight_kg, cells.obs, cells.offset_bg)
    weighed.counts_ng = cells.counts_ng
    options = {"groupby": "kind", "group1": "C", "group2": "B", "n_samples_overall": 200}
    plain = differential_expression(weighed, **options)
    found = differential_expression(
        weighed, **options, weights="importance", importance_weighting_kwargs={"max_cells": 20, "n_mc_samples": 7}
    )
    assert found.loc["g4", "scale1"] > plain.loc["g4", "scale1"] * 1.05  # the gene that the anchors are full of
    row_a, n_mc_samples, per_pass = weighed.anchored
    assert (len(row_a), n_mc_samples, per_pass) == (20, 7, ImportanceSampling().n_mc_samples_per_pass)
    assert set(cells.obs["kind"].iloc[row_a]) == {"C"}
    assert weighed.n_candidates == 400
    assert [len(row_s) for row_s, _, _ in weighed.asked] == [200] * 4
    pd.testing.assert_frame_equal(plain, differential_expression(weighed, **options, weights=None))


def test_without_counts_nothing_that_needs_them_is_answered(cells):
    bare = Cells(cells.qzm_nk, cells.qzv_nk, cells.weight_kg, cells.obs, cells.offset_bg)
    with pytest.raises(ValueError, match=r"^all_stats=True: the counts are needed, .* set all_stats=False"):
        differential_expression(bare, "kind", "B")
    with pytest.raises(ValueError, match=r"^pseudocounts=None: the counts are needed, .* pseudocounts to a number"):
        differential_expression(bare, "kind", "B", mode="change", all_stats=False)
    found = differential_expression(bare, "kind", "B", mode="change", all_stats=False, pseudocounts=1e-10)
    assert list(found.columns) == [*CHANGE, "is_de_fdr_0.05", *NAMED]
    full = differential_expression(cells, "kind", "B", mode="change", all_stats=False, pseudocounts=1e-10)
    pd.testing.assert_frame_equal(found, full)
    with pytest.raises(ValueError, match=r"^weights='importance': the counts are needed"):
        differential_expression(bare, "kind", "B", all_stats=False, weights="importance")
    with pytest.raises(ValueError, match=r"^idx1=.*: these cells have no obs to query"):
        differential_expression(bare, idx1="kind == 'B'", all_stats=False)


def test_genes_that_are_not_expressed_set_the_pseudocount_and_do_not_count_as_changed(cells):
    cells.counts_ng[:, 3] = 0
    found = differential_expression(cells, "kind", "B", mode="change")
    silent = differential_expression(cells, "kind", "B", mode="change", threshold_counts=0)
    assert found["pseudocounts"].iloc[0] > 1e-3
    assert silent["pseudocounts"].iloc[0] == 1e-10
    assert found.loc["g3", "proba_de"] <= silent.loc["g3", "proba_de"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^nothing says who is compared: groupby is needed"),
        ({"idx2": [1]}, r"^idx2 is given without idx1"),
        ({"idx1": [1], "groupby": "kind"}, r"^idx1 and groupby='kind' both say"),
        ({"idx1": [1], "group2": "A"}, r"^idx1 and group2='A' both say"),
        ({"groupby": "kind", "group1": "D"}, r"^obs column 'kind' has no category 'D': it has A, B, C$"),
        ({"groupby": "kind", "mode": "both"}, r"^mode='both': 'vanilla' or 'change'"),
        ({"groupby": "kind", "fdr_target": 5}, r"^fdr_target=5: a share between 0 and 1"),
        ({"groupby": "kind", "n_samples_overall": 1}, r"^n_samples_overall=1: at least 2"),
        ({"groupby": "kind", "m_permutation": 0}, r"^m_permutation=0: at least 1"),
        ({"groupby": "kind", "seed": -1}, r"^seed=-1: at least 0"),
        ({"groupby": "kind", "weights": "best"}, r"^weights='best': 'uniform' or 'importance'"),
        (
            {"groupby": "kind", "importance_weighting_kwargs": {"max_cells": 3}},
            r"^importance_weighting_kwargs is given",
        ),
        ({"groupby": "kind", "batchid1": "x"}, r"^batchid1 and batchid2 need batch_correction=True"),
        ({"groupby": "kind", "pseudocounts": 1e-4}, r"are of mode='change'"),
        ({"groupby": "kind", "cred_interval_lvls": [0.5]}, r"are of mode='change'"),
        ({"groupby": "kind", "change_fn": "log-fold", "m1_domain_fn": lambda x: (x, x)}, r"are of mode='change'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_decoded(cells, options, message):
    with pytest.raises(ValueError, match=message):
        differential_expression(cells, **options)
    assert cells.asked == []
