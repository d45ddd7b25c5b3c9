"""The GPU kernels are the plain formula; without a GPU Triton's interpreter runs them."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from dist_scvi.network.likelihood import choose_path


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_kernels_are_the_plain_formula_in_value_and_gradient() -> None:
    script = [sys.executable, "-m", "tests.dist_scvi.network.triton_on_cpu"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 6


def test_a_path_is_chosen_by_device() -> None:
    assert choose_path(torch.device("cpu")) == "numba"
    assert choose_path(torch.device("cuda")) == ("triton" if find_spec("triton") else "torch")
    assert choose_path(torch.device("mps")) == "torch"
