"""The bundle that is committed: small, of the sources beside it, with the licences of what it contains."""

import gzip
import hashlib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[4] / "launch" / "serve" / "page"
needs_sources = pytest.mark.skipif(not (PAGE / "src").is_dir(), reason="an installed package has the bundle alone")


@needs_sources
def test_the_bundle_is_of_these_sources() -> None:
    names = [
        "package.json",
        *(f"{folder}/{path.name}" for folder in ("src", "vendor") for path in (PAGE / folder).iterdir()),
    ]
    found = hashlib.sha256()
    for name in sorted(names):
        found.update(f"{name}\n".encode() + (PAGE / name).read_bytes())
    first = (PAGE / "public" / "app.js").read_text().splitlines()[0]
    assert first == f"// sources {found.hexdigest()}", "cd launch/serve/page && npm ci && npm run bundle"


def test_the_page_takes_less_than_150_kilobytes_on_the_wire() -> None:
    sizes = {path.name: len(gzip.compress(path.read_bytes())) for path in (PAGE / "public").iterdir()}
    assert set(sizes) == {"app.css", "app.js", "index.html", "LICENSES.txt"}
    assert sum(sizes.values()) < 150_000


def test_nothing_is_compiled_from_text_and_nothing_is_inline() -> None:
    script, markup = (PAGE / "public" / "app.js").read_text(), (PAGE / "public" / "index.html").read_text()
    assert "new Function" not in script
    assert "eval(" not in script
    assert markup.count("<script") == 1
    assert "style=" not in markup
    assert "https://" not in markup
