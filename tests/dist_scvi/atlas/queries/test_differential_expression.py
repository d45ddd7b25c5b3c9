"""Differential expression of an atlas: all pairs, by brute force and by the engines; columns, errors, refusals."""

import numpy as np
import pandas as pd
import pytest

from dist_scvi.atlas.differential.all_pairs import SortedSample, compare_pairs
from dist_scvi.atlas.differential.differential_expression import differential_expression
from dist_scvi.atlas.queries.sample import even_normal, spread_cells
from dist_scvi.atlas.queries.where import choose_cells
from tests.dist_scvi.atlas.queries.memory_atlas import memory_atlas, scales

CHANGE = [
    *("proba_de", "proba_not_de", "bayes_factor", "scale1", "scale2", "pseudocounts", "delta"),
    *("lfc_mean", "lfc_median", "lfc_std", "lfc_min", "lfc_max"),
]
RAW = [
    *("raw_mean1", "raw_mean2", "non_zeros_proportion1", "non_zeros_proportion2"),
    *("raw_normalized_mean1", "raw_normalized_mean2"),
]
T_OR_B = {"groupby": "label", "group1": "T", "group2": "B", "mode": "change"}


def brute_force(atlas, cells1, cells2, delta, pseudocounts, batch=None):
    """Compare one draw of every cell with one of every other."""
    scale_ng = scales(atlas.module, atlas.cells, 0, batch).astype(np.float64)
    first, second = (scale_ng[choose_cells(atlas, cells).rows(atlas)] for cells in (cells1, cells2))
    change_nmg = np.log2(first[:, None] + pseudocounts) - np.log2(second[None] + pseudocounts)
    plus, minus = (change_nmg >= delta).mean(axis=(0, 1)), (change_nmg < -delta).mean(axis=(0, 1))
    described_nmg = np.log2(first[:, None] + 1e-3 * pseudocounts) - np.log2(second[None] + 1e-3 * pseudocounts)
    return plus, minus, described_nmg.reshape(-1, scale_ng.shape[1])


@pytest.mark.parametrize("pseudocounts", [1e-10, 1e-3])
@pytest.mark.parametrize("test_mode", ["two", "three"])
def test_the_exact_engine_is_all_pairs_of_all_cells(atlas, pseudocounts, test_mode):
    plus, minus, change = brute_force(atlas, "label == 'T'", "label == 'B'", 0.3, pseudocounts)
    options = {"delta": 0.3, "pseudocounts": pseudocounts, "test_mode": test_mode, "engine": "exact"}
    found = differential_expression(atlas, **T_OR_B, **options).table.loc[list(atlas.var_names)]
    proba = plus + minus if test_mode == "two" else np.maximum(plus, minus)
    np.testing.assert_allclose(found["proba_de"], proba, atol=2e-4)
    np.testing.assert_allclose(found["lfc_mean"], change.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found["lfc_std"], change.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["lfc_min"], change.min(axis=0), atol=1e-5)
    np.testing.assert_allclose(found["lfc_max"], change.max(axis=0), atol=1e-5)
    np.testing.assert_allclose(found["lfc_median"], np.median(change, axis=0), atol=0.02)


@pytest.mark.parametrize("engine", ["sketch", "pairs"])
@pytest.mark.parametrize("pseudocounts", [1e-8, 1e-4])
def test_sketch_and_pairs_come_near_all_pairs_of_all_cells(atlas, engine, pseudocounts):
    plus, minus, change = brute_force(atlas, "label == 'T'", "label == 'B'", 0.25, pseudocounts)
    found = differential_expression(atlas, **T_OR_B, pseudocounts=pseudocounts, engine=engine).table
    found = found.loc[list(atlas.var_names)]
    error = np.abs(found["proba_de"] - np.maximum(plus, minus))
    # The reference is itself one draw of 130 cells: its noise is in the bound of the engine that draws anew.
    assert error.mean() < (0.003 if engine == "sketch" else 0.02)
    assert np.abs(found["lfc_mean"] - change.mean(axis=0)).mean() < (0.01 if engine == "sketch" else 0.05)


def test_columns_are_those_of_scvi_tools_and_standard_errors(atlas):
    change = differential_expression(atlas, **T_OR_B, fdr=0.1).table
    errors = ["proba_de_se", "lfc_mean_se"]
    assert list(change.columns) == [*CHANGE, *errors, *RAW, "is_de_fdr_0.1", "comparison", "group1", "group2"]
    assert change["proba_de"].is_monotonic_decreasing
    vanilla = differential_expression(atlas, "label == 'T'").table
    assert list(vanilla.columns[:4]) == ["proba_m1", "proba_m2", "bayes_factor", "proba_m1_se"]
    assert vanilla["bayes_factor"].is_monotonic_decreasing


def test_raw_statistics_are_exact_for_unions_of_leaves(atlas):
    found = differential_expression(atlas, "label == 'T' and site != 'x'").table.loc[list(atlas.var_names)]
    frame = atlas.obs.frame
    inside = ((frame["label"] == "T") & (frame["site"] != "x")).to_numpy()
    for side, cells in ((1, inside), (2, ~inside)):
        np.testing.assert_allclose(found[f"raw_mean{side}"], atlas.counts[cells].mean(axis=0))
        np.testing.assert_allclose(found[f"non_zeros_proportion{side}"], (atlas.counts[cells] > 0).mean(axis=0))


def test_auto_takes_the_sketch_where_it_can_answer_and_says_why_else(atlas):
    assert differential_expression(atlas, "label == 'T'").engine == "sketch"
    for options, message in (
        ({"group1": "label == 'T' and n_counts > 80"}, "no unions of leaves"),
        ({"group1": "label == 'T'", "batch_correction": True}, "own batch"),
    ):
        assert differential_expression(atlas, **options).engine == "pairs"
        with pytest.raises(ValueError, match=message):
            differential_expression(atlas, **options, engine="sketch")


def test_bits_do_not_depend_on_rows_chunks_or_the_order_of_a_list(atlas, shuffled):
    by_filter = {"group1": "label == 'T' and n_counts > 70", "mode": "change", "n_samples": 40, "seed": 3}
    for options in (T_OR_B, T_OR_B | {"engine": "pairs", "batch_correction": True}, by_filter):
        first, again, other = (differential_expression(cells, **options) for cells in (atlas, atlas, shuffled))
        pd.testing.assert_frame_equal(first.table, again.table, check_exact=True)
        pd.testing.assert_frame_equal(first.table, other.table, check_exact=True)
        assert first.provenance == other.provenance
    rows = choose_cells(atlas, "label == 'T'").rows(atlas)
    forwards, backwards = (differential_expression(atlas, part, engine="pairs").table for part in (rows, rows[::-1]))
    pd.testing.assert_frame_equal(forwards, backwards, check_exact=True)


def test_another_seed_chooses_other_cells(atlas):
    first, second = (
        differential_expression(atlas, **T_OR_B, engine="pairs", n_samples=30, seed=seed) for seed in (0, 1)
    )
    assert not first.table["proba_de"].sort_index().equals(second.table["proba_de"].sort_index())


def test_standard_errors_cover(atlas):
    """Estimates from 30 of 130 cells stay within two standard errors at least as often as they should, over seeds."""
    truth = differential_expression(atlas, **T_OR_B, engine="pairs", pseudocounts=1e-6).table.sort_index()
    within, spread = [], []
    for seed in range(20):
        options = {"engine": "pairs", "n_samples": 30, "seed": seed, "pseudocounts": 1e-6}
        found = differential_expression(atlas, **T_OR_B, **options).table.sort_index()
        for column in ("proba_de", "lfc_mean"):
            z = (found[column] - truth[column]) / found[f"{column}_se"]
            within.append((np.abs(z) < 2).mean())
            spread.append(np.sqrt((z**2).mean()))
    assert np.mean(within) > 0.93
    assert 0.15 < np.mean(spread) < 1.3  # neither too small nor without any meaning


@pytest.mark.parametrize("engine", ["exact", "pairs"])
def test_batch_correction_forms_pairs_within_each_batch(atlas, engine):
    options = {"engine": engine, "pseudocounts": 1e-6, "batch_correction": True}
    answer = differential_expression(atlas, **T_OR_B, **options)
    parts = [brute_force(atlas, "label == 'T'", "label == 'B'", 0.25, 1e-6, batch=batch) for batch in (0, 1)]
    plus, minus = np.mean([part[0] for part in parts], axis=0), np.mean([part[1] for part in parts], axis=0)
    found = answer.table.loc[list(atlas.var_names)]
    assert answer.batch == "average"
    error = np.abs(found["proba_de"] - np.maximum(plus, minus))
    assert error.mean() < (2e-4 if engine == "exact" else 0.02)
    change = np.concatenate([part[2] for part in parts])
    np.testing.assert_allclose(found["lfc_mean"], change.mean(axis=0), atol=1e-5 if engine == "exact" else 0.2)
    np.testing.assert_allclose(found["lfc_std"], change.std(axis=0), rtol=1e-3 if engine == "exact" else 0.2)


def test_a_group_smaller_than_the_sample_is_used_whole_and_noted(atlas):
    answer = differential_expression(atlas, [3, 5, 7], "label == 'NK' and n_counts > 100", "change")
    assert answer.n_cells["group1"] == 3
    assert any("group1 has 3 cells: all are used" in note for note in answer.notes)
    assert any("estimated from those of its leaves" in note for note in answer.notes)
    assert np.isfinite(answer.table["proba_de_se"]).all()


def test_replicates_are_tested_between_donors(model, annotated):
    atlas = memory_atlas(model, annotated, ["label", "donor"])
    table = differential_expression(atlas, **T_OR_B, replicate="donor").table.loc[list(atlas.var_names)]
    donor, label = atlas.obs.frame["donor"], atlas.obs.frame["label"]
    values = []
    for name in ("T", "B"):
        sums = np.array(
            [
                atlas.counts[(donor == d) & (label == name)].sum(axis=0, dtype=float)
                for d in sorted(donor.dropna().unique())
            ]
        )
        values.append(np.log2((sums + 0.5) / (sums.sum(axis=1, keepdims=True) + 1) * 1e6))
    np.testing.assert_allclose(table["replicate_lfc"], values[0].mean(axis=0) - values[1].mean(axis=0))
    assert (table["n_replicates1"] == 5).all()
    assert ((table["replicate_fdr"] >= table["replicate_pvalue"]) & (table["replicate_pvalue"] <= 1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group1": "label == 'Tc'"}, "did you mean 'T'"),
        ({"group1": "label == 'T'", "group2": "site == 'x'"}, "share"),
        ({"group1": None}, "no rest"),
        ({"group1": "label == 'T'", "mode": "changed"}, "'vanilla', 'change'"),
        ({"group1": "label == 'T'", "fdr": 2}, "between 0 and 1"),
        ({"group1": "label == 'T'", "delta": -1}, "delta=-1"),
        ({"group1": "label == 'T'", "n_samples": 1}, "from 2"),
        ({"group1": "label == 'T'", "pseudocounts": 0}, "> 0"),
        ({"group1": "label == 'T'", "replicate": "donor"}, "must be one of them"),
        ({"group1": "T", "groupby": "labels"}, "did you mean 'label'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(atlas, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        differential_expression(atlas, **options)
    assert "\n" not in str(caught.value)


def test_without_counts_a_pseudocount_must_be_given(model, annotated):
    atlas = memory_atlas(model, annotated, ["label"], leaves=False)
    assert differential_expression(atlas, "label == 'T'").engine == "pairs"
    with pytest.raises(ValueError, match="give a number, such as 1e-10"):
        differential_expression(atlas, "label == 'T'", mode="change")


def test_ties_and_single_values_are_counted(atlas):
    values = np.array([[1.0, 1.0, 2.0]], dtype=np.float32)
    scores = compare_pairs(SortedSample(values, 3), SortedSample(values[:, :1], 1), 0.0, 1e-30, 1e-30)
    assert scores.plus_g.tolist() == [1.0]
    assert scores.minus_g.tolist() == [0.0]


def test_a_spread_sample_is_nearer_to_its_cells_than_a_plain_one():
    rng = np.random.default_rng(0)
    value_mk = rng.normal(size=(4000, 3)).astype(np.float32)
    chosen = spread_cells(value_mk, 200)
    assert len(np.unique(chosen)) == 200
    plain = [np.abs(value_mk[rng.choice(4000, 200)].mean(axis=0)).mean() for _ in range(20)]
    assert np.abs(value_mk[chosen].mean(axis=0) - value_mk.mean(axis=0)).mean() < np.mean(plain)
    assert np.abs(even_normal(200, 3, (0, 1)).mean(axis=0)).max() < 0.02
