"""Labels of cells of new donors: right, calibrated and covered, or refused in one line."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from dist_scvi.atlas.annotation import annotate as question
from dist_scvi.atlas.annotation import calibration
from dist_scvi.atlas.annotation.annotate import annotate_by_model, prediction_sets, top_labels
from dist_scvi.atlas.annotation.label_scores import voted
from dist_scvi.atlas.atlas import Atlas, open_atlas
from tests.dist_scvi.atlas.annotation.conftest import Annotated


def right(answer, new: ad.AnnData) -> np.ndarray:
    return answer.table["label"].to_numpy() == new.obs["cell_type"].to_numpy()


def error(answer, new: ad.AnnData) -> float:
    """The expected calibration error over 15 bins."""
    confidence_n = answer.table["probability"].to_numpy()
    bin_n = np.minimum((confidence_n * 15).astype(int), 14)
    return np.abs(np.bincount(bin_n, weights=confidence_n - right(answer, new))).sum() / len(confidence_n)


@pytest.mark.parametrize("method", ["classifier", "neighbors"])
def test_new_donors_are_labelled_covered_and_calibrated(trained: Annotated, method, monkeypatch):
    for coverage in (0.95, 0.9):
        answer = trained.atlas.annotate(trained.new, method=method, coverage=coverage)
        sets = [text.split(" | ") for text in answer.table["prediction_set"]]
        covered = np.mean([name in names for name, names in zip(trained.new.obs["cell_type"], sets, strict=True)])
        assert abs(covered - coverage) < 0.02
        assert [len(names) if names != [""] else 0 for names in sets] == list(answer.table["set_size"])
    assert right(answer, trained.new).mean() > 0.7
    assert list(answer.table.index) == list(trained.new.obs_names)
    report = answer.parameters["calibration"]
    assert (report["replicate"], report["replicates"]) == ("donor", 12)
    assert report["calibration_error"] < report["calibration_error_before"]
    monkeypatch.setattr(calibration, "fit_temperature", lambda *_: 1.0)
    before = open_atlas(trained.atlas.uri).annotate(trained.new, method=method)
    assert error(answer, trained.new) < error(before, trained.new)


def test_answers_are_equal_in_any_chunks_and_from_any_store(trained: Annotated, tmp_path: Path, monkeypatch):
    new = trained.new[:700].copy()
    first = trained.atlas.annotate(new, "cell_type")
    new.write_h5ad(tmp_path / "new.h5ad")
    again = open_atlas(trained.atlas.uri).annotate(tmp_path / "new.h5ad", "cell_type")
    pd.testing.assert_frame_equal(first.table, again.table)
    monkeypatch.setattr("dist_scvi.atlas.queries.new_cells.encode_new_cells.__defaults__", (64,))
    chunked = trained.atlas.annotate(new, "cell_type")
    assert (chunked.table["label"] == first.table["label"]).mean() > 0.999
    np.testing.assert_allclose(chunked.table["probability"], first.table["probability"], rtol=1e-3)


def test_cells_unlike_the_atlas_are_outliers(trained: Annotated):
    strange = trained.new[:60].copy()
    strange.X = strange.X[:, np.random.default_rng(0).permutation(60)] * 20
    answer = trained.atlas.annotate(strange, method="neighbors")
    usual = trained.atlas.annotate(trained.new, method="neighbors").table["ood_score"]
    assert answer.table["ood_score"].median() > 0.99
    assert (usual > 0.99).mean() < 0.05
    assert "farther from the atlas" in answer.notes[-1]


def test_genes_are_matched_by_symbols_and_the_overlap_is_reported(trained: Annotated):
    some = trained.new[:50, :40].copy()
    some.var_names = [f"ENSG{gene:011d}.{gene}" for gene in range(40)]
    answer = trained.atlas.annotate(some)
    overlap = answer.parameters["gene_overlap"]
    assert (overlap["n_matched"], overlap["n_genes"], overlap["share"]) == (40, 60, 40 / 60)
    assert "var['symbol']" in overlap["matched_by"]
    assert any("below 80 %" in note for note in answer.notes)


def test_votes_are_weighted_by_distance_and_less_certain_far_away():
    label_nk = np.array([[0, 0, 1], [0, 0, 1], [0, -1, -1]])
    square_nk = np.array([[1, 1, 4], [100, 100, 400], [1, np.inf, np.inf]], np.float32)
    share_nl = np.exp(voted(label_nk, square_nk, 2, typical=2.0))
    weight = np.exp(-np.array([1, 1, 4]) / 2)
    near = np.array([weight[0] + weight[1], weight[2]]) + 1 / 2
    np.testing.assert_allclose(share_nl[0], near / near.sum(), rtol=1e-6)
    assert 0.5 < share_nl[1, 0] < 0.52
    assert share_nl[2, 0] > share_nl[2, 1]


def test_a_set_names_the_labels_above_the_threshold():
    log_nl = np.log([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25], [0.98, 0.01, 0.01]])
    sets = prediction_sets(log_nl, np.log(0.3), ("a", "b", "c"))
    assert list(sets["prediction_set"]) == ["a | b", "a | b", "a"]
    assert list(prediction_sets(log_nl, np.log(0.99), ("a", "b", "c"))["prediction_set"]) == ["", "", ""]
    table = top_labels(log_nl, ("a", "b", "c"))
    assert list(table["second_label"]) == ["b", "b", "b"]
    np.testing.assert_allclose(table["second_probability"], [0.3, 0.35, 0.01])


def test_a_model_alone_labels_without_calibration(trained: Annotated):
    answer = annotate_by_model(trained.model.module, trained.model.spec, "model", trained.new[:80].copy())
    np.testing.assert_array_equal(answer.table["label"], trained.atlas.annotate(trained.new[:80].copy()).table["label"])
    assert "prediction_set" not in answer.table
    assert "not calibrated" in answer.notes[0]


def test_the_calibration_is_made_once(trained: Annotated, monkeypatch):
    trained.atlas.annotate(trained.new[:5].copy(), "donor", k=5)
    monkeypatch.setattr(calibration, "_calibrate", lambda *_: pytest.fail("calibrated again"))
    trained.atlas.annotate(trained.new[:5].copy(), "donor", k=5)


def test_the_cost_is_explained(trained: Annotated):
    plan = trained.atlas.explain("annotate", new_counts=trained.new)
    assert (plan.engine, plan.decoded, plan.cells) == ("classifier", 2400, 3000)
    with pytest.raises(ValueError, match="did you mean 'cell_type'"):
        trained.atlas.explain("annotate", new_counts=trained.new, label="cell_typ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "celltype"}, "did you mean 'cell_type'"),
        ({"label": "donor", "method": "classifier"}, "has no classifier of 'donor': use method='neighbors'"),
        ({"method": "neighbours"}, "did you mean 'neighbors'"),
        ({"coverage": 90}, "coverage=90: a probability between 0 and 1"),
        ({"k": 0}, "k=0: from 1 to"),
        ({"k": 10**6}, "k=1000000: from 1 to"),
        ({"where": "donor == 'd99'"}, "has no value 'd99'"),
        ({"where": "donor == 'd1'", "replicate": "donor"}, "one value among the labelled cells"),
        ({"replicate": "doner"}, "did you mean 'donor'"),
        ({"min_overlap": 2}, "min_overlap=2: a share"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(trained: Annotated, options, message):
    with pytest.raises(ValueError, match=message):
        trained.atlas.annotate(trained.new[:9].copy(), **options)


def test_labels_that_are_no_labels_are_refused(atlas: Atlas, trained: Annotated, monkeypatch):
    with pytest.raises(ValueError, match="obs column 'age' holds numbers"):
        atlas.annotate(trained.new, "age")
    monkeypatch.setattr(calibration, "MAX_LABELS", 2)
    with pytest.raises(ValueError, match="obs column 'site' has 3 values: at most 2 can be labels"):
        atlas.annotate(trained.new, "site")


def test_new_cells_that_do_not_fit_are_refused(trained: Annotated, tmp_path: Path):
    few = trained.new[:9, :12].copy()
    with pytest.raises(ValueError, match=r"12 of the 60 genes of the model \(20%\), min_overlap=0.5 needs more"):
        trained.atlas.annotate(few)
    normalised = trained.new[:9].copy()
    normalised.X = normalised.X.log1p()
    normalised.write_h5ad(tmp_path / "normalised.h5ad")
    with pytest.raises(ValueError, match="counts"):
        trained.atlas.annotate(tmp_path / "normalised.h5ad")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        trained.atlas.annotate(tmp_path / "absent.h5ad")


def test_without_batches_each_cell_is_held_out_alone(trained: Annotated):
    answer = trained.atlas.annotate(trained.new[:9].copy(), where="donor == 'd1'")
    assert answer.parameters["calibration"]["replicates"] == 0
    assert any("held out alone" in note for note in answer.notes)
    assert question.SEPARATOR == " | "
