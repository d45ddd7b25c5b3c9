"""Abundance of groups by sample: counts, shares and their intervals, and the contrast between conditions."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dist_scvi.atlas.queries.abundance import abundance, compare_odds, log2_odds, wilson_interval


def test_every_sample_and_group_is_counted_also_where_there_is_no_cell(atlas, shuffled, annotated):
    answer = abundance(atlas, "donor", "label", where="label in ['T', 'B']")
    chosen = annotated.obs[annotated.obs["label"].isin(["T", "B"])]
    expected = pd.crosstab(chosen["donor"], chosen["label"]).drop(columns="NK", errors="ignore")
    table = answer.table
    assert list(table.columns) == ["donor", "label", "group", "n", "total", "fraction", "low", "high"]
    found = table.pivot(index="donor", columns="label", values="n")[expected.columns]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(table.groupby("donor")["fraction"].sum(), 1)
    first = table.iloc[0]
    interval = stats.binomtest(int(first["n"]), int(first["total"])).proportion_ci(method="wilson")
    np.testing.assert_allclose([first["low"], first["high"]], [interval.low, interval.high])
    assert answer.notes == (f"{chosen['donor'].isna().sum()} cells without a value in donor, label are left out",)
    again = abundance(shuffled, "donor", "label", where="label in ['T', 'B']").table
    pd.testing.assert_frame_equal(table, again)


def test_shares_come_from_the_leaves_where_these_suffice(atlas, annotated):
    answer = abundance(atlas, "site")  # the labels of the model
    assert (answer.engine, answer.parameters["groups"]) == ("leaves", ["label"])
    expected = pd.crosstab(annotated.obs["site"], annotated.obs["label"])
    np.testing.assert_array_equal(answer.table.pivot(index="site", columns="label", values="n"), expected)


def test_a_group_that_is_absent_from_a_sample_has_an_interval_from_zero():
    low, high = wilson_interval(np.array([0, 20]), np.array([20, 20]), 0.95)
    assert (low[0], high[1]) == (0, 1)
    assert 0 < high[0] < 0.2
    assert 0.8 < low[1] < 1


def test_the_same_donors_in_both_conditions_are_paired_and_others_are_not(atlas, annotated):
    paired = abundance(atlas, "donor", "label", contrast=["batch", "b1", "b0"])
    assert paired.engine == "paired"
    assert "paired by donor: 5 samples" in " ".join(paired.notes)
    obs = annotated.obs.dropna(subset=["donor"])
    counts = pd.crosstab([obs["batch"], obs["donor"]], obs["label"])
    sides = [log2_odds(counts.loc[batch].to_numpy()) for batch in ("b1", "b0")]
    expected = pd.Series(stats.ttest_rel(*sides).pvalue, index=counts.columns)
    table = paired.table.set_index("label")
    np.testing.assert_allclose(table["pvalue"], expected[table.index])
    np.testing.assert_allclose(table["fdr"], stats.false_discovery_control(table["pvalue"]))
    with pytest.raises(ValueError, match="has 5 categories"):
        abundance(atlas, "batch", "label", contrast="donor")
    assert abundance(atlas, "site", "label", contrast="batch").table["n_samples1"].eq(3).all()


def test_welch_compares_different_samples():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.5, 1, (4, 3)), rng.normal(0, 2, (7, 3))
    found, expected = compare_odds(first, second, 0.9, paired=False), stats.ttest_ind(first, second, equal_var=False)
    np.testing.assert_allclose(found["pvalue"], expected.pvalue)
    interval = expected.confidence_interval(0.9)
    np.testing.assert_allclose([found["low"], found["high"]], [interval.low, interval.high])
    alike = compare_odds(np.ones((2, 1)), np.ones((2, 1)), 0.9, paired=False)
    assert (alike["effect"][0], alike["se"][0], alike["pvalue"][0]) == (0, 0, 1)


def test_intervals_of_a_contrast_cover_where_samples_differ_more_than_by_chance():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(300):  # donors whose shares scatter around 0.3 in both conditions
        share_s = rng.beta(12, 28, 12)
        n_s = rng.binomial(500, share_s)
        odds = log2_odds(np.stack([n_s, 500 - n_s], axis=1))
        found = compare_odds(odds[:6], odds[6:], 0.95, paired=False)
        covered.append(found["low"][0] <= 0 <= found["high"][0])
    assert 0.92 < np.mean(covered) < 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "dnor"}, "did you mean 'donor'"),
        ({"by": "label"}, "other than those of the groups"),
        ({"by": "donor", "groups": "age"}, "holds numbers"),
        ({"by": "donor", "contrast": ["batch", "b1", "b2"]}, "it has 'b0', 'b1'"),
        ({"by": "donor", "contrast": ["batch", "b1"]}, "its tested category and its reference"),
        ({"by": "donor", "contrast": ["batch", "b1", "b1"]}, "with itself"),
        ({"by": "batch", "contrast": ["batch", "b1", "b0"]}, "has 1 samples"),
        ({"by": "donor", "level": 1.0}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_counted_is_refused(atlas, arguments, message):
    with pytest.raises(ValueError, match=message):
        abundance(atlas, **arguments)
