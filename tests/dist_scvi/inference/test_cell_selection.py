"""Cells are chosen by row, mask or value, and answered for in the order asked, by one worker or several."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from dist_scvi.inference import cell_selection as module
from dist_scvi.inference.cell_selection import Selection, rows_where, select
from dist_scvi.loaders import CellData
from tests.dist_scvi.workers import together


def totals(minibatch: Any) -> tuple[np.ndarray, np.ndarray]:
    return minibatch.row_n, np.stack([minibatch.library_n, minibatch.row_n], axis=1)


def rows(chosen: Selection) -> list[int]:
    return chosen.answer(totals)[0].tolist()


def test_all_cells_are_chosen_by_default(data: CellData, adata: Any) -> None:
    chosen = select(data)
    row_n, table = chosen.answer(totals)
    assert chosen.n_cells == adata.n_obs
    np.testing.assert_array_equal(row_n, np.arange(adata.n_obs))
    np.testing.assert_array_equal(table[:, 0], np.asarray(adata.X.sum(1))[:, 0])
    np.testing.assert_array_equal(chosen.obs_names(), adata.obs_names)


@pytest.mark.parametrize("asked", [[5, 3, 400, 3, 0], np.arange(20)[::-1], range(7), pd.Series([9, 1])])
def test_rows_are_answered_for_in_the_order_asked_however_often(data: CellData, adata: Any, asked: Any) -> None:
    chosen = select(data, asked)
    assert rows(chosen) == list(asked)
    assert chosen.n_cells == len(set(asked))
    np.testing.assert_array_equal(chosen.obs_names(), adata.obs_names[list(asked)])


def test_a_mask_chooses_the_cells_where_it_is_true(data: CellData, adata: Any) -> None:
    mask = (adata.obs["batch"] == "b1").to_numpy()
    assert rows(select(data, mask)) == np.flatnonzero(mask).tolist()
    assert rows(select(data, adata.obs["batch"] == "b1")) == np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("page_rows", [16, 1 << 16])
def test_values_of_columns_choose_the_cells_that_have_them_all(
    data: CellData, adata: Any, monkeypatch: pytest.MonkeyPatch, page_rows: int
) -> None:
    monkeypatch.setattr(module, "PAGE_ROWS", page_rows)
    obs = adata.obs
    wanted = (obs["batch"] == "b1") & obs["label"].isin(["B", "NK"])
    where = {"batch": "b1", "label": ["NK", "B"]}
    np.testing.assert_array_equal(rows_where(data, where), np.flatnonzero(wanted))
    assert rows(select(data, where)) == np.flatnonzero(wanted).tolist()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "indices is empty: at least one cell is needed"),
        (np.zeros(403, dtype=bool), "indices is empty"),
        (np.ones(402, dtype=bool), "a mask of shape .402,.: a bool for each of 403 cells"),
        ([0, 403], "run from 0 to 403: there are cells 0 to 402"),
        ([-1], "run from -1 to -1"),
        ([0.5], "row numbers are needed"),
        ({"donor": "d1"}, "donor"),
        ({"label": "monocyte"}, "'label' has no value 'monocyte': it has B, NK, T"),
        ({"label": []}, "no cell has"),
    ],
)
def test_a_choice_of_nothing_or_of_what_is_not_there_is_refused(data: CellData, cells: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(data, cells)


def test_workers_share_the_cells_and_each_gets_the_answer_of_all(data: CellData) -> None:
    asked = np.random.default_rng(0).permutation(403)[:100]
    alone = select(data, asked).answer(totals)
    for size, chunk_cells in ((2, 7), (3, 40), (2, 1000)):
        for found in together(
            size, lambda world, c=chunk_cells: select(data, asked).answer(totals, world, chunk_cells=c)
        ):
            for array, expected in zip(found, alone, strict=True):
                np.testing.assert_array_equal(array, expected)


def test_each_cell_is_read_by_one_worker_and_the_step_is_its_place(data: CellData) -> None:
    chosen = select(data, np.arange(0, 403, 4))

    def spans(world: Any) -> list[tuple[int, list[int]]]:
        return [(found.step, found.row_n.tolist()) for found in chosen.minibatches(world, chunk_cells=10)]

    shares = together(2, spans)
    read = sorted(span for share in shares for span in share)
    assert [step for step, _ in read] == list(range(0, 101, 10))
    assert [row for _, part in read for row in part] == chosen.rows(0, 403).tolist()
    assert abs(len(shares[0]) - len(shares[1])) <= 1
