"""What the README says works."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(marker: str, language: str) -> str:
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert found is not None, marker
    return found.group(1)


@pytest.mark.ray
@pytest.mark.timeout(560)
def test_the_commands_and_the_notebooks_of_the_readme_run(tmp_path: Path) -> None:
    commands = block("these commands are run by tests/test_readme.py", "bash")
    bin_folder = Path(sys.executable).parent
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"export PATH={bin_folder}:$PATH\n{commands}"], cwd=tmp_path, check=True
    )
    assert (tmp_path / "latent.csv").exists()
    subprocess.run([sys.executable, "-c", block("so is this", "python")], cwd=tmp_path, check=True)
    assert (tmp_path / "minified" / "ATLAS.json").exists()
    subprocess.run([sys.executable, "-c", block("and this", "python")], cwd=tmp_path, check=True)
    assert (tmp_path / "scanvi" / "model.pt").exists()


def test_its_numbers_are_those_of_the_result_files() -> None:
    spec = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for table in module.tables():
        assert table in README


def test_the_files_it_points_to_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []
