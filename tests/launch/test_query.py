"""``dist-scvi query``: a table for each question, and no option that is taken and not heeded."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import read_zarr

from dist_scvi import SCANVI, SCVI, open_atlas
from dist_scvi import open_data as open_cells
from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.arguments import parse
from dist_scvi.launch.cli import main
from dist_scvi.launch.query import _neutral, query
from dist_scvi.loaders.simulate import simulate


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("query")
    simulate(folder / "cells.zarr", n_cells=120, n_genes=30, n_types=3, n_batches=2, seed=0)
    data = open_cells(folder / "cells.zarr", batch_key="batch", labels_key="cell_type", unlabeled_category="none")
    model = SCANVI(data, n_hidden=8, n_latent=3)
    model.train(1, enable_progress_bar=False)
    model.minify(folder / "atlas")
    return folder / "atlas"


def ask(atlas: Path, *words: str) -> pd.DataFrame:
    answer = query(parse(["query", str(atlas), *words], {"query": lambda _: 0}))
    assert isinstance(answer, Answer)
    return answer.table


def test_each_question_has_its_table(atlas: Path) -> None:
    opened = open_atlas(atlas)
    latent = ask(atlas, "latent")
    assert list(latent.columns) == ["latent_0", "latent_1", "latent_2"]
    np.testing.assert_array_equal(latent, opened.get_latent_representation())
    np.testing.assert_array_equal(ask(atlas, "labels")["label"], opened.predict())
    np.testing.assert_array_equal(ask(atlas, "labels", "--soft"), opened.predict(soft=True))
    by = ask(atlas, "expression", "--by", "cell_type", "--genes", "gene0001", "--library-size", "100")
    assert list(by.columns) == ["n_cells", "gene0001"]
    one = ask(atlas, "expression", "--by", "cell_type", "--genes", "gene0001")
    np.testing.assert_allclose(by["gene0001"], 100 * one["gene0001"])


def test_genes_that_the_atlas_lacks_are_refused_or_left_out_on_request(atlas: Path, capsys) -> None:
    with pytest.raises(ValueError, match=r"'Gene0001': did you mean 'gene0001'\?$"):
        ask(atlas, "expression", "--genes", "Gene0001,gene0002")
    for query_of_genes in (["expression"], ["group-expression", "--by", "batch"]):
        answer = ask(atlas, *query_of_genes, "--genes", "Gene0001,gene0002", "--skip-missing")
        assert "gene0002" in str(answer)
        assert "gene0001" not in str(answer)
        assert "left out 1 of 2 genes: 'Gene0001' (did you mean 'gene0001'?)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="none of the 1 genes"):
        ask(atlas, "expression", "--genes", "x", "--skip-missing")


def test_neighbours_labels_and_drawn_counts_are_queries(atlas: Path) -> None:
    opened = open_atlas(atlas)
    names = list(opened.obs_names([7, 3]))
    of_names = ask(atlas, "neighbors", "--cells", ",".join(names), "--k", "4")
    pd.testing.assert_frame_equal(of_names, opened.neighbors(names, 4).table)
    words = ["--query", "cell_type == 'type01'", "--metric", "posterior", "--where", "batch == 'batch01'"]
    by_filter = ask(atlas, "neighbors", *words, "--k", "2")
    expected = opened.neighbors("cell_type == 'type01'", 2, metric="posterior", where="batch == 'batch01'")
    pd.testing.assert_frame_equal(by_filter, expected.table)
    predicted = ask(atlas, "predict")
    np.testing.assert_array_equal(predicted["label"], opened.predict())
    np.testing.assert_allclose(predicted["probability"], opened.predict(soft=True).max(axis=1), rtol=1e-6)
    drawn = ask(atlas, "sample", "--n", "9", "--genes", "gene0002", "--batch", "batch02", "--seed", "3")
    pd.testing.assert_frame_equal(drawn, opened.sample(9, genes=["gene0002"], batch="batch02", seed=3).table)
    for words in (["sample", "--n", "9"], ["predict"], ["latent"], ["neighbors", "--cells", names[0]]):
        options = parse(["query", str(atlas), *words, "--explain"], {"query": lambda _: 0})
        assert words[0] in query(options)
    with pytest.raises(ValueError, match=r"needs --query FILTER\|STORE, or --cells"):
        ask(atlas, "neighbors")


def test_cells_are_named_or_chosen_by_a_column(atlas: Path) -> None:
    names = list(open_atlas(atlas).obs_names([7, 3]))
    assert list(ask(atlas, "latent", "--cells", ",".join(names)).index) == names
    assert 0 < len(ask(atlas, "labels", "--where", "batch=batch01")) < 120


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["latent", "--genes", "gene0001"],
            r"^--genes does not belong to 'query latent', but to expression, group",
        ),
        (
            ["labels", "--by", "batch"],
            r"^--by does not belong to 'query labels', but to .*, counterfactual$",
        ),
        (["expression", "--soft"], r"^--soft does not belong to 'query expression', but to labels, predict$"),
        (["labels", "--seed", "3"], r"^--seed does not belong"),
    ],
)
def test_an_option_of_another_question_is_refused(atlas: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(atlas, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["latent", "--cells", "a", "--where", "batch=x"], "not allowed with"),
        (["latent", "--cells", ""], "one name or several"),
        (["expression", "--library-size", "nan"], "a number above 0 is needed, or 'latent'"),
        (["expression", "--library-size", "0"], "a number above 0 is needed, or 'latent'"),
        (["expression", "--n-samples", "0"], "a whole number from 1 on is needed"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    atlas: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        ask(atlas, *words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_batch_a_gene_or_a_cell_whose_name_holds_a_comma_can_be_named(tmp_path: Path) -> None:
    simulate(tmp_path / "cells.zarr", n_cells=60, n_genes=20, n_batches=2, seed=0)
    cells = read_zarr(tmp_path / "cells.zarr")
    cells.obs["batch"] = cells.obs["batch"].cat.rename_categories(["d1, left", "d2, right"])
    cells.var_names = ["HLA-A,B", *cells.var_names[1:]]
    cells.obs_names = ["c,0", *cells.obs_names[1:]]
    model = SCVI(open_cells(cells, batch_key="batch"), n_hidden=8, n_latent=3)
    model.train(1, enable_progress_bar=False)
    atlas = model.minify(tmp_path / "atlas")
    words = ["expression", "--genes", "HLA-A,B", "--transform-batch", "d1, left", "--cells", "c,0"]
    found = ask(tmp_path / "atlas", *words)
    row = atlas.rows_named(["c,0"])
    expected = atlas.get_normalized_expression(["HLA-A,B"], indices=row, transform_batch="d1, left")
    pd.testing.assert_frame_equal(found, expected, check_names=False)
    repeated = ask(tmp_path / "atlas", *words, "--genes", "gene0002,gene0003", "--transform-batch", "d2, right")
    assert list(repeated.columns) == ["HLA-A,B", "gene0002", "gene0003"]


def test_groups_are_compared_and_described(atlas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by = ask(atlas, "group-expression", "--genes", "gene0001", "--by", "cell_type", "--where", "batch == 'batch01'")
    assert set(by["gene"]) == {"gene0001"}
    assert "batch == 'batch01'" in capsys.readouterr().err
    compared = ask(atlas, "differential-expression", "--group1", "cell_type == 'type01'", "--mode", "change")
    assert {"proba_de", "lfc_mean", "is_de_fdr_0.05"} <= set(compared)
    assert ask(atlas, "markers", "--by", "cell_type", "--n-genes", "2").shape[0] == 6
    counted = ask(atlas, "abundance", "--by", "batch", "--groups", "cell_type", "--level", "0.9")
    assert (len(counted), counted["n"].sum()) == (6, 120)
    pair = ("--from", "batch01", "--to", "batch02", "--genes", "gene0001")
    assert ask(atlas, "counterfactual", *pair, "--by", "cell_type")["gene"].eq("gene0001").all()
    with pytest.raises(ValueError, match=r"'query counterfactual' needs --from"):
        ask(atlas, "counterfactual", "--to", "batch02", "--genes", "gene0001")


def test_questions_of_a_file_are_checked_before_the_first_is_computed(atlas: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.yaml"
    markers = f"- {{query: markers, by: cell_type, n_genes: 2, out: {tmp_path}/markers.csv}}\n"
    file.write_text(markers + "- {query: latent, genes: gene0001}\n")
    with pytest.raises(SystemExit) as end:
        main(["query", str(atlas), "--questions", str(file)])
    assert end.value.code == 2
    assert not (tmp_path / "markers.csv").exists()
    file.write_text(markers + f"- {{query: latent, out: {tmp_path}/latent.parquet}}\n")
    for code in (0, 2):  # the second time the files exist
        with pytest.raises(SystemExit) as end:
            main(["query", str(atlas), "--questions", str(file)])
        assert (end.value.code or 0) == code
    assert len(pd.read_csv(tmp_path / "markers.csv")) == 6
    assert len(pd.read_parquet(tmp_path / "latent.parquet")) == 120


def test_text_of_files_reaches_neither_terminal_nor_spreadsheet_as_a_command() -> None:
    table = pd.DataFrame(
        {"n": [1.5], "label": ["=cmd|'/C calc'!A0"]}, index=pd.Index(["\x1b]0;owned\x07"], name="cell")
    )
    found = _neutral(table)
    assert found["label"].tolist() == ["'=cmd|'/C calc'!A0"]
    assert found.index.tolist() == [r"\x1b]0;owned\x07"]
    assert found["n"].tolist() == [1.5]
