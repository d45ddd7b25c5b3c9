"""The page, clicked through in Chromium."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.image
import numpy as np
import pytest

from tests.launch.serve.conftest import TOKEN, new_cells

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]
NO_WEBGL = """
const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  return kind === "webgl2" ? null : get.call(this, kind, ...rest);
};
"""


def drawn(page: "Page", color: str) -> int:
    """Count the pixels of the map that have nearly a colour."""
    image = matplotlib.image.imread(io.BytesIO(page.locator(".map-frame").screenshot()))[..., :3]
    wanted = np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return int((np.abs(image - wanted).max(axis=2) < 0.2).sum())


def draw_lasso(page: "Page", corners: list[tuple[float, float]]) -> None:
    box = page.locator(".map-frame").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def download(page: "Page", click: Callable[[], None]) -> bytes:
    with page.expect_download() as found:
        click()
    return Path(found.value.path()).read_bytes()


def legend(page: "Page") -> "Page":
    page.wait_for_selector(".legend ul, .legend .ramp")
    page.wait_for_selector(".corner", state="detached")
    return page


def test_cells_are_drawn_and_coloured_by_a_column(open_page: Open, shoot: Callable[["Page"], None]) -> None:
    page = legend(open_page())
    names = page.locator(".legend .category .name").all_inner_texts()
    assert names == ["B", "NK", "T"]
    assert sum(int(text) for text in page.locator(".legend .category .note").all_inner_texts()) == 403
    page.wait_for_timeout(300)
    assert min(drawn(page, color) for color in ("#0072b2", "#e69f00", "#009e73")) > 100
    assert page.locator(".map-note").inner_text() == "403 cells"
    shoot(page)
    page.get_by_title("Hide B").click()
    page.mouse.move(5, 5)
    page.wait_for_timeout(300)
    assert drawn(page, "#0072b2") < 100 < drawn(page, "#e69f00")
    page.get_by_label("Colour by").select_option("age")
    page.wait_for_selector(".legend .ramp")
    assert page.locator(".legend-room h2").inner_text() == "age"


def test_a_gene_is_found_by_its_symbol_and_shown_with_its_uncertainty(open_page: Open) -> None:
    page = legend(open_page())
    search = page.get_by_label("or a gene")
    search.fill("sym13")
    page.wait_for_selector("role=option[name=/gene13/]")
    search.press("Enter")
    page.wait_for_selector(".legend .ramp")
    assert page.locator(".legend-room h2").inner_text() == "gene13"
    assert "expected by the model" in page.locator(".legend").inner_text()
    page.get_by_role("button", name="Uncertainty").click()
    page.wait_for_selector(".legend :text('posterior draws')")
    legend(page)
    assert "uncertainty of 403" in page.locator(".map-note").inner_text()
    search.fill("no such gene")
    page.wait_for_selector(":text('No gene has this in its name.')")


def test_a_filter_shows_what_each_clause_keeps_and_a_wrong_one_says_why(open_page: Open, problems: list[str]) -> None:
    page = legend(open_page())
    where = page.get_by_label("Filter", exact=True)
    where.fill("label == 'B' and age > 50")
    where.press("Enter")
    page.wait_for_selector(".clauses li:nth-child(2)")
    kept = int(re.findall(r"(\d+) left", page.locator(".clauses").inner_text())[-1])
    page.wait_for_selector(f".map-note:text('{kept} of 403 cells')")
    where.fill("lable == 'B'")
    where.press("Enter")
    page.wait_for_selector(".where .bad")
    assert "label" in page.locator(".where .bad").inner_text()
    assert all("422" in line for line in problems)
    problems.clear()
    page.get_by_role("button", name="Clear").first.click()
    page.wait_for_selector(".map-note:text('403 cells')")
    page.wait_for_selector(".problem", state="detached")


def test_two_lassos_are_compared_with_intervals(open_page: Open, shoot: Callable[["Page"], None]) -> None:
    page = legend(open_page())
    page.get_by_role("button", name="Lasso A", exact=True).click()
    draw_lasso(page, [(0.0, 0.0), (0.5, 0.0), (0.5, 0.98), (0.0, 0.98)])
    assert page.get_by_role("button", name="Lasso B", exact=True).get_attribute("aria-pressed") == "true"
    draw_lasso(page, [(0.5, 0.02), (0.99, 0.02), (0.99, 0.98), (0.5, 0.98)])
    page.wait_for_selector(".panel table")
    page.wait_for_selector(".stale", state="detached")
    found = re.search(
        r"A: ([\d,]+) cells, B: ([\d,]+) cells\. (\d+) of 50 genes", page.locator(".summary").inner_text()
    )
    assert found is not None
    assert 0 < int(found[1]) + int(found[2]) <= 403
    assert [page.locator(f".group-{key} .note").first.inner_text() for key in "ab"] == [
        f"{found[1]} cells",
        f"{found[2]} cells",
    ]
    assert "[" in page.locator(".panel td").nth(1).inner_text()
    shoot(page)
    table = list(csv.DictReader(io.StringIO(download(page, page.get_by_role("button", name="CSV").click).decode())))
    assert len(table) == 50
    assert {"proba_de", "lfc_mean", "lfc_mean_se"} <= set(table[0])
    svg = download(page, page.get_by_role("button", name="Save volcano as SVG").click)
    assert b"Log2 fold change, A over B" in svg
    assert download(page, page.get_by_role("button", name="Save volcano as PNG").click)[:4] == b"\x89PNG"
    page.locator(".panel td button").first.click()
    page.wait_for_selector(".legend .ramp")
    page.locator("th button").nth(1).click()
    assert page.locator("th").nth(1).get_attribute("aria-sort") == "descending"


def test_groups_are_taken_from_the_legend_and_written_as_filters(open_page: Open) -> None:
    page = legend(open_page())
    page.get_by_title("Take B as group A").click()
    page.get_by_label("Write a filter for group B").click()
    page.get_by_label("Filter of group B").fill("label == 'T'")
    page.get_by_role("button", name="Set").click()
    page.wait_for_selector(".panel table")
    assert "Engine: sketch" in page.locator(".panel details").inner_text()
    page.get_by_label("Clear group A").click()
    page.wait_for_selector(":text('Compare two groups of cells')")


def test_genes_are_shown_by_group_as_dots(open_page: Open, shoot: Callable[["Page"], None]) -> None:
    page = legend(open_page("#tab=genes"))
    page.get_by_label("Add a gene").fill("gene7")
    page.wait_for_selector("role=option[name=/gene7 /]")
    page.get_by_label("Add a gene").press("Enter")
    page.wait_for_selector(".chips li:has-text('gene7')")
    page.get_by_role("button", name="Markers of each group").click()
    page.wait_for_selector(".chips li:nth-child(5)")
    page.wait_for_selector(".chart.natural circle")
    page.get_by_role("combobox", name=re.compile("^Groups")).select_option("donor")
    page.wait_for_selector(".chart.natural text:has-text('d3')")
    shoot(page)
    page.wait_for_selector(".stale", state="detached")
    rows = list(csv.DictReader(io.StringIO(download(page, page.get_by_role("button", name="CSV").click).decode())))
    assert {row["donor"] for row in rows} == {"d1", "d2", "d3"}
    assert b"Cells detected in" in download(page, page.get_by_role("button", name="Save dot plot as SVG").click)


def test_a_click_shows_a_cell_and_its_neighbours(open_page: Open, shoot: Callable[["Page"], None]) -> None:
    page = legend(open_page())
    box = page.locator(".map-frame").bounding_box()
    assert box is not None
    image = matplotlib.image.imread(io.BytesIO(page.locator(".map-frame").screenshot()))[..., :3]
    colored = np.argwhere((image.max(axis=2) - image.min(axis=2)) > 0.4)
    y, x = colored[len(colored) // 2].tolist()
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.wait_for_selector(".cell-name")
    assert re.fullmatch(r"cell\d+", page.locator(".cell-name").inner_text())
    assert page.locator(".facts dt").first.inner_text() == "batch"
    page.wait_for_selector("section[aria-label=Labels] .bars li:nth-child(3)")
    page.wait_for_selector("section[aria-label=Neighbours] table")
    assert page.locator("section[aria-label=Neighbours] tbody tr").count() == 15
    assert page.locator(".overlay circle").count() >= 15
    shoot(page)
    name = page.locator(".cell-name").inner_text()
    page.locator("section[aria-label=Neighbours] td button").first.click()
    page.wait_for_function("name => document.querySelector('.cell-name').innerText !== name", arg=name)


def test_new_cells_are_annotated_and_shown_on_the_map(open_page: Open, tmp_path: Path, problems: list[str]) -> None:
    new_cells(12, seed=3).write_h5ad(tmp_path / "new.h5ad")
    page = legend(open_page("#tab=annotate"))
    page.set_input_files("input[type=file]", tmp_path / "new.h5ad")
    page.wait_for_selector(".panel table")
    assert "12 cells of new.h5ad annotated; the dark points on the map" in page.locator(".summary").inner_text()
    places = page.locator(".overlay > path").last.get_attribute("d")
    assert places is not None
    assert places.count("M") == 12
    rows = list(csv.DictReader(io.StringIO(download(page, page.get_by_role("button", name="CSV").click).decode())))
    assert {row["label"] for row in rows} <= {"B", "NK", "T"}
    assert all(0 < float(row["probability"]) <= 1 and "prediction_set" in row for row in rows)
    (tmp_path / "wrong.h5ad").write_bytes(b"no h5ad")
    page.set_input_files("input[type=file]", tmp_path / "wrong.h5ad")
    page.wait_for_selector(".answers .problem")
    assert all("422" in line for line in problems)
    problems.clear()


def test_the_abundance_of_a_selection_is_shown_by_sample(open_page: Open) -> None:
    page = legend(open_page("#tab=abundance&a=wlabel == 'B'"))
    page.wait_for_selector(".panel table")
    page.get_by_label("Samples").select_option("donor")
    page.wait_for_selector("td:text('d3')")
    rows = list(csv.DictReader(io.StringIO(download(page, page.get_by_role("button", name="CSV").click).decode())))
    assert sum(int(row["total"]) for row in rows) == 403
    assert all(float(row["low"]) < float(row["fraction"]) < float(row["high"]) for row in rows)
    assert b"Share of the cells" in download(page, page.get_by_role("button", name="Save abundance as SVG").click)


def test_a_link_restores_the_view(open_page: Open) -> None:
    page = legend(open_page())
    page.get_by_role("button", name="Lasso A", exact=True).click()
    draw_lasso(page, [(0.1, 0.1), (0.8, 0.1), (0.8, 0.8), (0.1, 0.8)])
    page.wait_for_selector(".panel table")
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_label("Colour by").select_option("donor")
    page.get_by_label("Filter", exact=True).fill("age > 40")
    page.get_by_role("button", name="Apply").click()
    page.wait_for_timeout(600)
    again = legend(open_page(page.url[page.url.index("#") :]))
    again.wait_for_selector(".panel table")
    assert again.locator(".legend .category .name").all_inner_texts() == ["d1", "d2", "d3"]
    assert again.get_by_label("Filter", exact=True).input_value() == "age > 40"
    assert again.locator(".overlay polygon").count() == 1
    again.wait_for_timeout(400)
    assert again.url == page.url


def test_figures_of_the_map_have_legend_and_axes(open_page: Open) -> None:
    page = legend(open_page())
    svg = download(page, page.get_by_role("button", name="Save map as SVG").click).decode()
    assert all(f">{text}<" in svg for text in ("UMAP 1", "UMAP 2", "label", "NK", "403 cells"))
    assert "data:image/png;base64" in svg
    png = matplotlib.image.imread(io.BytesIO(download(page, page.get_by_role("button", name="Save map as PNG").click)))
    assert png.shape[1] > 1800
    assert (np.abs(png[..., :3] - np.array([0, 0x72, 0xB2]) / 255).max(axis=2) < 0.2).sum() > 500


@pytest.mark.parametrize("webgl", [True, False])
def test_density_is_drawn_by_the_service_where_it_is_asked_for_or_webgl_is_missing(
    open_page: Open, *, webgl: bool, shoot: Callable[["Page"], None]
) -> None:
    page = open_page(script="" if webgl else NO_WEBGL)
    page.wait_for_selector(".legend ul")
    if webgl:
        page.get_by_role("button", name="Density").click()
    page.wait_for_selector(".overlay image")
    assert ("no WebGL" in page.locator(".map-note").inner_text()) is not webgl
    page.wait_for_timeout(400)
    assert min(drawn(page, color) for color in ("#0072b2", "#e69f00", "#009e73")) > 30
    shoot(page)
    assert b"data:image/png" in download(page, page.get_by_role("button", name="Save map as SVG").click)
    page.get_by_role("button", name="Lasso A", exact=True).click()
    draw_lasso(page, [(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)])
    page.wait_for_selector(".panel table")


def test_more_cells_than_are_drawn_are_sampled_and_return_when_few_are_in_view(open_page: Open) -> None:
    page = legend(open_page("?points=100#draw=points"))
    shown = int(page.locator(".map-note").inner_text().split()[0])
    assert "of 403 cells, a uniform sample" in page.locator(".map-note").inner_text()
    assert 80 < shown < 120
    for _ in range(7):
        page.get_by_role("button", name="Zoom in").click()
    page.wait_for_function("() => /^\\d+ cells?$/.test(document.querySelector('.map-note').innerText)")
    assert int(page.locator(".map-note").inner_text().split()[0]) <= 100


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_screen(open_page: Open, width: int, shoot: Callable[["Page"], None]) -> None:
    page = legend(open_page("#a=wlabel == 'B'", width=width))
    page.wait_for_selector(".panel table")
    for tab in ("Genes", "Cell", "Abundance", "Compare"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
    page.wait_for_selector(".panel table")
    shoot(page)


def test_all_is_reached_by_keys_and_has_a_name(open_page: Open) -> None:
    page = legend(open_page())
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select')]
            .filter((node) => !(node.innerText || node.ariaLabel || node.labels?.length || node.title || node.hidden))
            .map((node) => node.outerHTML)"""
    )
    assert unnamed == []
    page.locator(".map-frame").focus()
    for key in ("+", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    page.wait_for_function("() => location.hash.includes('view=')")
    page.keyboard.press("0")
    page.wait_for_function("() => location.hash.includes('65535')")
    page.get_by_role("tab", name="Compare").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Genes").get_attribute("aria-selected") == "true"
    page.wait_for_function("() => document.activeElement.innerText === 'Genes'")


def test_a_failure_is_told_and_tried_again(open_page: Open, problems: list[str]) -> None:
    page = legend(open_page())
    page.route("**/differential-expression", lambda route: route.abort())
    page.get_by_title("Take B as group A").click()
    page.wait_for_selector(".answers .problem")
    assert "cannot be reached" in page.locator(".answers .problem").inner_text()
    page.unroute("**/differential-expression")
    problems.clear()
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".panel table")


def test_a_service_with_tokens_asks_for_one(
    open_page: Open, problems: list[str], guarded: Any, mapped_path: Path
) -> None:
    page = open_page(at=str(guarded.base_url).rstrip("/"))
    for token in ("a-wrong-token-0123456789", TOKEN):
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Open").click()
        page.wait_for_timeout(200)
    legend(page)
    assert all("401" in line for line in problems)
    problems.clear()


def test_the_policy_of_the_page_allows_no_inline_script_and_no_other_host(open_page: Open) -> None:
    page = open_page()
    policy = page.request.get(page.url.split("#")[0]).headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert json.dumps(policy).count("http") == 0
