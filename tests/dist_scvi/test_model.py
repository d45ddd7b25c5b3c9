"""The public names: those of scvi-tools, imported on first use."""

import subprocess
import sys

import pytest

import dist_scvi


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, dist_scvi; print([name for name in ('torch', 'ray', 'tiledbsoma') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_public_names_are_there_and_no_others() -> None:
    assert all(hasattr(dist_scvi, name) for name in dist_scvi.__all__)
    with pytest.raises(AttributeError, match=r"^module 'dist_scvi' has no attribute 'TOTALVI'$"):
        _ = dist_scvi.TOTALVI


def test_the_models_are_where_scvi_tools_has_them() -> None:
    for name in ("SCVI", "SCANVI", "LinearSCVI"):
        assert getattr(dist_scvi.model, name) is getattr(dist_scvi, name)
        assert getattr(dist_scvi.model, name).model_name == name
