"""Imports point down, and what a command does not need is not imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_imports_point_down_and_no_two_files_import_each_other() -> None:
    # The rules are the contracts of import-linter in pyproject.toml. It follows the links to loaders/ and launch/.
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Contracts: 4 kept, 0 broken." in found.stdout


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import dist_scvi", "torch ray tiledbsoma dask zarr pandas"),
        ("import dist_scvi.model, dist_scvi.training.worker", "ray tiledbsoma"),
        ("import dist_scvi.metrics.status", "torch ray zarr pandas anndata numba"),
        ("import dist_scvi.atlas.atlas", "ray tiledbsoma dask anndata scipy.stats matplotlib"),
        (
            "from dist_scvi.launch.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
            "torch zarr ray pandas",
        ),
    ],
)
def test_an_import_brings_in_only_what_it_needs(statement: str, absent: str) -> None:
    script = f"import sys\n{statement}\nsys.exit(', '.join(set({absent.split()}) & set(sys.modules)) or None)"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, timeout=60, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
