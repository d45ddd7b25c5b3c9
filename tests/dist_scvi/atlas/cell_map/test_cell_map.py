import shutil
from pathlib import Path

import numpy as np
import pytest

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.cell_map.cell_map import CellMap, open_map
from dist_scvi.atlas.cell_map.landmarks import MapOptions
from dist_scvi.atlas.cell_map.write_map import open_or_write_map, write_map
from dist_scvi.atlas.store.verify import verify_atlas

OPTIONS = MapOptions(n_landmarks=200, n_epochs=60)


def test_a_map_changes_no_file_of_the_atlas(mapped: Path) -> None:
    assert not verify_atlas(mapped)


def test_the_same_seed_makes_the_same_map(atlas: Atlas, cell_map: CellMap, tmp_path: Path) -> None:
    again = write_map(atlas, tmp_path / "map", OPTIONS)
    np.testing.assert_array_equal(again.steps(), cell_map.steps())
    other = write_map(atlas, tmp_path / "map", MapOptions(n_landmarks=200, n_epochs=60, seed=1))
    assert (other.steps() != cell_map.steps()).any()


def test_coordinates_are_those_of_the_rows_requested(cell_map: CellMap) -> None:
    row_n = np.array([402, 0, 151, 0])
    np.testing.assert_array_equal(cell_map.coordinates(row_n), cell_map.coordinates()[row_n])
    back = cell_map.to_steps(cell_map.coordinates())
    np.testing.assert_allclose(back, cell_map.steps(), atol=0.1)
    low, high = cell_map.block_bounds[:, :2], cell_map.block_bounds[:, 2:]
    block_n = np.arange(403) // 25
    assert (cell_map.steps() >= low[block_n]).all()
    assert (cell_map.steps() <= high[block_n]).all()


def test_cells_lie_among_their_neighbours_in_the_latent_space(atlas: Atlas, cell_map: CellMap) -> None:
    from sklearn.manifold import trustworthiness

    qzm_nk = atlas.read_latent()[0]
    everything = write_map_of_all(atlas)
    placed = trustworthiness(qzm_nk, cell_map.coordinates(), n_neighbors=15)
    fitted = trustworthiness(qzm_nk, everything, n_neighbors=15)
    assert placed > fitted - 0.03
    shuffled = np.random.default_rng(0).permutation(403)
    assert trustworthiness(qzm_nk[shuffled], cell_map.coordinates(), n_neighbors=15) < placed - 0.2


def write_map_of_all(atlas: Atlas) -> np.ndarray:
    from dist_scvi.atlas.cell_map.landmarks import fit_landmarks

    landmarks = fit_landmarks(atlas, MapOptions(n_epochs=60))
    assert len(landmarks.row_m) == atlas.n_cells
    return landmarks.xy_m2


def test_landmarks_keep_the_coordinates_of_umap(atlas: Atlas, tmp_path: Path) -> None:
    found = write_map(atlas, tmp_path / "map", MapOptions(n_epochs=60))
    np.testing.assert_allclose(found.coordinates(), write_map_of_all(atlas), atol=found.record.size / 30_000)


def test_a_map_of_another_atlas_is_refused_and_made_again(
    copy: Path, mapped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(mapped / "map", copy / "map")
    atlas = open_atlas(copy)
    monkeypatch.setattr(atlas, "digest", "0" * 64)
    with pytest.raises(ValueError, match=r"is the map of another atlas .* here 0000000000000000.*: make it with"):
        open_map(atlas)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_or_write_map(atlas, OPTIONS).record.atlas == "0" * 64
    assert open_map(atlas).n_cells == 403


def test_an_atlas_that_cannot_be_written_has_its_map_in_the_cache_folder(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    atlas = open_atlas(copy)
    open_or_write_map(atlas, OPTIONS)
    assert not (copy / "map").exists()
    monkeypatch.setattr("dist_scvi.atlas.cell_map.write_map.write_map", None)
    assert open_or_write_map(atlas).n_cells == 403


@pytest.mark.parametrize("damage", ["flip", "cut", "record", "absent"])
def test_a_damaged_map_is_refused(copy: Path, mapped: Path, damage: str) -> None:
    shutil.copytree(mapped / "map", copy / "map")
    file = copy / "map" / "coordinates" / "c" / "1" / "0"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[7] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-4])
    elif damage == "record":
        (copy / "map" / "MAP.json").write_text('{"format": "dist_scvi.map/1"}')
    else:
        (copy / "map" / "MAP.json").unlink()
    expected = FileNotFoundError if damage == "absent" else ValueError
    with pytest.raises(expected, match=r"dist-scvi map|is damaged|has 596 bytes"):
        open_map(open_atlas(copy)).steps()


def test_a_map_being_written_is_no_map(copy: Path, mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(mapped / "map", copy / "map")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_map(open_atlas(copy), options=OPTIONS, on_progress=stop)
    with pytest.raises(FileNotFoundError, match="there is no map"):
        open_map(open_atlas(copy))


@pytest.mark.parametrize(
    "options", [{"n_landmarks": 3}, {"n_neighbors": 1}, {"min_dist": -0.1}, {"seed": -1}, {"n_epochs": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MapOptions(**options)
