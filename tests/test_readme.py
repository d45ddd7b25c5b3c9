"""What the README says works."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ("README.md", *(f"{folder}/README.md" for folder in ("loaders", "dist_scvi", "launch", "tests", "benchmarks")))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.ray
@pytest.mark.timeout(560)
def test_the_commands_and_the_notebooks_of_the_readme_run(tmp_path: Path) -> None:
    [commands] = [block for block in blocks("bash") if "simulate" in block.splitlines()[0] and "demo" not in block]
    bin_folder = Path(sys.executable).parent
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"export PATH={bin_folder}:$PATH\n{commands}"], cwd=tmp_path, check=True
    )
    assert (tmp_path / "latent.csv").exists()
    notebooks = blocks("python")
    assert len(notebooks) == 2
    for notebook in notebooks:
        subprocess.run([sys.executable, "-c", notebook], cwd=tmp_path, check=True)
    assert (tmp_path / "minified" / "ATLAS.json").exists()
    assert (tmp_path / "scanvi" / "model.pt").exists()


def test_the_numbers_are_those_of_the_result_files() -> None:
    spec = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.headline_table() in README
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert [table for table in module.tables() if table not in page] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_links_to_exist(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_readme_can_be_read_at_a_sitting() -> None:
    assert README.count("\n") <= 170
