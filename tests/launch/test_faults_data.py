"""Cells that are too few, change or spoil the loss, readers that fail, and workers that drift apart."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from tests.launch.fault_runs import (
    STEP,
    Crew,
    Toy,
    assert_each_cell_once,
    assert_undisturbed,
    fault,
    finish_here,
    toy_cells,
    train_here,
    write_config,
)
from tests.loaders.order.lane_rows import minibatch_rows

pytestmark = pytest.mark.timeout(240)


class TestFewCells:
    @pytest.mark.parametrize("n_cells", [1, 3])
    @pytest.mark.parametrize("workers", [2, 4])
    def test_fewer_cells_than_two_for_each_lane_are_refused_by_all_workers(
        self, n_cells: int, workers: int, crew: Crew, tmp_path: Path
    ) -> None:
        toy = toy_of(toy_cells(n_cells), tmp_path)
        ended = crew.train(toy, workers=workers)
        assert ended.codes == [2] * workers
        assert f"(of {n_cells}) do not give two to each of 4 lanes: lower train.lanes" in ended.said
        assert not (toy.files / "metrics.jsonl").exists()

    @pytest.mark.parametrize(("n_cells", "batch_size"), [(43, 40), (43, 400), (9, 8), (97, 12)])
    def test_any_number_of_cells_gives_every_cell_once_to_two_workers_as_to_one(
        self, n_cells: int, batch_size: int, crew: Crew, tmp_path: Path
    ) -> None:
        toy = toy_of(toy_cells(n_cells), tmp_path, batch_size=batch_size)
        crew.finish(toy)
        assert_each_cell_once(toy)
        alone = replace(toy, run=f"{toy.run}-alone", files=Path())
        finish_here(alone)
        np.testing.assert_allclose([row[3] for row in toy.metrics], [row[3] for row in alone.metrics], rtol=1e-5)
        assert [row[4] for row in toy.metrics] == [row[4] for row in alone.metrics]


def put(cells: AnnData, folder: Path) -> None:
    """Write the cells, or replace them; who has the old ones open keeps these."""
    cells.write_h5ad(folder / "new.h5ad")
    (folder / "new.h5ad").replace(folder / "cells.h5ad")


def toy_of(cells: AnnData, folder: Path, **train: object) -> Toy:
    put(cells, folder)
    return Toy(write_config(folder / "run.yaml", folder / "cells.h5ad", **train), folder)


class TestWrongNumbers:
    @pytest.mark.parametrize("step", [2, 9])
    def test_a_loss_that_is_not_finite_on_one_worker_ends_all_alike_and_names_the_rows(
        self, step: int, toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
    ) -> None:
        ended = crew.train(toy, faults={1: [fault(STEP, "spoil", step)]})
        assert ended.codes == [2, 2]
        row = minibatch_rows(toy.plan(), 0, step - 1, 1)[1]  # rank 1 has lanes 1 and 3, and the second cell is spoilt
        told = re.findall(rf"nan in step {step} of epoch 1, at 5 of 40 cells \(rows (.*?)\)", ended.said)
        assert len(told) == 2
        assert told[0] == told[1]
        assert str(row) in told[0].split(", ")  # with those that were normalised with it
        assert toy.saved() == [saved for saved in (4, 8) if saved < step]
        crew.finish(toy)
        assert_undisturbed(toy, undisturbed(2))

    @pytest.mark.parametrize("at", [5, 8])
    def test_weights_that_drift_apart_are_found_at_the_next_line_or_save_and_not_saved(
        self, at: int, toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
    ) -> None:
        ended = crew.train(toy, faults={1: [fault(STEP, "perturb", at, when="after")]})
        assert ended.codes == [75, 75]
        found = {5: 6, 8: 8}[at]
        assert ended.said.count(f"after {found} steps the workers do not have the same weights (hash by rank: 0: ") == 2
        assert toy.saved() == [4]
        assert max(row[2] for row in toy.metrics) < found
        crew.finish(toy)
        assert_undisturbed(toy, undisturbed(2))


class TestReaders:
    @pytest.mark.parametrize(
        ("harm", "code", "words"),
        [
            ("raise", 1, "a fault of the test"),
            ("EIO", 1, "Input/output error"),
            ("hang", 75, "the store has not delivered its next rows in 2 s"),
        ],
    )
    def test_all_workers_end_when_the_reader_of_one_fails(
        self, harm: str, code: int, words: str, toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
    ) -> None:
        read = fault("dist_scvi.loaders.data.CellData.read", harm, 2)
        ended = crew.train(toy, "data.timeout_s=2", "data.window_cells=80", "data.block_cells=20", faults={1: [read]})
        assert ended.codes[1] == code
        assert ended.codes[0] not in (0, 2)
        assert words in ended.said
        crew.finish(toy, "data.window_cells=80", "data.block_cells=20")
        assert_each_cell_once(toy)


class TestChangedStore:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ("counts", "data.n_entries was "),
            ("genes", "data.var_names_sha256 was "),
            ("categories", "data.batch"),
            ("cells", "data.n_cells was 421, is 420"),
            ("values", "data.content (digest of counts, obs columns and names of cells) was "),
            ("order", "data.content (digest of counts, obs columns and names of cells) was "),
            ("codes", "data.content (digest of counts, obs columns and names of cells) was "),
        ],
    )
    def test_a_store_that_changed_since_the_run_began_is_refused_with_the_difference(
        self, change: str, words: str, tmp_path: Path
    ) -> None:
        toy = toy_of(toy_cells(), tmp_path)
        assert train_here(toy, faults=[fault(STEP, "SIGTERM", 5)]).codes == [75]
        before = toy.saved()
        put(changed(toy_cells(), change), tmp_path)
        ended = train_here(toy)
        assert ended.codes == [2], ended.said
        assert words in ended.said
        assert "belongs to another run" in ended.said
        assert toy.saved() == before
        put(toy_cells(), tmp_path)
        finish_here(toy)
        assert_each_cell_once(toy)


def changed(cells: AnnData, change: str) -> AnnData:
    if change == "counts":
        counts = cells.X.tolil()
        counts[7, int(np.flatnonzero(cells.X[7].toarray() == 0)[0])] = 3
        cells.X = counts.tocsr()
    elif change == "genes":
        cells = cells[:, [1, 0, *range(2, cells.n_vars)]].copy()
    elif change == "categories":
        cells.obs["batch"] = cells.obs["batch"].cat.rename_categories({"b1": "b2"})
    elif change == "values":
        cells.X.data[7] += 1
    elif change == "order":
        cells = cells[::-1].copy()
    elif change == "codes":
        cells.obs["batch"] = np.roll(cells.obs["batch"], 1)
    else:
        cells = cells[:-1].copy()
    return cells
