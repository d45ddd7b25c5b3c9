"""Markers: every group against its rest, as comparing them one by one, at once."""

import numpy as np
import pandas as pd
import pytest

from dist_scvi.atlas.differential.differential_expression import differential_expression
from dist_scvi.atlas.differential.markers import markers
from tests.dist_scvi.atlas.queries.memory_atlas import memory_atlas


@pytest.mark.parametrize("by", ["label", ["label", "site"]])
def test_markers_by_sketch_are_those_of_each_group_against_its_rest(atlas, by):
    answer = markers(atlas, by, n_genes=None, pseudocounts=1e-6)
    assert answer.engine == "sketch"
    columns = [by] if isinstance(by, str) else by
    for values, part in answer.table.groupby(columns):
        cells = " and ".join(f"{key} == '{value}'" for key, value in zip(columns, values, strict=True))
        one = differential_expression(atlas, cells, mode="change", engine="sketch", pseudocounts=1e-6).table
        found = part.set_index("gene").loc[one.index]
        assert np.abs(found["proba_de"] - one["proba_de"]).mean() < 0.005
        np.testing.assert_allclose(found["lfc_mean"], one["lfc_mean"], atol=0.05)
        for column in ("scale1", "scale2", "raw_mean1", "raw_mean2", "non_zeros_proportion2"):
            np.testing.assert_allclose(found[column], one[column], rtol=1e-4, err_msg=column)


def test_the_surest_genes_of_each_group_come_first_and_only_so_many(atlas):
    table = markers(atlas, "label", n_genes=7).table
    assert table.groupby("group")["rank"].apply(list).tolist() == [list(range(1, 8))] * 3
    for _, part in table.groupby("group"):
        assert part["proba_up"].is_monotonic_decreasing


def test_groups_that_are_no_unions_of_leaves_are_sampled(atlas):
    answer = markers(atlas, "donor", n_genes=None, pseudocounts=1e-6, n_samples=100)
    assert answer.engine == "pairs"
    assert set(answer.table["donor"]) == {f"d{donor}" for donor in range(5)}
    one = differential_expression(atlas, "donor == 'd1'", mode="change", n_samples=100, pseudocounts=1e-6).table
    found = answer.table[answer.table["donor"] == "d1"].set_index("gene").loc[one.index]
    assert np.abs(found["proba_de"] - one["proba_de"]).mean() < 0.05
    np.testing.assert_allclose(found["raw_mean1"], one["raw_mean1"], rtol=1e-6)
    with pytest.raises(ValueError, match="no unions of leaves"):
        markers(atlas, "donor", engine="sketch")


def test_bits_do_not_depend_on_rows_or_chunks(atlas, shuffled):
    for by in ("label", "donor"):
        first, other = (markers(cells, by, n_genes=5, n_samples=50).table for cells in (atlas, shuffled))
        pd.testing.assert_frame_equal(first, other, check_exact=True)


def test_one_group_has_no_markers(atlas):
    with pytest.raises(ValueError, match="markers need two"):
        markers(atlas, "label", where="label == 'T'")
    with pytest.raises(ValueError, match="n_genes=0"):
        markers(atlas, "label", n_genes=0)


def test_many_small_leaves_agree_with_few_large_ones(model, annotated):
    fine = memory_atlas(model, annotated, ["label", "batch", "site", "donor"])
    coarse = memory_atlas(model, annotated, ["label"])
    first, second = (
        markers(cells, "label", n_genes=None, pseudocounts=1e-6).table.set_index(["group", "gene"]).sort_index()
        for cells in (fine, coarse)
    )
    assert np.abs(first["proba_de"] - second["proba_de"]).mean() < 0.006
