"""The shape of the repository: links that are links, tests that mirror modules, files that can be read at a sitting."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for layer in ("loaders", "dist_scvi", "launch") for path in (ROOT / layer).glob("*.py"))
LONG_BODIES = {"train"}


@pytest.mark.parametrize("name", ["loaders", "launch"])
def test_a_link_is_a_link(name: str) -> None:
    link = ROOT / "dist_scvi" / name
    assert link.is_symlink(), (
        f"dist_scvi/{name} is no symbolic link (a checkout without links makes it a text file): "
        f"run 'git config core.symlinks true' and check out again, or 'ln -sfn ../{name} dist_scvi/{name}'"
    )
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_module_has_its_tests(source: Path) -> None:
    if source.name == "__init__.py":
        return
    assert (ROOT / "tests" / source.parent.name / f"test_{source.name}").exists()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_file_is_over_400_lines_and_no_body_over_50(source: Path) -> None:
    text = source.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name not in LONG_BODIES:
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert (node.body[-1].end_lineno or 0) - first.lineno < 50, node.name


def test_the_top_level_is_the_agreed_one() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {path.split("/")[0] for path in listed} <= {
        *("pyproject.toml", "README.md", "dist_scvi", "loaders", "launch", "tests", "benchmarks"),
        *("CHANGELOG.md", "LICENSE", "constraints.txt", ".ci", ".gitignore"),
    }
