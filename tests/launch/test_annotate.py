"""``dist-scvi annotate``: tables of labels from an atlas, a run or a model, and files that are not replaced."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from dist_scvi import SCANVI, SCVI, open_atlas
from dist_scvi import open_data as open_cells
from dist_scvi.launch.cli import main
from dist_scvi.loaders.simulate import simulate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an atlas and a model, as a run has, and with new cells."""
    folder = tmp_path_factory.mktemp("annotate")
    simulate(folder / "cells.zarr", n_cells=300, n_genes=30, n_types=3, n_batches=3, seed=0)
    data = open_cells(folder / "cells.zarr", batch_key="batch", labels_key="cell_type", unlabeled_category="none")
    model = SCANVI(data, n_hidden=8, n_latent=3)
    model.train(2, enable_progress_bar=False)
    model.save(folder / "model")
    model.minify(folder / "atlas")
    simulate(folder / "new.zarr", n_cells=40, n_genes=30, n_types=3, n_batches=1, seed=0)
    return folder


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["annotate", *map(str, words)])
    return int(end.value.code or 0)


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_a_run_or_an_atlas_labels_new_cells_into_a_file(run: Path, tmp_path: Path, ending, capsys):
    out = tmp_path / f"labels.{ending}"
    source = run if ending == "csv" else run / "atlas"
    assert command(source, run / "new.zarr", "--out", out, "--k", 9, "--coverage", 0.8) == 0
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}[ending]
    expected = open_atlas(run / "atlas").annotate(run / "new.zarr", k=9, coverage=0.8).table
    found = read(out)
    assert list(found["label"]) == list(expected["label"])
    assert list(found["cell"]) == list(expected.index)
    assert {"probability", "second_label", "prediction_set", "set_size", "ood_score"} <= set(found)
    printed = capsys.readouterr().err
    assert "cells of 3 held out batch" in printed
    assert "30 of 30 genes match" in printed
    before = out.read_bytes()
    assert command(source, run / "new.zarr", "--out", out) != 0
    assert f"{out} exists" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert command(source, run / "new.zarr", "--out", out, "--overwrite", "--method", "neighbors") == 0


def test_a_model_labels_without_sets(run: Path, tmp_path: Path, capsys):
    shutil.copytree(run / "model", tmp_path / "model")
    assert command(tmp_path / "model", run / "new.zarr", "--out", tmp_path / "labels.csv") == 0
    assert "prediction_set" not in pd.read_csv(tmp_path / "labels.csv")
    assert "not calibrated" in capsys.readouterr().err
    assert command(tmp_path / "model", run / "new.zarr", "--coverage", 0.8) != 0
    assert "--coverage needs an atlas" in capsys.readouterr().err


def test_the_cost_is_printed_and_nothing_else(run: Path, capsys):
    assert command(run, run / "new.zarr", "--explain") == 0
    assert "annotate by classifier: 300 cells, 40 decoded" in capsys.readouterr().out


def test_what_cannot_be_used_is_one_line(run: Path, tmp_path: Path, capsys):
    assert command(run / "cells.zarr", run / "new.zarr") != 0
    assert "holds neither an atlas nor a model" in capsys.readouterr().err
    assert command(run, tmp_path / "absent.zarr") != 0
    assert "does not exist" in capsys.readouterr().err
    assert command(run, run / "new.zarr", "--out", tmp_path / "labels.xlsx") != 0
    assert ".xlsx" in capsys.readouterr().err
    data = open_cells(run / "cells.zarr", batch_key="batch")
    SCVI(data, n_hidden=8, n_latent=3).save(tmp_path / "scvi")
    assert command(tmp_path / "scvi", run / "new.zarr") != 0
    errors = capsys.readouterr().err
    assert "without a classifier" in errors
    assert "Traceback" not in errors
