import zlib
from pathlib import Path

import numpy as np
import pytest

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.atlas.cell_map.cell_map import CellMap
from dist_scvi.atlas.cell_map.color_values import MISSING, column_values, gene_uncertainty, gene_values
from dist_scvi.atlas.cell_map.picture import color_bins, draw_bins
from dist_scvi.atlas.cell_map.polygon import cells_in_polygon
from dist_scvi.atlas.cell_map.view import View, choose_points, density, nearest_cell
from dist_scvi.atlas.queries.where import choose_cells

HALF = View(20_000, 10_000, 45_000, 60_000)
FILTER = "label == 'B' and depth > 50"


def test_all_cells_in_view_are_points_if_they_are_few(atlas: Atlas, cell_map: CellMap) -> None:
    cells, everything = choose_cells(atlas, FILTER), np.arange(403)
    inside = HALF.contains(cell_map.steps())
    for view, chosen, expected in (
        (View(), None, everything),
        (HALF, None, everything[inside]),
        (HALF, cells, everything[inside & cells.mask(slice(0, 403))]),
    ):
        points = choose_points(atlas, cell_map, view, 403, chosen)
        np.testing.assert_array_equal(np.sort(points.row_n), expected)
        assert points.n_in_view == len(expected) > 0


def test_fewer_points_are_a_sample_of_the_cells_in_view_whose_prefixes_are_samples(
    atlas: Atlas, cell_map: CellMap
) -> None:
    assert atlas.neighbourhoods is not None
    for view, cells in ((View(), None), (HALF, None), (HALF, choose_cells(atlas, FILTER))):
        everything = choose_points(atlas, cell_map, view, 403, cells)
        half = choose_points(atlas, cell_map, view, len(everything.row_n) // 2, cells)
        assert half.n_in_view == everything.n_in_view
        assert abs(len(half.row_n) - len(everything.row_n) / 2) < 12
        np.testing.assert_array_equal(half.row_n, everything.row_n[: len(half.row_n)])
    offsets = atlas.neighbourhoods.offsets
    for share in (0.25, 0.5):
        row_n = choose_points(atlas, cell_map, View(), 403).row_n[: int(403 * share)]
        taken_c = np.bincount(np.searchsorted(offsets, row_n, side="right") - 1, minlength=len(offsets) - 1)
        assert np.abs(taken_c - share * np.diff(offsets)).max() <= 1


def test_density_counts_every_cell_once(atlas: Atlas, cell_map: CellMap) -> None:
    steps, cells = cell_map.steps().astype(np.int64), choose_cells(atlas, FILTER)
    found = density(cell_map, View(), 16, 8)
    expected, _, _ = np.histogram2d(steps[:, 1] * 8 // 65_536, steps[:, 0] * 16 // 65_536, (range(9), range(17)))
    np.testing.assert_array_equal(found, expected)
    assert density(cell_map, HALF, 7, 9).sum() == HALF.contains(cell_map.steps()).sum()
    assert density(cell_map, View(), 1, 1, cells)[0, 0] == cells.n_cells
    with pytest.raises(ValueError, match="bins each way"):
        density(cell_map, View(), 4096, 1)


def test_a_polygon_chooses_the_cells_inside(atlas: Atlas, cell_map: CellMap) -> None:
    from matplotlib.path import Path as Polygon

    xy = cell_map.coordinates()
    centre, size = np.median(xy, axis=0), np.ptp(xy, axis=0)
    corners = [(centre + size * np.array(at)).tolist() for at in ((-0.3, -0.4), (0.4, 0.1), (0, 0.05), (-0.2, 0.4))]
    found = cells_in_polygon(cell_map, corners)
    np.testing.assert_array_equal(found.mask(slice(0, 403)), Polygon(corners).contains_points(xy))
    np.testing.assert_array_equal(found.mask(slice(37, 391)), found.mask(slice(0, 403))[37:391])
    part = cells_in_polygon(cell_map, corners, choose_cells(atlas, "label == 'B'"))
    np.testing.assert_array_equal(
        part.rows(atlas), [row for row in found.rows(atlas) if atlas.obs["label"].iloc[row] == "B"]
    )
    answer = atlas.differential_expression(found, None, mode="change")
    assert answer.n_cells["group1"] == found.n_cells == 403 - answer.n_cells["group2"]


@pytest.mark.parametrize(
    ("polygon", "problem"),
    [
        ([[0, 0], [1, 1]], "from 3 to"),
        ([[0, 0], [1, float("nan")], [2, 2]], "finite"),
        ([[0, 0], [0, 3e303], [2, 2]], "beyond 1e"),
        ([[1e8, 1e8], [1e8 + 1, 1e8], [1e8, 1e8 + 1]], "no cell is inside"),
        ([[0, 0, 0]] * 3, "shape"),
    ],
)
def test_a_wrong_polygon_is_refused(cell_map: CellMap, polygon: list[list[float]], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        cells_in_polygon(cell_map, polygon)


@pytest.mark.parametrize("view", [(5, 0, 5, 10), (0, 0, 70_000, 10), (-1, 0, 5, 5), (10, 0, 5, 5)])
def test_a_wrong_view_is_refused(view: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="x0,y0,x1,y1"):
        View(*view)


def test_the_cell_nearest_to_a_point_is_found(atlas: Atlas, cell_map: CellMap) -> None:
    steps = cell_map.steps().astype(np.float64)
    cells = choose_cells(atlas, "label == 'B'")
    for x, y in steps[:40] + 90:
        apart = np.hypot(*(steps - (x, y)).T)
        row = nearest_cell(cell_map, x, y, 20_000)
        assert row is not None
        assert apart[row] == apart.min()
        row = nearest_cell(cell_map, x, y, 60_000, cells)
        assert row is not None
        assert apart[row] == apart[cells.mask(slice(0, 403))].min()
    assert nearest_cell(cell_map, 0, 0, 1) is None


def test_values_are_those_of_obs_and_of_the_model(atlas: Atlas) -> None:
    row_n = np.random.default_rng(0).permutation(403)[:300]
    obs = atlas.obs.to_pandas()
    group = column_values(atlas, "group", row_n)
    expected = obs["group"].cat.codes.to_numpy()[row_n]
    np.testing.assert_array_equal(np.where(group.value_n == MISSING, -1, group.value_n.astype(int)), expected)
    quality = column_values(atlas, "quality", row_n)
    np.testing.assert_allclose(quality.numbers(), obs["quality"].to_numpy()[row_n], atol=1e-4)
    depth = column_values(atlas, "depth", row_n)
    np.testing.assert_allclose(depth.numbers(), obs["depth"].to_numpy()[row_n], atol=0.01)
    gene = gene_values(atlas, "SYM3" if "SYM3" in set(atlas.var["symbol"]) else "gene3", row_n)
    scale = atlas.get_normalized_expression(["gene3"], indices=row_n)["gene3"].to_numpy()
    np.testing.assert_allclose(gene.numbers(), np.log1p(1e4 * scale), rtol=1e-3, atol=gene.high / 60_000)


def test_uncertainty_is_the_spread_over_draws_of_the_posterior(atlas: Atlas) -> None:
    row_n = np.array([7, 3, 300])
    found = gene_uncertainty(atlas, "gene3", row_n, n_draws=400).numbers()
    rng = np.random.default_rng(0)
    for place, row in enumerate(row_n):
        cells = atlas.read_cells(np.full(2000, row))
        noise = rng.standard_normal(cells.qzm_nk.shape).astype(np.float32)
        from dataclasses import replace

        from dist_scvi.atlas.queries.decode import CellBlock, decode_mean

        drawn = replace(cells, qzm_nk=cells.qzm_nk + noise * np.sqrt(cells.qzv_nk))
        block = CellBlock(drawn, None, np.zeros(2000, np.int32), np.full(2000, row))
        scale = decode_mean(atlas, block, atlas.gene_index(["gene3"]), (None,))[:, 0]
        assert np.log1p(1e4 * scale.astype(float)).std() == pytest.approx(found[place], rel=0.15)
    again = gene_uncertainty(atlas, "gene3", row_n[::-1], n_draws=400).numbers()[::-1]
    np.testing.assert_allclose(again, found, atol=1e-3)


def test_a_column_of_too_many_categories_is_refused(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_scvi.atlas.cell_map.color_values.MOST_CATEGORIES", 2)
    with pytest.raises(ValueError, match="3 categories: at most 2"):
        column_values(atlas, "label", np.arange(5))


def test_a_picture_shows_the_most_frequent_category_of_a_bin(atlas: Atlas, cell_map: CellMap, tmp_path: Path) -> None:
    from matplotlib.image import imread

    row_n = np.arange(403)
    label = column_values(atlas, "label", row_n)
    counts = density(cell_map, View(), 8, 8)
    colors = color_bins(cell_map.steps(), label, View(), 8, 8)
    assert (np.isfinite(colors) == (counts > 0)).all()
    at = np.unravel_index(counts.argmax(), counts.shape)
    steps = cell_map.steps().astype(int) * 8 // 65_536
    inside = (steps[:, 1] == at[0]) & (steps[:, 0] == at[1])
    assert colors[at] == np.bincount(label.value_n[inside]).argmax()
    (tmp_path / "map.png").write_bytes(draw_bins(counts, colors, "categorical"))
    image = imread(tmp_path / "map.png")
    assert image.shape == (8, 8, 4)
    np.testing.assert_array_equal(image[::-1, :, 3] > 0, counts > 0)
    number = color_bins(cell_map.steps(), column_values(atlas, "depth", row_n), View(), 8, 8)
    assert zlib.crc32(draw_bins(counts, number, "numeric")) != zlib.crc32(draw_bins(counts, colors, "categorical"))
