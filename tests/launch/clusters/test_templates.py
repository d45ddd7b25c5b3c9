"""The templates of the scripts: shellcheck finds nothing in them, alone or as they are rendered for each target."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dist_scvi.launch.clusters.templates import constraints, pinned_version, render_script
from dist_scvi.launch.exit_codes import AGAIN, MISTAKE
from tests.launch.clusters.test_command import TARGETS, launch, parsed

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "launch" / "clusters" / "templates"
needs_shellcheck = pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")


def shellcheck(script: str, *more: str) -> None:
    words = ["shellcheck", "--shell=bash", "--exclude=SC1091", *more, "-"]  # SC1091: the environment of another machine
    found = subprocess.run(words, input=script, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 0, found.stdout


@needs_shellcheck
@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.sh")), ids=lambda path: path.stem)
def test_shellcheck_finds_nothing_in_a_template(template: Path) -> None:
    shellcheck(template.read_text())


@needs_shellcheck
@pytest.mark.parametrize("target", TARGETS)
def test_shellcheck_finds_nothing_in_a_rendered_script_and_every_variable_is_assigned(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("run: s3://bucket/it's\ndata: {uri: s3://bucket/atlas.zarr}\n")
    launch(parsed(target, config, "--nodes 1:2 --workers 1:2" if target != "skypilot" else ""))
    printed = capsys.readouterr().out
    found = [printed] if target == "slurm" else texts(list(yaml.safe_load_all(printed)))
    scripts = [text for text in found if "\n" in text and not text.startswith("run: ")]
    assert scripts
    for script in scripts:
        shellcheck(script, "--severity=warning", "--exclude=SC1091,SC2034")  # SC2034: what one target alone reads


def texts(node: object) -> list[str]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        return [text for part in node for text in texts(part)]
    return [node] if isinstance(node, str) else []


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    script = render_script({"status": ["true"]}, "run_state") + '\necho "$again $mistake"'
    printed = subprocess.run(["bash", "-uc", script], capture_output=True, text=True, check=True).stdout
    assert printed == f"{AGAIN} {MISTAKE}\n"


def test_the_constraints_of_the_checkout_are_those_of_the_package() -> None:
    assert constraints() == (ROOT / "constraints.txt").read_text()
    assert f"ray=={pinned_version('ray')}" in constraints().splitlines()
