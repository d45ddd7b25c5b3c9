"""Expression by group: equal to decoding in full, by whatever engine, chunks and order of rows."""

import numpy as np
import pandas as pd
import pytest

from dist_scvi.atlas.queries.group_expression import expression
from dist_scvi.inference.encode_decode import expression_query, normalized_expression
from tests.dist_scvi.atlas.queries.memory_atlas import scales

GENES = ["gene7", "gene49", "gene0"]


def decoded(atlas, batch=None):
    """Decode all cells in full."""
    return scales(atlas.module, atlas.cells, None, batch).astype(np.float64)


def expected(atlas, by, value_ng):
    return pd.DataFrame(value_ng, columns=list(atlas.var_names)).groupby(
        [atlas.obs.frame[key] for key in by], observed=True
    )


@pytest.mark.parametrize("engine", ["leaves", "exact"])
@pytest.mark.parametrize("by", [["label"], ["site", "batch"], []])
def test_means_and_spread_of_groups_are_those_of_decoding_in_full(atlas, engine, by):
    answer = expression(atlas, GENES, by, engine=engine, library_size=1e4)
    value_ng = 1e4 * decoded(atlas)
    grouped = expected(atlas, by or ["all"], value_ng) if by else None
    mean, sd = (
        (grouped.mean()[GENES], grouped.std(ddof=0)[GENES])
        if grouped is not None
        else tuple(
            pd.DataFrame([getattr(value_ng, name)(axis=0)], columns=list(atlas.var_names))[GENES]
            for name in ("mean", "std")
        )
    )
    np.testing.assert_allclose(answer.table["mean"], mean.to_numpy().ravel(), rtol=1e-5)
    np.testing.assert_allclose(answer.table["sd"], sd.to_numpy().ravel(), rtol=2e-4)
    np.testing.assert_allclose(answer.table["se"], answer.table["sd"] / np.sqrt(answer.table["n"]))
    assert answer.engine == engine
    assert answer.n_cells == dict(zip(answer.table["group"].unique(), answer.table["n"].iloc[::3], strict=True))


def test_columns_decoded_with_the_stored_normalizer_equal_a_full_decode_within_1e_5(atlas):
    found = expression(atlas, GENES, per_cell=True).table.to_numpy()
    full = decoded(atlas)[:, [7, 49, 0]]
    assert np.max(np.abs(found - full) / full) < 1e-5


def test_the_leaves_answer_only_what_they_can(atlas):
    assert expression(atlas, GENES, "label").engine == "leaves"
    assert expression(atlas, GENES, "label", where="site == 'x'").engine == "leaves"
    obstacles = [
        ({"by": "donor"}, "no unions of leaves"),
        ({"by": "label", "where": "n_counts > 80"}, "no unions of leaves"),
        ({"by": "label", "batch": "b1"}, "own batch"),
        ({"by": "label", "library_size": "latent"}, "cell to cell"),
        ({"by": "label", "threshold": 0.01}, "single cells"),
    ]
    for options, message in obstacles:
        assert expression(atlas, GENES, **options).engine == "exact"
        with pytest.raises(ValueError, match=message):
            expression(atlas, GENES, **options, engine="leaves")


def test_a_filter_keeps_its_cells_alone_and_fractions_count_them(atlas):
    answer = expression(atlas, GENES, ["donor"], where="n_counts > 80", library_size="latent", threshold=1.5)
    frame = atlas.obs.frame
    value_ng = (decoded(atlas) * atlas.cells.library_n[:, None])[:, [7, 49, 0]]
    for donor, part in answer.table.groupby("donor"):
        cells = ((frame["donor"] == donor) & (frame["n_counts"] > 80)).to_numpy()
        np.testing.assert_allclose(part["mean"], value_ng[cells].mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(part["fraction"], (value_ng[cells] > 1.5).mean(axis=0), atol=1e-9)
        assert part["n"].unique() == [cells.sum()]


@pytest.mark.parametrize("batch", ["b1", "average"])
def test_another_batch_is_that_of_the_model(atlas, batch):
    found = expression(atlas, GENES, per_cell=True, batch=batch).table
    names = ["b1"] if batch == "b1" else ["b0", "b1"]
    options = {"gene_list": GENES, "library_size": 1.0, "n_samples": None, "seed": 0}
    query = expression_query(atlas.spec, transform_batch=names, **options)
    np.testing.assert_allclose(found, normalized_expression(atlas.module, atlas.cells, query), rtol=1e-5)


def test_bits_do_not_depend_on_the_order_of_rows_or_chunks(atlas, shuffled):
    for options in (
        {"by": ["label", "donor"]},
        {"by": "label", "where": "n_counts > 70", "library_size": "latent", "threshold": 1.0},
        {"by": "site", "batch": "average"},
    ):
        first, second = (expression(cells, GENES, engine="exact", **options) for cells in (atlas, shuffled))
        pd.testing.assert_frame_equal(first.table, second.table, check_exact=True)
        assert first.notes == second.notes
    one, other = (expression(cells, GENES, per_cell=True).table for cells in (atlas, shuffled))
    pd.testing.assert_frame_equal(one.sort_index(), other.sort_index(), check_exact=True)


def test_the_share_of_cells_with_counts_is_reported(atlas):
    answer = expression(atlas, GENES, "label")
    expected_qg = pd.DataFrame(atlas.counts > 0).groupby(atlas.obs.frame["label"].to_numpy()).mean()
    np.testing.assert_allclose(answer.table["detected"], expected_qg[[7, 49, 0]].to_numpy().ravel())


def test_a_batch_that_shifts_all_shares_is_noted(atlas, monkeypatch):
    assert not any("median gene" in note for note in expression(atlas, GENES, "label", batch="b0").notes)
    shares = atlas.module.shares

    def closed(z_nk, covariates, gene_g=None):
        share_ng = shares(z_nk, covariates, gene_g)
        return share_ng * 0.5 if (covariates.batch_n == 1).all() else share_ng

    monkeypatch.setattr(atlas.module, "shares", closed)
    notes = expression(atlas, GENES, "label", batch="b1").notes
    assert any("multiplies the median gene by 0." in note for note in notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "n_counts"}, "holds numbers"),
        ({"by": "labell"}, "did you mean 'label'"),
        ({"batch": "b2"}, "no batch 'b2'"),
        ({"library_size": 0}, "above 0"),
        ({"library_size": "own"}, "'latent'"),
        ({"threshold": float("nan")}, "finite"),
        ({"engine": "fast"}, "'auto', 'leaves' or 'exact'"),
        ({"where": "site == 'x' and n_counts > 1e7"}, "no cell is left"),
        ({"genes": []}, "at least one"),
        ({"genes": ["gene99"]}, "gene99"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(atlas, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        expression(atlas, **{"genes": GENES} | options)
    assert "\n" not in str(caught.value)


def test_a_column_of_a_million_values_is_no_group_key(atlas, monkeypatch):
    monkeypatch.setattr("dist_scvi.atlas.queries.groups.MAX_CATEGORIES", 4)
    with pytest.raises(ValueError, match="'donor' has 5 values: at most 4 can be groups"):
        expression(atlas, GENES, "donor")
