"""Steps that two workers take together are those of one, however they compute them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

from dist_scvi.world import World
from tests.dist_scvi import step_workers
from tests.dist_scvi.step_workers import CASES, MODELS, take_steps

Found = dict[tuple[str, str], dict[str, Any]]
EXACT = [case for case in CASES if case not in ("mixed", "compressed")]


@pytest.fixture(scope="module")
def cells(adata: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of which every twentieth has a label, too few for the second worker to hold any."""
    adata = adata.copy()
    label = adata.obs["label"].astype(str).to_numpy()
    adata.obs["label"] = np.where(np.arange(len(label)) % 20 == 0, label, "unknown")
    path = tmp_path_factory.mktemp("together") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def workers(cells: Path) -> list[Found]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [step_workers.__file__, str(cells), str(cells.parent)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    return [torch.load(cells.parent / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", EXACT)
def test_two_workers_take_the_steps_of_one(cells: Path, workers: list[Found], name: str, case: str) -> None:
    """In parts of another number on each, too, and with normalisation over all cells: without cells, and with."""
    alone, (first, _) = take_steps(cells, name, case, World()), [found[name, case] for found in workers]
    torch.testing.assert_close(first["sums"], alone["sums"], rtol=1e-5, atol=1e-4)
    assert_close(first["weights"], alone["weights"], 1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", ["mixed", "compressed"])
def test_in_bfloat16_they_are_the_same_within_its_rounding(
    cells: Path, workers: list[Found], name: str, case: str
) -> None:
    alone, plain = take_steps(cells, name, case, World()), workers[0][name, "plain"]
    found = workers[0][name, case]
    torch.testing.assert_close(found["sums"][:, :4], alone["sums"][:, :4], rtol=2e-3, atol=0)
    assert_close(found["weights"], alone["weights"], 3e-2)
    assert not torch.equal(found["sums"], plain["sums"])


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).double().norm() <= rtol * value.double().norm() + 1e-6, key


def test_all_workers_hold_the_same_weights_and_know_what_any_asked(workers: list[Found]) -> None:
    first, second = workers
    for key, found in first.items():
        for name, value in found["weights"].items():
            assert torch.equal(second[key]["weights"][name], value), (key, name)
        for part in ("sums", "requests"):
            assert torch.equal(second[key][part], found[part])
        assert found["requests"].tolist() == [[1.0, 0.0]] * len(found["sums"])


def test_a_step_takes_one_message_beside_the_gradients_and_two_for_each_normalisation_over_all_cells(
    workers: list[Found],
) -> None:
    for found in workers:
        n_steps = len(found["SCVI", "plain"]["sums"])
        for name, passes in (("SCVI", 2), ("SCANVI", 7)):
            # SCANVI: encoder, classifier twice each; decoder, and what is between z1 and z2, once
            for case in EXACT:
                each = 1 + 2 * passes * (case == "global")
                assert found[name, case]["messages"] == each * n_steps, (name, case)
