"""Latent positions, labels and drawn counts of chosen cells."""

import numpy as np
import pytest

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.queries import cell_values
from dist_scvi.model import SCVI


def test_latent_positions_are_those_of_the_cells_chosen(atlas: Atlas):
    answer = atlas.latent("label == 'T' and site == 'x'", return_dist=True)
    rows = atlas.where("label == 'T' and site == 'x'").rows(atlas)
    mean_nk, variance_nk = atlas.get_latent_representation(rows, return_dist=True)
    np.testing.assert_array_equal(answer.table, np.concatenate([mean_nk, variance_nk], axis=1))
    assert list(answer.table.columns[[0, 4]]) == ["latent_0", "variance_0"]
    assert list(answer.table.index) == list(atlas.obs_names(rows))
    ordered = atlas.latent(indices=[300, 7, 300])
    np.testing.assert_array_equal(ordered.table, atlas.get_latent_representation([300, 7, 300]))
    assert ordered.to_arrow().num_rows == 3
    assert len(atlas.latent()) == 403


def test_drawn_counts_do_not_depend_on_blocks_numbers_or_genes(atlas: Atlas, monkeypatch):
    options = {"where": "label != 'NK'", "seed": 4}
    many = atlas.sample(150, **options).table
    np.testing.assert_array_equal(atlas.sample(40, **options).table, many[:40])
    some = atlas.sample(40, genes=["SYM9", "gene3"], **options).table
    np.testing.assert_array_equal(some, many[["gene9", "gene3"]][:40])
    monkeypatch.setattr(cell_values, "_READ_CELLS", 64)
    np.testing.assert_array_equal(open_atlas(atlas.uri).sample(150, **options).table, many)
    assert not np.array_equal(atlas.sample(150, where="label != 'NK'", seed=5).table, many)
    assert set(many.index) <= set(atlas.obs_names(atlas.where("label != 'NK'").rows(atlas)))
    assert many.index.is_unique


def test_drawn_counts_have_the_mean_of_the_model(atlas: Atlas, model: SCVI):
    drawn = atlas.sample(403 * 6, library_size=500.0, genes=["gene0", "gene1", "gene2"])
    assert (drawn.table.to_numpy() % 1 == 0).all()
    assert drawn.table.index.value_counts().eq(6).all()
    zero_ng = model.get_likelihood_parameters()["dropout"][atlas.read_source_row(), :3]
    mean_ng = atlas.get_normalized_expression(["gene0", "gene1", "gene2"], library_size=500.0, n_samples=6)
    error_g = np.abs(drawn.table.mean() - (mean_ng * (1 - zero_ng)).mean())
    assert (error_g < 4 * drawn.table.std() / np.sqrt(len(drawn))).all()
    assert error_g["gene2"] < 0.1 * mean_ng["gene2"].mean()  # with little zero inflation the mean is exact enough
    first, second = drawn.table[:403], drawn.table[403:806]
    assert list(first.index) == list(second.index)
    assert not first.equals(second)


def test_drawn_counts_are_of_the_batch_requested(atlas: Atlas):
    total = {batch: atlas.sample(403, batch=batch).table.to_numpy().mean(axis=0) for batch in ("b0", "b1", "average")}
    assert np.corrcoef(total["average"], (total["b0"] + total["b1"]) / 2)[0, 1] > 0.9
    assert not np.array_equal(total["b0"], total["b1"])
    assert (atlas.sample(50, batch="average").table.to_numpy() % 1 == 0).all()


def test_the_cost_is_explained(atlas: Atlas):
    assert atlas.explain("latent", where="label == 'T'").cells == atlas.where("label == 'T'").n_cells
    plan = atlas.explain("sample", n=90, where="label == 'T'")
    assert (plan.engine, plan.decoded) == ("draws", 90)
    with pytest.raises(ValueError, match="only SCANVI predicts labels"):
        atlas.explain("predict")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda atlas: atlas.latent("label == 'T'", indices=[1]), "where and indices are given"),
        (lambda atlas: atlas.latent(indices=[]), "indices is empty"),
        (lambda atlas: atlas.latent("labl == 'T'"), "did you mean 'label'"),
        (lambda atlas: atlas.latent("label == 'T' and age > 1e9"), "no cell is left"),
        (lambda atlas: atlas.sample(0), "n=0: a whole number from 1 on"),
        (lambda atlas: atlas.sample(10**9), "at most 268,435,456 are returned"),
        (lambda atlas: atlas.sample(3, batch="b2"), "no batch 'b2'"),
        (lambda atlas: atlas.sample(3, library_size=-1), "library_size=-1"),
        (lambda atlas: atlas.sample(3, genes=["gen3"]), "did you mean"),
        (lambda atlas: atlas.sample(3, genes=[]), "genes is empty"),
    ],
)
def test_what_cannot_be_drawn_is_refused(atlas: Atlas, ask, message: str):
    with pytest.raises(ValueError, match=message):
        ask(atlas)
