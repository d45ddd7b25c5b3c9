"""The shape of the repository: links that are links, folders and files that can be read at a sitting."""

import ast
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for layer in ("loaders", "dist_scvi", "launch") for path in (ROOT / layer).rglob("*.py"))
needs_checkout = pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="an sdist holds copies in place of links")
LONGEST = {"train": 100}
"""Lines of a body, where more than 50 are one story."""


@needs_checkout
@pytest.mark.parametrize("name", ["loaders", "launch"])
def test_a_link_is_a_link(name: str) -> None:
    link = ROOT / "dist_scvi" / name
    assert link.is_symlink(), (
        f"dist_scvi/{name} is no symbolic link (a checkout without links makes it a text file): "
        f"run 'git config core.symlinks true' and check out again, or 'ln -sfn ../{name} dist_scvi/{name}'"
    )
    assert link.resolve() == ROOT / name


def test_no_file_is_over_400_lines_and_no_body_over_50() -> None:
    assert SOURCES
    long = [str(path) for path in SOURCES if path.read_text().count("\n") > 400]
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                if (node.body[-1].end_lineno or 0) - first.lineno >= LONGEST.get(node.name, 50):
                    long.append(f"{path}:{node.lineno} {node.name}")
    assert not long


def test_no_folder_holds_more_than_16_modules() -> None:
    modules = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    assert max(modules.values()) <= 16, modules.most_common(3)


@needs_checkout
def test_the_init_file_of_a_package_without_a_public_face_holds_a_docstring_only() -> None:
    faces = {ROOT / "dist_scvi", ROOT / "dist_scvi" / "model", ROOT / "dist_scvi" / "atlas", ROOT / "loaders"}
    faces.add(ROOT / "dist_scvi" / "criticism")
    for path in SOURCES:
        if path.name == "__init__.py" and path.parent not in faces:
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), path
            assert len(tree.body) == 1, path


@needs_checkout
def test_the_top_level_is_the_agreed_one() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {path.split("/")[0] for path in listed} <= {
        *("pyproject.toml", "README.md", "dist_scvi", "loaders", "launch", "tests", "benchmarks"),
        *("CHANGELOG.md", "CITATION.cff", "LICENSE", "constraints.txt", ".ci", ".gitignore"),
        *("constraints-newest.txt", "constraints-lowest.txt"),
    }
