"""dist-scvi report, card, and the folder for scvi-hub, of one run."""

import json
from pathlib import Path

import pytest
from anndata import AnnData

import dist_scvi
from dist_scvi.data import synthetic_iid
from dist_scvi.launch.cli import main
from dist_scvi.loaders.stores.open import open_store


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    cells: AnnData = synthetic_iid(n_proteins=0, n_regions=0, seed=0, sparse_format="csr_matrix")
    cells.write_h5ad(folder / "cells.h5ad")
    _command(
        *("train", f"run={folder / 'run'}", f"data.uri={folder / 'cells.h5ad'}", "data.batch_key=batch"),
        *("data.labels_key=labels", "train.max_epochs=6", "train.lanes=1", "model.n_hidden=16"),
    )
    _command("minify", str(folder / "run"))
    return folder / "run"


@pytest.fixture(autouse=True)
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP, which takes long to compile, is tested with atlases."""
    monkeypatch.setattr("dist_scvi.report.measure.umap_coordinates", lambda z_nk, _: z_nk[:, :2])


def _command(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


def test_a_report_is_written_into_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _command("report", str(run), "--fast", "--multiqc", "--columns", "labels,batch")
    said = capsys.readouterr().out
    assert f"report in {run / 'report.html'}" in said
    assert "Held-out ELBO" in said
    page = (run / "report.html").read_text()
    assert "UMAP by labels" in page
    assert f"dist-scvi train {run}/config.yaml" in page
    found = json.loads((run / "report.json").read_text())
    assert found["sampling"]["neighbours"] == "all cells of the atlas"
    assert found["facts"]["starts"] == "1"
    assert {path.stem for path in (run / "report_figures").glob("*.svg")} >= {"curve_elbo", "throughput", "scores"}
    assert (run / "report_mqc.json").exists()


def test_the_verdict_is_printed_as_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _command("report", str(run), "--fast", "--json", "--out", str(tmp_path / "page.html"))
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == str(tmp_path / "page.html")
    assert found["level"] in ("good", "weak", "bad")


def test_a_run_whose_cells_are_gone_is_reported_from_its_atlas(run: Path, tmp_path: Path) -> None:
    store = run.parent / "cells.h5ad"
    store.rename(run.parent / "away.h5ad")
    try:
        _command("report", str(run), "--fast", "--out", str(tmp_path / "page.html"))
    finally:
        (run.parent / "away.h5ad").rename(store)
    found = json.loads((tmp_path / "page.json").read_text())
    assert found["held_out"] == {"split": "validation"}
    assert "cannot be opened" in found["notes"][0]
    assert "integration" in found["scores"]


def test_the_card_goes_into_the_folder_for_hubs(run: Path, tmp_path: Path) -> None:
    _command("card", str(run), "--out", str(tmp_path / "card.md"), "--license", "mit", "--tissue", "lung")
    card = (tmp_path / "card.md").read_text()
    assert "license: mit" in card
    assert "tissue:lung" in card
    _command("export", str(run / "atlas"), str(tmp_path / "hub"), "--to", "scvi-hub")
    assert "Not provided by uploader" not in (tmp_path / "hub" / "README.md").read_text()
    assert dist_scvi.from_hub(tmp_path / "hub").data.n_cells == open_store(run.parent / "cells.h5ad").n_cells


def test_an_unknown_column_ends_with_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), "--fast", "--columns", "label"])
    assert ended.value.code == 2
    assert "labels" in capsys.readouterr().err
