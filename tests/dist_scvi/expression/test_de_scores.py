"""Statistics on samples: each against a plain formula over the whole matrix, or scikit-learn.

Shape letters: g genes, s samples, p pairs.
"""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from dist_scvi.expression import de_scores
from dist_scvi.expression.de_scores import (
    ChangeTest,
    Pairs,
    change_scores,
    describe,
    estimate_delta,
    flag_by_fdr,
    mixture_means,
    pair_samples,
    pseudocount_offset,
    vanilla_scores,
)

S, G = 400, 37


@pytest.fixture
def pairs() -> Pairs:
    """Pairs in no order; more of them than samples."""
    rng = np.random.default_rng(0)
    first_sg, second_sg = (rng.gamma(2.0, 1e-3, (S, G)).astype(np.float32) for _ in range(2))
    first_sg *= np.linspace(0.5, 2, G, dtype=np.float32)
    return Pairs(first_sg, second_sg, rng.integers(S, size=900), rng.integers(S, size=900))


@pytest.fixture(params=[1, 5, G])
def _block_genes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(de_scores, "_BLOCK_VALUES", 900 * request.param)


def lfc(pairs: Pairs, pseudocounts: float) -> np.ndarray:
    first, second = pairs.first_sg[pairs.first_p].astype(float), pairs.second_sg[pairs.second_p].astype(float)
    return np.log2(first + pseudocounts) - np.log2(second + pseudocounts)


@pytest.mark.usefixtures("_block_genes")
def test_vanilla_counts_the_pairs_in_which_the_first_group_is_higher(pairs):
    found = vanilla_scores(pairs)
    proba_g = (pairs.first_sg[pairs.first_p] > pairs.second_sg[pairs.second_p]).mean(axis=0)
    np.testing.assert_allclose(found["proba_m1"], proba_g)
    np.testing.assert_allclose(found["proba_m2"], 1 - proba_g)
    np.testing.assert_allclose(found["bayes_factor"], np.log(proba_g + 1e-8) - np.log(1 - proba_g + 1e-8))
    np.testing.assert_allclose(
        found["scale1"], pairs.first_sg.mean(axis=0, dtype=float)
    )  # of all samples, paired or not
    np.testing.assert_allclose(found["scale2"], pairs.second_sg.mean(axis=0, dtype=float))


@pytest.mark.usefixtures("_block_genes")
@pytest.mark.parametrize("test_mode", ["two", "three"])
def test_change_counts_the_pairs_beyond_delta_and_describes_the_change_with_less_pseudocount(pairs, test_mode):
    found = change_scores(pairs, ChangeTest(delta=0.4, test_mode=test_mode), 1e-3)
    effect = lfc(pairs, 1e-3)
    up_g, down_g = (effect >= 0.4).mean(axis=0), (effect < -0.4).mean(axis=0)
    proba_g = up_g + down_g if test_mode == "two" else np.maximum(up_g, down_g)
    np.testing.assert_allclose(found["proba_de"], proba_g)
    np.testing.assert_allclose(found["proba_not_de"], 1 - proba_g)
    np.testing.assert_allclose(found["bayes_factor"], np.log(proba_g + 1e-8) - np.log(1 - proba_g + 1e-8))
    described = lfc(pairs, 1e-6)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(found[f"lfc_{name}"], getattr(described, name)(axis=0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found["lfc_median"], np.median(described, axis=0), rtol=1e-10, atol=1e-12)
    assert set(found["pseudocounts"]) == {1e-3}
    assert set(found["delta"]) == {0.4}


@pytest.mark.usefixtures("_block_genes")
def test_delta_is_found_from_the_mean_changes_of_all_genes(pairs):
    found = change_scores(pairs, ChangeTest(delta=None), 1e-10)
    delta = estimate_delta(lfc(pairs, 1e-10).mean(axis=0))
    assert delta > 0.1
    np.testing.assert_allclose(found["delta"], delta)
    np.testing.assert_allclose(
        found["proba_de"], change_scores(pairs, ChangeTest(delta=found["delta"][0]), 1e-10)["proba_de"]
    )


def test_an_effect_of_exactly_delta_is_an_increase_and_of_minus_delta_no_decrease():
    one, two = np.full((4, 3), 1, np.float32), np.full((4, 3), 2, np.float32)
    rows = np.arange(4)
    test = ChangeTest(delta=1.0, change_fn=lambda x, y, _: x - y)
    assert change_scores(Pairs(two, one, rows, rows), test, 1.0)["proba_de"].tolist() == [1, 1, 1]
    assert change_scores(Pairs(one, two, rows, rows), test, 1.0)["proba_de"].tolist() == [0, 0, 0]


def test_functions_of_the_user_see_all_genes_together_and_decide(pairs, monkeypatch):
    monkeypatch.setattr(de_scores, "_BLOCK_VALUES", 900)
    seen = []

    def share(first_pg, second_pg, pseudocounts):
        seen.append((first_pg.shape, pseudocounts))
        return first_pg / first_pg.sum(axis=1, keepdims=True) - second_pg / second_pg.sum(axis=1, keepdims=True)

    def domain(effect_pg):
        return effect_pg > 0.01, effect_pg > np.inf

    found = change_scores(pairs, ChangeTest(change_fn=share, m1_domain_fn=domain), 0.5)
    assert seen == [((900, G), 0.5), ((900, G), 0.0005)]
    effect = share(pairs.first_sg[pairs.first_p], pairs.second_sg[pairs.second_p], 0)
    np.testing.assert_allclose(found["proba_de"], (effect > 0.01).mean(axis=0))
    np.testing.assert_allclose(found["lfc_mean"], effect.mean(axis=0, dtype=float), atol=1e-9)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (ChangeTest(change_fn=lambda x, _y, _pc: x[0]), r"^change_fn gives an array of shape \(37,\): .*\(900, 37\)"),
        (ChangeTest(m1_domain_fn=lambda x: (x > 0, True)), r"^m1_domain_fn gives shapes \[\(900, 37\), \(\)\]"),
    ],
)
def test_functions_that_give_other_shapes_are_refused(pairs, test, message):
    with pytest.raises(ValueError, match=message):
        change_scores(pairs, test, 1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": -0.1}, r"^delta=-0.1: a number >= 0"),
        ({"delta": float("nan")}, r"^delta=nan"),
        ({"pseudocounts": 0}, r"^pseudocounts=0: a number > 0"),
        ({"test_mode": "both"}, r"^test_mode='both': 'two' or 'three'"),
        ({"cred_interval_lvls": (0.5, 1)}, r"^cred_interval_lvls holds 1: levels in \[0, 1\)"),
        ({"change_fn": "ratio"}, r"^change_fn='ratio': 'log-fold' or a function"),
        ({"change_fn": lambda x, y: x - y}, r"^change_fn does not take 3 arguments"),
        ({"m1_domain_fn": lambda x, y: (x, y)}, r"^m1_domain_fn does not take 1 argument:"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ChangeTest(**options)


def test_an_interval_is_the_narrowest_that_holds_its_share():
    rng = np.random.default_rng(1)
    skewed = rng.exponential(size=(1001, 3))
    found = describe(skewed, (0.5, 0.9))
    assert {"confidence_interval_0.5_min", "confidence_interval_0.9_max"} < found.keys()
    for level, step in ((0.5, 500), (0.9, 900)):
        low_g, high_g = found[f"confidence_interval_{level}_min"], found[f"confidence_interval_{level}_max"]
        ordered = np.sort(skewed, axis=0)
        np.testing.assert_allclose(high_g - low_g, (ordered[step:] - ordered[: 1001 - step]).min(axis=0))
        assert (((skewed >= low_g) & (skewed <= high_g)).sum(axis=0) == step + 1).all()
        assert (low_g < 0.1).all()
    assert not any("confidence" in name for name in describe(skewed))


@pytest.mark.usefixtures("_block_genes")
def test_the_pseudocount_is_found_from_the_largest_samples_of_silent_genes(pairs):
    first_g, second_g = np.arange(G) < 12, np.arange(G) > 30
    tops = [pairs.first_sg[pairs.first_p].max(axis=0)[first_g], pairs.second_sg[pairs.second_p].max(axis=0)[second_g]]
    expected = max(np.quantile(top, 0.9) for top in tops) / G
    assert pseudocount_offset(pairs, first_g, second_g) == pytest.approx(expected, rel=1e-6)
    none_g = np.zeros(G, dtype=bool)
    assert pseudocount_offset(pairs, none_g, none_g) == 1e-10
    assert pseudocount_offset(pairs, first_g, none_g) == pytest.approx(np.quantile(tops[0], 0.9) / G, rel=1e-6)


def test_samples_are_paired_in_their_order_up_to_the_end_of_the_shorter():
    own = np.full(5, -1, dtype=np.int32)
    first, second = pair_samples(own, own[:3], within_batch=False, n_pairs=None, rng=np.random.default_rng(0))
    assert first.tolist() == second.tolist() == [0, 1, 2]


@pytest.mark.parametrize("n_pairs", [None, 60])
def test_pairs_within_batches_never_cross_them(n_pairs):
    first_s, second_s = np.repeat([4, 0, 2], 10).astype(np.int32), np.repeat([0, 2, 4], 10).astype(np.int32)
    rng = np.random.default_rng(0)
    first, second = pair_samples(first_s, second_s, within_batch=True, n_pairs=n_pairs, rng=rng)
    assert (first_s[first] == second_s[second]).all()
    assert np.bincount(first_s[first]).tolist() == [n // 3 for n in [n_pairs or 30, 0] * 2] + [(n_pairs or 30) // 3]


def test_random_pairs_use_all_samples_independently():
    own = np.full(50, -1, dtype=np.int32)
    first, second = pair_samples(own, own, within_batch=False, n_pairs=5000, rng=np.random.default_rng(0))
    assert set(first.tolist()) == set(second.tolist()) == set(range(50))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_as_many_genes_are_flagged_as_keep_the_expected_false_discoveries_on_target():
    proba_g = np.array([0.2, 0.99, 0.9, 1.0, 0.5])
    assert flag_by_fdr(proba_g, 0.05).tolist() == [False, True, True, True, False]  # (0 + 0.01 + 0.1) / 3
    assert flag_by_fdr(proba_g, 0.03).tolist() == [False, True, False, True, False]
    assert not flag_by_fdr(proba_g[[0, 4]], 0.05).any()
    assert flag_by_fdr(proba_g, 0.9).all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: np.concatenate([rng.normal(0, 0.1, 900), rng.normal(2, 0.5, 60), rng.normal(-1.5, 0.5, 60)]),
        lambda rng: np.concatenate([rng.normal(0, 0.1, 990), rng.normal(4, 0.5, 10)]),
        lambda rng: np.concatenate([rng.normal(mean, 0.3, 300) for mean in (-3, 0, 3)]),
    ],
    ids=["two tails", "rare", "apart"],
)
def test_the_mixture_is_that_of_scikit_learn(draw):
    value_g = draw(np.random.default_rng(0))
    expected = np.sort(GaussianMixture(3, random_state=0).fit(value_g[:, None]).means_.ravel())
    np.testing.assert_allclose(mixture_means(value_g), expected, atol=0.02 * np.abs(expected).max())


def test_heavy_tails_on_which_scikit_learn_differs_by_seed_give_one_mixture_in_any_order_of_genes():
    rng = np.random.default_rng(0)
    value_g = 0.3 * rng.standard_t(2, 1000)
    np.testing.assert_allclose(mixture_means(rng.permutation(value_g)), mixture_means(value_g), rtol=1e-6)
    by_seed = [np.sort(GaussianMixture(3, random_state=seed).fit(value_g[:, None]).means_.ravel()) for seed in range(8)]
    assert np.ptp(by_seed, axis=0).max() > 1


def test_a_delta_is_never_below_a_tenth():
    assert estimate_delta(np.random.default_rng(0).normal(0, 0.01, 500)) == 0.1
    assert estimate_delta(np.zeros(500)) == 0.1  # all changes alike


@pytest.mark.parametrize("value_g", [np.zeros(2), np.array([0, 1, np.nan, 2])])
def test_a_mixture_of_too_few_or_of_no_numbers_is_refused(value_g):
    with pytest.raises(
        ValueError, match=r"^delta=None: there are effects of \d genes; at least 3 are needed, all finite"
    ):
        mixture_means(value_g)
