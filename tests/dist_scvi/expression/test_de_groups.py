"""Who is compared with whom, which cells lie outside, and what is counted of the groups.

Shape letters: n cells, g genes, q groups, m cells of a group, k latent dimensions.
"""

import numpy as np
import pytest
from sklearn.covariance import EllipticEnvelope

from dist_scvi.expression.de_groups import (
    CountMeans,
    RawMoments,
    count_columns,
    decoding_batches,
    draw_numbers,
    groups_by_cells,
    groups_by_column,
    inliers,
    marked_cells,
    rows_at,
)

CODE = np.array([0, 1, 0, -1, 2, 1], dtype=np.int32)
KINDS = ("A", "B", "C", "unused")


def by_kind(group1=None, group2=None):
    return groups_by_column(CODE, KINDS, group1, group2, groupby="kind")


def test_by_default_every_category_with_cells_is_compared_with_all_other_cells():
    groups = by_kind()
    assert (groups.first, groups.second) == ((0, 1, 2), None)
    assert groups.member_n(1, 0).tolist() == [False, True, False, False, False, True]
    assert groups.member_n(1, 1).tolist() == [True, False, True, True, True, False]  # with the cell of no category


def test_categories_are_compared_in_the_order_given():
    groups = by_kind(["C", "A"], "B")
    assert (groups.first, groups.second) == ((2, 0), 1)
    assert groups.member_n(2, 1).tolist() == groups.member_n(0, 1).tolist() == (CODE == 1).tolist()
    assert by_kind("C").first == by_kind(["C"]).first == by_kind(np.array(["C"])).first == (2,)


def test_a_category_may_be_named_by_a_number():
    groups = groups_by_column(CODE, ("0", "1", "2"), 0, 2, groupby="lane")
    assert (groups.first, groups.second) == ((0,), 2)


@pytest.mark.parametrize(
    ("group1", "group2", "message"),
    [
        ("D", None, r"^obs column 'kind' has no category 'D': it has A, B, C$"),
        (["A", "D"], None, r"has no category 'D'"),
        ("A", "D", r"has no category 'D'"),
        ("unused", None, r"^obs column 'kind' has no cells of category 'unused': it has A, B, C$"),
        ([], None, r"^group1 is empty, and obs column 'kind' has 3 categories with cells \(A, B, C\)"),
    ],
)
def test_categories_that_are_not_there_are_refused_and_those_that_are_named(group1, group2, message):
    with pytest.raises(ValueError, match=message):
        by_kind(group1, group2)


def test_a_column_with_one_category_leaves_nothing_to_compare_with():
    code_n = np.zeros(4, dtype=np.int32)
    with pytest.raises(ValueError, match=r"^group1 is not given, and obs column 'kind' has 1 categories"):
        groups_by_column(code_n, ("A",), None, None, groupby="kind")
    with pytest.raises(ValueError, match=r"^every cell is of category 'A' of obs column 'kind': there is no rest"):
        groups_by_column(code_n, ("A",), "A", None, groupby="kind")


def mask(*rows: int) -> np.ndarray:
    return np.isin(np.arange(6), rows)


def test_marked_cells_are_compared_with_others_or_with_all_others():
    groups = groups_by_cells(mask(0, 1), mask(4))
    assert np.array_equal(groups.member_n(0, 0), mask(0, 1))
    assert np.array_equal(groups.member_n(0, 1), mask(4))
    assert np.array_equal(groups_by_cells(mask(0, 1), None).member_n(0, 1), mask(2, 3, 4, 5))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (mask(0, 1, 2), mask(1, 2, 3), r"^idx1 and idx2 share 2 cells \(rows 1, 2\)"),
        (mask(), mask(1), r"^idx1 has no cells: at least one of 6"),
        (mask(1), mask(), r"^idx2 has no cells"),
        (~mask(), None, r"^idx2, or the rest, has no cells"),
    ],
)
def test_marked_groups_that_overlap_or_are_empty_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        groups_by_cells(first, second)


@pytest.mark.parametrize("groups", [by_kind(), by_kind("A", "C"), by_kind("B"), groups_by_cells(mask(0), mask(4, 5))])
def test_the_counts_of_a_group_are_those_of_its_members(groups):
    counts_ng = np.random.default_rng(0).poisson(2, (6, 4))
    code_n, n = groups.counted_n(), len(groups.names) + 1
    parts = [code_n == code for code in range(n)]
    sums = np.array([counts_ng[part].sum(axis=0) for part in parts])
    moments = RawMoments(sums * 1.0, sums, sums * 2.0, np.array([part.sum() for part in parts]))
    for first in groups.first:
        for side in (0, 1):
            found = moments.means(groups.counted_q(first, side))
            expected = counts_ng[groups.member_n(first, side)].mean(axis=0)
            np.testing.assert_allclose(found.count_g, expected)
            np.testing.assert_allclose(found.normalized_g, 2 * expected)


def test_cells_that_no_group_needs_are_not_counted():
    assert by_kind("A", "C").counted_n().tolist() == [0, -1, 0, -1, 2, -1]
    assert by_kind("A").counted_n().tolist() == [0, 1, 0, len(KINDS), 2, 1]


def test_columns_of_counts_are_named_and_ordered_as_in_scvi_tools():
    first, second = (CountMeans(*(np.full(2, value) for value in values)) for values in ((1, 2, 3), (4, 5, 6)))
    found = count_columns(first, second)
    assert [(name, int(value[0])) for name, value in found.items()] == [
        *(("raw_mean1", 1), ("raw_mean2", 4), ("non_zeros_proportion1", 2), ("non_zeros_proportion2", 5)),
        *(("raw_normalized_mean1", 3), ("raw_normalized_mean2", 6)),
    ]


@pytest.mark.parametrize("cells", [[1, 4], np.array([4, 1, 4]), mask(1, 4), mask(1, 4).tolist(), "odd"])
def test_cells_may_be_chosen_by_rows_mask_or_query(cells):
    assert np.array_equal(marked_cells("idx1", cells, 6, {"odd": mask(1, 4)}.__getitem__), mask(1, 4))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([0, 6], r"^idx2 runs from 0 to 6: there are cells 0 to 5$"),
        ([-1], r"^idx2 runs from -1 to -1"),
        ([True, False], r"^idx2 is a mask of 2 cells: one of 6"),
        ([0.5], r"^idx2 holds .*0.5.*: row numbers are needed"),
        ("kind == 'A'", r"^idx2=\"kind == 'A'\": these cells have no obs to query"),
    ],
)
def test_choices_that_are_no_cells_are_refused(cells, message):
    with pytest.raises(ValueError, match=message):
        marked_cells("idx2", cells, 6, None)


def test_members_are_found_by_their_place_across_pages():
    member_n = np.random.default_rng(0).random(200_000) < 0.3
    member_n[65_536:131_072] = False  # a page of none
    rows = np.flatnonzero(member_n)
    place = np.array([0, len(rows) - 1, 7, 7, np.searchsorted(rows, 131_072), np.searchsorted(rows, 131_072) - 1])
    assert np.array_equal(rows_at(member_n, place), rows[place])
    assert np.array_equal(rows_at(member_n, np.arange(len(rows))), rows)


def test_each_occurrence_of_a_row_has_a_draw_of_its_own():
    row_s = np.array([5, 3, 5, 5, 3, 9])
    assert draw_numbers(row_s, 0).tolist() == [0, 0, 2, 4, 2, 0]
    assert draw_numbers(row_s, 1).tolist() == [1, 1, 3, 5, 3, 1]


def test_batches_are_all_by_default_and_none_without_correction():
    assert decoding_batches(["x", "y"], None, None, batch_correction=False) == ((None,), (None,))
    assert decoding_batches(["x", "y"], None, None, batch_correction=True) == ((0, 1), (0, 1))
    assert decoding_batches(["x", "y", "z"], "z", ["x", "y", "x"], batch_correction=True) == ((2,), (0, 1))
    assert decoding_batches(["0", "1"], 1, [1], batch_correction=True) == ((1,), (1,))


@pytest.mark.parametrize(
    ("categories", "batchid1", "batchid2", "correct", "message"),
    [
        (["x", "y"], "x", None, False, r"^batchid1 and batchid2 need batch_correction=True"),
        ([], None, None, True, r"^batch_correction=True: the model was trained without a batch_key"),
        (["x", "y"], ["x", "w"], None, True, r"^batchid1 holds 'w': the batches of the model are x, y$"),
        (["x", "y"], None, [], True, r"^batchid2 is empty"),
        (["x", "y"], "y", None, True, r"^batchid1 and batchid2 share 'y' but are not the same"),
    ],
)
def test_batches_that_make_no_sense_are_refused(categories, batchid1, batchid2, correct, message):
    with pytest.raises(ValueError, match=message):
        decoding_batches(categories, batchid1, batchid2, batch_correction=correct)


@pytest.mark.parametrize(("m", "k"), [(60, 2), (300, 5), (1000, 10), (40, 1)])
def test_outliers_are_those_of_scikit_learn(m, k):
    rng = np.random.default_rng(0)
    value_mk = rng.normal(size=(m, k)) @ rng.normal(size=(k, k))
    far = rng.choice(m, m // 20, replace=False)
    value_mk[far] += 6 * np.abs(value_mk).std()
    kept_m = inliers(value_mk.astype(np.float32), np.random.default_rng(0))
    assert not kept_m[far].any()
    assert kept_m.sum() == round(0.9 * m)
    assert np.mean(kept_m != (EllipticEnvelope(random_state=0).fit_predict(value_mk) == 1)) <= 0.01


def test_a_far_cluster_of_a_third_of_the_cells_does_not_pull_the_centre():
    rng = np.random.default_rng(0)
    value_mk = np.concatenate([rng.normal(size=(200, 3)), rng.normal(40, 1, (100, 3))])
    kept_m = inliers(value_mk, rng, contamination=1 / 3)
    assert kept_m[:200].all()
    assert not kept_m[200:].any()


@pytest.mark.parametrize(
    "value_mk",
    [np.zeros((50, 3)), np.eye(3), np.ones((1, 2)), np.random.default_rng(0).normal(size=(50, 2))[:, [0, 1, 1]]],
)
def test_cells_too_few_or_too_alike_have_no_outliers(value_mk):
    assert inliers(value_mk, np.random.default_rng(0)) is None
