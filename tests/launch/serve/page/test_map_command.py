from pathlib import Path

import pytest

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.atlas.cell_map.cell_map import open_map
from dist_scvi.launch.cli import main
from tests.launch.serve.page.conftest import principal_components


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["map", *words])
    assert ended.value.code == 0


def test_a_map_is_made_once_and_again_if_asked(
    mapped_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dist_scvi.atlas.cell_map.landmarks.umap_coordinates", principal_components)
    out, atlas = tmp_path / "map", open_atlas(mapped_path)
    run(str(mapped_path), "--out", str(out), "--landmarks", "100")
    assert f"map of 403 cells in {out}, by UMAP of 100" in capsys.readouterr().out
    first = open_map(atlas, out).record
    run(str(mapped_path), "--out", str(out))
    assert "--overwrite makes it again" in capsys.readouterr().out
    assert open_map(atlas, out).record == first
    run(str(mapped_path), "--out", str(out), "--landmarks", "100", "--seed", "1", "--overwrite")
    assert open_map(atlas, out).record.options["seed"] == 1
    run(str(mapped_path))
    assert "is the map of this atlas already" in capsys.readouterr().out
