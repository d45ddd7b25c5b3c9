import base64
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dist_scvi.model import SCVI
from dist_scvi.report.write_report import WrittenReport


@pytest.fixture(scope="module")
def written(model: SCVI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WrittenReport]:
    """A report with a map of two latent dimensions: UMAP, which takes long to compile, is tested with atlases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dist_scvi.report.measure.umap_coordinates", lambda z_nk, _: z_nk[:, :2])
        yield model.report(tmp_path_factory.mktemp("report") / "report.html", fast=True, multiqc=True)


class _Links(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert tag not in ("script", "iframe", "object")


def test_the_page_needs_nothing_from_the_network(written: WrittenReport) -> None:
    page = written.html.read_text()
    links = _Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith("data:") for link in links.found)
    assert not re.search(r"url\((?!data:)", page)
    assert len(page) < 5_000_000


def test_every_figure_has_a_caption_and_is_written_as_svg_and_png(written: WrittenReport) -> None:
    page = written.html.read_text()
    captions = re.findall(r"<figcaption>(.+?)</figcaption>", page)
    svgs = {path.read_bytes() for path in written.figures.glob("*.svg")}
    shown = {base64.b64decode(text) for text in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)}
    assert len(captions) == page.count("<figure") == len(svgs)
    assert min(map(len, captions)) > 40
    assert shown == svgs
    assert {path.stem for path in written.figures.glob("*.png")} == {
        path.stem for path in written.figures.glob("*.svg")
    }


def test_the_json_has_the_numbers_of_the_model(written: WrittenReport, model: SCVI) -> None:
    found = json.loads(written.json.read_text())
    assert found["held_out"]["n_cells"] == len(model.validation_indices)
    expected = -model.get_elbo(indices=model.validation_indices)
    assert found["held_out"]["elbo"] == pytest.approx(expected, rel=1e-4)
    qzm_nk, qzv_nk = model.get_latent_representation(return_dist=True)
    kl_k = 0.5 * (qzm_nk**2 + qzv_nk - 1 - np.log(qzv_nk)).mean(axis=0)
    assert found["latent"]["kl"] == pytest.approx(kl_k.tolist(), rel=1e-3)
    assert found["sampling"]["is_everything"]
    assert 0 <= found["scores"]["integration"]["value"] <= 1
    assert {one["donor"] for one in found["donors"]["losses"]} <= {"b0", "b1"}


def test_the_verdict_has_three_numbers_and_advice(written: WrittenReport) -> None:
    names = [number.name for number in written.verdict.numbers]
    assert names == ["Held-out ELBO", "Integration", "Conservation"]
    assert all(finding.advice for finding in written.verdict.findings if finding.level == "bad")
    assert written.verdict.text in written.html.read_text()


def test_multiqc_reads_a_table_with_one_row(written: WrittenReport) -> None:
    assert written.multiqc is not None
    assert written.multiqc.name == "report_mqc.json"
    section = json.loads(written.multiqc.read_text())
    assert section["plot_type"] == "table"
    assert section["data"]["SCVI"].keys() == section["headers"].keys()


def test_an_unknown_column_and_a_wrong_name_are_refused(model: SCVI, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="colour"):
        model.report(tmp_path / "report.html", columns=["colour"])
    with pytest.raises(ValueError, match=r"\.html"):
        model.report(tmp_path / "report.txt")


@pytest.mark.parametrize("width", [390, 1440])
def test_chromium_shows_the_page_without_an_error_or_a_request(written: WrittenReport, width: int) -> None:
    chromium = Path("/usr/bin/chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not chromium.exists():
        pytest.skip(f"{chromium} is not installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": width, "height": 900})
            told: list[str] = []
            page.on("console", lambda message: told.append(message.text))
            page.on("pageerror", lambda error: told.append(str(error)))
            page.on("request", lambda one: told.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
            page.goto(written.html.as_uri())
            assert told == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            broken = "[...document.images].filter(image => !(image.complete && image.naturalWidth)).length"
            assert page.evaluate(broken) == 0
            assert page.evaluate("document.images.length") > 10
            assert len(page.pdf(format="A4")) > 10_000  # it prints
        finally:
            browser.close()
