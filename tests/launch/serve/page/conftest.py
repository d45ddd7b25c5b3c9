"""A browser on the page of the small atlas: one browser and one service for all tests."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.atlas.cell_map import landmarks
from dist_scvi.atlas.cell_map.write_map import write_map
from dist_scvi.launch.serve.limits import Service
from tests.launch.serve.conftest import running

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
"""WebGL by the processor: Chromium does not fall back to it by itself."""

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def principal_components(qzm_mk: np.ndarray, options: landmarks.MapOptions) -> np.ndarray:
    """Lay cells out in a moment: the page does not know how coordinates were found, and UMAP takes long to compile."""
    centred = qzm_mk - qzm_mk.mean(axis=0)
    return (centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T).astype(np.float32)


@pytest.fixture(scope="session")
def mapped_path(atlas_path: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landmarks, "umap_coordinates", principal_components)
        write_map(open_atlas(atlas_path))
    return atlas_path


@pytest.fixture(scope="session")
def address(service: Service, mapped_path: Path) -> Iterator[str]:
    assert (mapped_path / "map").is_dir()
    limits = replace(service.limits, questions_per_client=32, values=1_000_000)
    with running(replace(service, limits=limits)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def browser() -> Iterator["sync_api.Browser"]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


Open = Callable[..., "sync_api.Page"]


@pytest.fixture
def problems() -> list[str]:
    """What the console of the browser said; a test that expects something clears it."""
    return []


@pytest.fixture
def open_page(browser: "sync_api.Browser", address: str, problems: list[str]) -> Iterator[Open]:
    """Open the page; errors on its console, and requests to any other host, fail the test."""
    contexts = []

    def show(fragment: str = "", *, width: int = 1440, script: str = "", at: str = address) -> "sync_api.Page":
        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(150_000)  # the first question of a kind is compiled
        page.on("console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda asked: None if _is_own(asked.url, at) else problems.append(f"asks {asked.url}"))
        if script:
            page.add_init_script(script)
        page.goto(f"{at}/{fragment}")
        return page

    yield show
    for context in contexts:
        context.close()
    assert not problems


def _is_own(url: str, address: str) -> bool:
    return url.startswith((address, "blob:", "data:"))


@pytest.fixture
def shoot(request: pytest.FixtureRequest) -> Callable[["sync_api.Page"], None]:
    """Keep a picture of the page in the folder that the variable SCREENSHOTS names."""

    def keep(page: "sync_api.Page") -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)

    return keep
