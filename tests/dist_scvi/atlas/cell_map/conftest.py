"""A map of the atlas of 403 cells, from 200 landmarks."""

import shutil
from pathlib import Path

import pytest

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.atlas.cell_map.cell_map import CellMap, open_map
from dist_scvi.atlas.cell_map.landmarks import MapOptions
from dist_scvi.atlas.cell_map.write_map import write_map

OPTIONS = MapOptions(n_landmarks=200, n_epochs=60)


@pytest.fixture(scope="session")
def mapped(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the atlas, with a map of small files."""
    copy = Path(shutil.copytree(written, tmp_path_factory.mktemp("mapped") / "atlas"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dist_scvi.atlas.cell_map.write_map.CHUNK_ROWS", 150)
        patch.setattr("dist_scvi.atlas.cell_map.write_map.BLOCK_ROWS", 25)
        write_map(open_atlas(copy), options=OPTIONS)
    return copy


@pytest.fixture(scope="session")
def cell_map(mapped: Path) -> CellMap:
    return open_map(open_atlas(mapped))
