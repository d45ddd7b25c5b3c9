"""The Dockerfiles: hadolint finds nothing, they install the tested versions, and copy what exists."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dist_scvi.launch.clusters.templates import pinned_version

ROOT = Path(__file__).parents[3]
DOCKERFILES = sorted((ROOT / "launch" / "clusters" / "docker").glob("Dockerfile.*"))


def instructions(dockerfile: Path, name: str) -> list[str]:
    text = re.sub(r"(?m)^#.*\n", "", dockerfile.read_text()).replace("\\\n", " ")
    return [line.removeprefix(f"{name} ").strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_there_is_one_for_cpus_and_one_for_cuda() -> None:
    assert [path.suffix for path in DOCKERFILES] == [".cpu", ".cuda"]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    found = subprocess.run(["hadolint", dockerfile], capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 0, found.stdout
    assert found.stdout == ""


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_it_installs_the_tested_versions_and_copies_what_exists(dockerfile: Path) -> None:
    for copy in instructions(dockerfile, "COPY"):
        *sources, _ = copy.split()
        assert [source for source in sources if not (ROOT / source).exists()] == []
    installs = [line for line in instructions(dockerfile, "RUN") if "pip install" in line]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in line for line in installs)
    assert ("download.pytorch.org/whl/cpu" in installs[0]) == (dockerfile.suffix == ".cpu")
    [base] = instructions(dockerfile, "FROM")
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-bookworm", base)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_steps_of_the_image_for_cpus_install_a_dist_scvi_that_runs(tmp_path: Path) -> None:
    # Images cannot be built everywhere; the steps are shell, and run in a folder in place of /opt.
    [dockerfile] = [path for path in DOCKERFILES if path.suffix == ".cpu"]
    work = tmp_path / "dist-scvi"
    work.mkdir()
    for copy in instructions(dockerfile, "COPY"):
        *sources, target = copy.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, work / target, symlinks=True)
            else:
                shutil.copy(ROOT / source, work)
    # The index of CPU builds is not reachable everywhere: torch comes from where pip is told to look.
    lines = [re.sub(r"--extra-index-url \S+", "", line) for line in instructions(dockerfile, "RUN")]
    steps = [line.replace("/opt/venv", str(tmp_path / "venv")) for line in lines if "pip install" in line]
    environment = {
        "PATH": f"{tmp_path}/venv/bin:{Path(shutil.which('python3') or '').parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        **{key: value for key, value in os.environ.items() if key.startswith("PIP_")},
    }
    for step in [*steps, "dist-scvi --version", "ray --version", "python -c 'import tiledbsoma'"]:
        done = subprocess.run(
            ["bash", "-euc", step], cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.quote(step)}: {done.stderr[-3000:]}"
    frozen = subprocess.run(["pip", "freeze"], env=environment, capture_output=True, text=True, check=True).stdout
    assert f"ray=={pinned_version('ray')}\n" in frozen
