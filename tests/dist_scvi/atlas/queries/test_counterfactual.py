"""Expected expression of cells that are decoded as of another batch or condition."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dist_scvi.atlas.queries.counterfactual import counterfactual
from dist_scvi.atlas.queries.group_expression import expression
from tests.dist_scvi.atlas.queries.memory_atlas import scales

GENES = ["gene7", "gene0", "gene33"]


def test_cells_are_decoded_with_the_other_batch_and_stay_where_they_are(atlas, shuffled):
    answer = counterfactual(atlas, "b0", "b1", GENES, by="label")
    table = answer.table
    for column, batch in (("mean_from", "own"), ("mean_to", "b1")):
        expected = expression(atlas, GENES, "label", where="batch == 'b0'", batch=batch, engine="exact").table
        np.testing.assert_allclose(table[column], expected["mean"], rtol=1e-5)
        assert list(table["n"]) == list(expected["n"])
        if batch != "own":
            np.testing.assert_allclose(table["se"], expected["se"], rtol=1e-4)
    np.testing.assert_allclose(table["lfc"], np.log2(table["mean_to"] / table["mean_from"]))
    assert (answer.batch, answer.engine, answer.parameters["key"]) == ("b1", "exact", "batch")
    pd.testing.assert_frame_equal(table, counterfactual(shuffled, "b0", "b1", GENES, by="label").table)


def test_a_covariate_of_the_model_can_be_changed_instead_of_the_batch(atlas):
    found = counterfactual(atlas, ["x", "y"], "z", GENES, key="site").table
    chosen = np.flatnonzero(np.isin(atlas.obs.frame["site"], ["x", "y"]))
    cells = atlas.cells.take(chosen)
    changed = replace(cells, categorical_nc=np.full_like(cells.categorical_nc, 2))
    for column, part in (("mean_from", cells), ("mean_to", changed)):
        expected = scales(atlas.module, part, None)[:, atlas.gene_index(GENES)].mean(axis=0)
        np.testing.assert_allclose(found[column], expected, rtol=1e-5)
    assert np.abs(found["lfc"]).max() > 0


def test_intervals_cover_the_mean_of_all_cells_when_some_of_them_are_drawn(atlas):
    whole = counterfactual(atlas, "b0", "b1", GENES).table
    rows, rng = np.flatnonzero(atlas.obs.frame["batch"] == "b0"), np.random.default_rng(0)
    covered = []
    for _ in range(30):
        drawn = counterfactual(atlas, "b0", "b1", GENES, where=rng.choice(rows, 30, replace=False)).table
        covered.append((drawn["lfc_low"] <= whole["lfc"]) & (whole["lfc"] <= drawn["lfc_high"]))
    assert 0.88 < np.mean(covered) <= 1


def test_composition_and_extrapolation_are_noted(atlas):
    notes = " ".join(counterfactual(atlas, "b0", "b1", GENES, by="donor", where="donor == 'd1' or batch == 'b0'").notes)
    assert "4 groups have no cell with batch 'b1'" in notes
    assert "shares add up to 1" in " ".join(counterfactual(_raising(atlas), "b0", "b1", GENES).notes)


def _raising(atlas):
    """An atlas whose batch b1 raises a gene so far that all others fall."""
    module = atlas.spec.build().eval()
    module.load_state_dict(atlas.module.state_dict())
    shares = module.shares
    large = module.decoder.px_scale_decoder[0].bias

    def changed(z_nk, covariates, gene_g=None):
        large.data[5] = 12.0 if bool((covariates.batch_n == 1).all()) else 0.0
        return shares(z_nk, covariates, gene_g)

    module.shares = changed
    return replace(atlas, module=module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"from_": "b0", "to": "b2"}, "has no value 'b2': it has 'b0'"),
        ({"from_": "b0", "to": "b0"}, "are both 'b0'"),
        ({"from_": "c", "to": "b1"}, "has no value 'c'"),
        ({"from_": "x", "to": "y", "key": "donor"}, "is no covariate of the model, which was trained with batch, site"),
        ({"from_": "b0", "to": "b1", "level": 2}, "between 0 and 1"),
    ],
)
def test_what_the_decoder_does_not_know_is_refused(atlas, arguments, message):
    with pytest.raises(ValueError, match=message):
        counterfactual(atlas, **arguments, genes=GENES)
