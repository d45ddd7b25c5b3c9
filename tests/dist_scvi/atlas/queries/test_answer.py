"""Answers keep where they come from, whatever they are turned into."""

import json

import pandas as pd
import pytest

from dist_scvi.atlas.queries.answer import Answer


@pytest.fixture
def answer() -> Answer:
    table = pd.DataFrame(
        {"group": ["T", "T", "B"], "gene": ["g0", "g1", "g0"], "mean": [0.1, 0.2, 0.0], "se": 0.01, "fraction": 0.5}
    )
    made = {"digest": "ab" * 32, "seed": 3, "parameters": {"genes": ["g0", "g1"]}, "notes": ("T has 3 cells",)}
    return Answer("expression", table, "exact", "own", {"T": 3, "B": 9}, "atlas", **made)


@pytest.fixture
def change() -> Answer:
    genes = pd.Index(["g0", "g1"])
    table = pd.DataFrame({"proba_de": [0.9, 0.1], "lfc_mean": [2.0, 0.1], "is_de_fdr_0.05": [True, False]}, index=genes)
    return Answer("differential_expression", table, "pairs", "own", {"T": 3, "B": 9}, "atlas", "")


def test_pandas_and_arrow_tables_carry_the_provenance(answer):
    expected = json.loads(json.dumps(answer.provenance))
    assert answer.to_pandas().attrs == answer.provenance
    assert json.loads(answer.to_arrow().schema.metadata[b"dist_scvi"]) == expected
    assert expected["digest"] == "ab" * 32
    assert expected["n_cells"] == {"T": 3, "B": 9}


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_a_written_answer_reads_back_and_is_not_replaced_unasked(change, tmp_path, ending):
    path = tmp_path / f"answer.{ending}"
    change.write(path)
    found = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[ending](path)
    assert found["index"].tolist() == ["g0", "g1"]
    assert found["proba_de"].tolist() == [0.9, 0.1]
    with pytest.raises(ValueError, match="exists"):
        change.write(path)
    change.write(path, overwrite=True)


def test_another_ending_is_refused(change, tmp_path):
    with pytest.raises(ValueError, match=r"\.csv, \.json, \.parquet"):
        change.write(tmp_path / "answer.xlsx")


def test_each_answer_has_its_plot(answer, change, tmp_path):
    dots, volcano = answer.plot(), change.plot()
    assert [label.get_text() for label in dots.get_yticklabels()] == ["T", "B"]
    assert [text.get_text() for text in volcano.texts] == ["g0", "g1"]
    cells = Answer("cells", pd.DataFrame({"g0": [0.1, 0.3], "g1": [1.0, 2.0]}), "exact", "own", {}, "atlas", "")
    assert [label.get_text() for label in cells.plot().get_xticklabels()] == ["g0", "g1"]
    for axes in (dots, volcano):
        axes.figure.savefig(tmp_path / "plot.png")


@pytest.mark.parametrize(("kind", "message"), [("volcano", "mode='change'"), ("pie", "can be drawn")])
def test_a_plot_that_does_not_fit_is_refused(answer, kind, message):
    with pytest.raises(ValueError, match=message):
        answer.plot(kind)


def test_what_a_notebook_shows_names_engine_cells_and_notes(answer):
    for shown in (repr(answer), answer._repr_html_()):
        assert "expression of 3 rows by exact, batch own; cells T: 3, B: 9" in shown
        assert "note: T has 3 cells" in shown
