"""``dist-scvi query``: a table for each question, and no option that is taken and not heeded."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import read_zarr

from dist_scvi import SCANVI, SCVI, open_atlas
from dist_scvi import open as open_cells
from dist_scvi.launch.arguments import parse
from dist_scvi.launch.query import query
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
    return query(parse(["query", str(atlas), *words], {"query": lambda _: 0}))


def test_each_question_has_its_table(atlas: Path) -> None:
    opened = open_atlas(atlas)
    latent = ask(atlas, "latent")
    assert list(latent.columns) == ["latent_0", "latent_1", "latent_2"]
    np.testing.assert_array_equal(latent, opened.get_latent_representation())
    np.testing.assert_array_equal(ask(atlas, "labels")["label"], opened.predict())
    pd.testing.assert_frame_equal(ask(atlas, "labels", "--soft"), opened.predict(soft=True))
    by = ask(atlas, "expression", "--by", "cell_type", "--genes", "gene0001", "--library-size", "100")
    assert list(by.columns) == ["n_cells", "gene0001"]
    one = ask(atlas, "expression", "--by", "cell_type", "--genes", "gene0001")
    np.testing.assert_allclose(by["gene0001"], 100 * one["gene0001"])


def test_cells_are_named_or_chosen_by_a_column(atlas: Path) -> None:
    names = list(open_atlas(atlas).obs_names([7, 3]))
    assert list(ask(atlas, "latent", "--cells", ",".join(names)).index) == names
    assert 0 < len(ask(atlas, "labels", "--where", "batch=batch01")) < 120


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["latent", "--genes", "gene0001"], r"^--genes does not belong to 'query latent', but to expression$"),
        (["labels", "--by", "batch"], r"^--by does not belong to 'query labels', but to expression$"),
        (["expression", "--soft"], r"^--soft does not belong to 'query expression', but to labels$"),
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
    pd.testing.assert_frame_equal(
        found, atlas.get_normalized_expression(["HLA-A,B"], indices=row, transform_batch="d1, left")
    )
    repeated = ask(tmp_path / "atlas", *words, "--genes", "gene0002,gene0003", "--transform-batch", "d2, right")
    assert list(repeated.columns) == ["HLA-A,B", "gene0002", "gene0003"]
