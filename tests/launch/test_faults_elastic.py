"""The number of workers changes in mid-epoch, again and again: the losses stay those of one worker."""

from pathlib import Path

import numpy as np
import pytest

from dist_scvi.metrics.metrics_file import Row, read_metrics
from tests.launch.fault_runs import (
    STEP,
    Crew,
    Toy,
    fault,
    finish_here,
    steps_done_again,
    toy_cells,
    train_here,
    write_config,
)

pytestmark = pytest.mark.timeout(280)

EPOCHS = 21


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("elastic")
    toy_cells().write_h5ad(folder / "cells.h5ad")
    settings = {"max_epochs": EPOCHS, "lanes": 8, "n_steps_kl_warmup": 100}
    settings |= {"save_every_n_steps": 50, "log_every_n_steps": 1}
    toy = Toy(write_config(folder / "run.yaml", folder / "cells.h5ad", **settings), folder)
    finish_here(toy)
    return toy


@pytest.mark.parametrize("workers", [2, 4])
def test_losses_of_200_steps_are_those_of_one_worker(workers: int, alone: Toy, crew: Crew, tmp_path: Path) -> None:
    toy = Toy(alone.config, tmp_path)
    crew.finish(toy, workers=workers)
    assert_losses_of(toy, alone)


def test_4_workers_become_2_and_1_and_8_in_mid_epoch(alone: Toy, crew: Crew, tmp_path: Path) -> None:
    toy = Toy(alone.config, tmp_path)
    for workers, step in ((4, 53), (2, 50)):  # what is asked is done one or two steps later
        stop = fault(STEP, "SIGTERM", step)
        assert crew.train(toy, workers=workers, faults={workers - 1: [stop]}).codes == [75] * workers
        assert toy.saved()[-1] % 10
    assert train_here(toy, faults=[fault(STEP, "SIGTERM", 48)]).codes == [75]
    assert toy.saved()[-1] % 10
    crew.finish(toy, workers=8)
    assert {note["size"] for note in toy.steps_taken()} == {1, 2, 4, 8}
    assert steps_done_again(toy) == 0
    assert_losses_of(toy, alone)


def assert_losses_of(toy: Toy, alone: Toy) -> None:
    rows, expected = read_metrics(toy.place), read_metrics(alone.place)
    assert sum(row["kind"] == "train" for row in rows) >= 200
    assert [(row["kind"], row["epoch"], row["step"], row.get("cells_hash")) for row in rows] == [
        (row["kind"], row["epoch"], row["step"], row.get("cells_hash")) for row in expected
    ]
    np.testing.assert_allclose(losses(rows), losses(expected), rtol=1e-5)


def losses(rows: list[Row]) -> np.ndarray:
    return np.array([(row["elbo"], row["reconstruction"], row["kl"]) for row in rows])
