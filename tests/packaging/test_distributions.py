"""The sdist and the wheel: what they hold, the wheel in an otherwise empty environment, the tests of the sdist."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dist_scvi

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.packaging


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from what the sdist holds."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    [wheel] = distributions.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def described(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="session")
def unpacked(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    [sdist] = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [root] = folder.iterdir()
    return root


def test_the_wheel_holds_the_bundle_of_the_page_and_not_its_sources(wheel: Path) -> None:
    folder, page = "dist_scvi/launch/serve/page/", ROOT / "launch" / "serve" / "page"
    with zipfile.ZipFile(wheel) as archive:
        found = {
            name.removeprefix(folder): archive.read(name) for name in archive.namelist() if name.startswith(folder)
        }
    assert set(found) == {f"public/{path.name}" for path in (page / "public").iterdir()}
    for name, content in found.items():
        assert hashlib.sha256(content).digest() == hashlib.sha256((page / name).read_bytes()).digest(), name


def test_the_wheel_holds_the_package_and_no_command_of_a_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "dist_scvi").rglob("*.py")}
    for layer in ("loaders", "launch"):
        tracked |= {f"dist_scvi/{path.relative_to(ROOT)}" for path in (ROOT / layer).rglob("*.py")}
    assert tracked - names == {"dist_scvi/launch/check_environment.py"}
    assert {"dist_scvi/py.typed", "dist_scvi/launch/clusters/constraints.txt"} <= names
    scripts = {name for name in names if name.endswith(".sh")}
    assert scripts
    assert all(name.startswith("dist_scvi/launch/clusters/templates/") for name in scripts)
    assert {name.split("/")[0] for name in names} == {"dist_scvi", f"dist_scvi-{dist_scvi.__version__}.dist-info"}


def test_the_metadata_is_that_of_the_checkout_and_no_link_of_the_page_is_relative(described: Message) -> None:
    assert described["Version"] == dist_scvi.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {dist_scvi.__version__}\n" in citation
    [repository] = [url for url in described.get_all("Project-URL", []) if url.startswith("Repository")]
    assert f"\nrepository-code: {repository.split(', ')[1]}\n" in citation
    assert described["Author"]
    assert any("Development Status" in line for line in described.get_all("Classifier", []))
    page = described.get_payload()
    assert isinstance(page, str)
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links
    assert [link for link in links if not re.match(r"https?:|#", link)] == []
    extras = set(described.get_all("Provides-Extra", []))
    named = {
        extra for line in described.get_all("Requires-Dist", []) for extra in re.findall(r"extra == '(.+?)'", line)
    }
    assert extras == named


def required(requirement: Requirement, found: dict[str, metadata.Distribution], extra: str = "") -> None:
    """Collect the distributions that a requirement brings, and those that they bring."""
    if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
        return
    distribution = metadata.distribution(requirement.name)
    for part in requirement.extras or {""}:
        key = f"{requirement.name.lower()}[{part}]"
        if key not in found:
            found[key] = distribution
            for line in distribution.requires or []:
                required(Requirement(line), found, part)


def link_files(distributions: Iterable[metadata.Distribution], site: Path) -> None:
    """Make what is installed here visible in another environment, one package at a time."""
    for distribution in distributions:
        for top in {Path(str(file)).parts[0] for file in distribution.files or []} - {"..", "__pycache__", "bin"}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)


@pytest.mark.timeout(900)
def test_the_wheel_works_where_nothing_else_is_installed_than_it_requires(
    wheel: Path, described: Message, tmp_path: Path
) -> None:
    # What it requires is linked from this environment: gigabytes less to install, and no network.
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)
    found: dict[str, metadata.Distribution] = {}
    for line in described.get_all("Requires-Dist", []):
        required(Requirement(line), found)
    link_files(found.values(), site)
    assert not (site / "scanpy").exists()

    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    commands = """
dist-scvi --version
python -c "import dist_scvi, sys; assert dist_scvi.__file__.startswith(sys.prefix), dist_scvi.__file__"
python -c "import dist_scvi as d, pkgutil
names = [module.name for module in pkgutil.walk_packages(d.__path__, 'dist_scvi.')]
[__import__(name) for name in names if 'triton' not in name and '.serve.' not in name]"  # the extra of serve is absent
dist-scvi simulate cells.zarr --cells 600 --genes 60
dist-scvi train data.uri=cells.zarr data.batch_key=batch run=run train.max_epochs=1 train.batch_size=64 train.lanes=2
dist-scvi launch kuberay run/config.yaml run=s3://bucket/run data.uri=s3://bucket/cells.zarr --on-demand --image a/b
"""
    done = subprocess.run(
        ["bash", "-euc", commands],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_the_tests_of_the_sdist_pass_where_it_is_unpacked(unpacked: Path) -> None:
    # Those that read files of the checkout: the others are the same code as in the suite.
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not ray and not thorough"]
    chosen = ["tests/test_layout.py", "tests/test_layers.py", "tests/launch/clusters/test_templates.py"]
    for words in ([*command, *chosen], [*command, "--collect-only", "tests"]):
        done = subprocess.run(
            words, cwd=unpacked, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:]
