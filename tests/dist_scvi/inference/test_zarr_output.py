"""Answers written to a folder are those given in memory, complete or absent, and open as an AnnData."""

from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import zarr

from dist_scvi.inference import zarr_output
from dist_scvi.inference.cell_selection import Selection, select
from dist_scvi.inference.output_identity import to_json
from dist_scvi.inference.resumable_zarr import Shards
from dist_scvi.inference.zarr_output import check_count, chunk_cells_of, compute_or_write
from dist_scvi.loaders import CellData
from dist_scvi.model import SCVI
from tests.dist_scvi.workers import together

GENES = [f"g{gene}" for gene in range(6)]
write_rows = partial(zarr_output.write_rows, identity={"asked": "places"})


def answers(minibatch: Any) -> dict[str, np.ndarray]:
    row_n = minibatch.row_n
    return {
        "X": (row_n[:, None] * 10 + np.arange(6)).astype(np.float32),
        "obsm/place": np.stack([row_n, -row_n], axis=1).astype(np.float64),
        "layers/rank": np.repeat(row_n[:, None], 6, axis=1).astype(np.int32),
        "obs/total": minibatch.library_n,
    }


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks of 10 rows and shards of 30."""
    monkeypatch.setattr(zarr_output, "_CHUNK_ROWS", 10)
    monkeypatch.setattr(zarr_output, "_SHARD_CHUNKS", 3)


def check(path: Path, chosen: Selection, adata: ad.AnnData) -> None:
    found, row_n = ad.read_zarr(path), chosen.rows(0, chosen.n_cells)
    np.testing.assert_array_equal(found.obs["source_row"], row_n)
    np.testing.assert_array_equal(found.obs_names, adata.obs_names[row_n])
    np.testing.assert_array_equal(found.var_names, GENES)
    np.testing.assert_array_equal(found.X, row_n[:, None] * 10 + np.arange(6))
    np.testing.assert_array_equal(found.obsm["place"], np.stack([row_n, -row_n], axis=1))
    np.testing.assert_array_equal(found.layers["rank"], np.repeat(row_n[:, None], 6, axis=1))
    np.testing.assert_array_equal(found.obs["total"], np.asarray(adata.X.sum(1))[row_n, 0])
    dtypes = (found.X.dtype, found.obsm["place"].dtype, found.layers["rank"].dtype, found.obs["total"].dtype)
    assert dtypes == (np.float32, np.float64, np.int32, np.int64)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("cells", [None, np.arange(0, 403, 3), [402], {"batch": "b1"}, np.arange(60)])
@pytest.mark.parametrize("chunk_cells", [7, 1000])
def test_what_is_written_opens_as_an_anndata_of_the_cells_by_rising_row(
    data: CellData, adata: ad.AnnData, tmp_path: Path, cells: Any, chunk_cells: int
) -> None:
    chosen = select(data, cells)
    group = write_rows(chosen, answers, tmp_path / "deep" / "out.zarr", var_names=GENES, chunk_cells=chunk_cells)
    assert group.read_only
    assert group["X"].shape == (chosen.n_cells, 6)
    check(tmp_path / "deep" / "out.zarr", chosen, adata)


@pytest.mark.usefixtures("small_shards")
def test_workers_write_the_same_folder_together(data: CellData, adata: ad.AnnData, tmp_path: Path) -> None:
    for size in (2, 3):
        out, chosen = tmp_path / f"{size}.zarr", select(data)
        groups = together(
            size, lambda world, out=out: write_rows(select(data), answers, out, var_names=GENES, world=world)
        )
        assert [group["X"].shape for group in groups] == [(403, 6)] * size
        check(out, chosen, adata)


@pytest.mark.usefixtures("small_shards")
def test_every_chunk_is_on_disk_and_written_once(
    data: CellData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans: list[tuple[int, int]] = []
    write = Shards.write

    def record(shards: Shards, start: int, stop: int, arrays: Any) -> None:
        spans.append((start, stop))
        write(shards, start, stop, arrays)

    monkeypatch.setattr(Shards, "write", record)
    group = write_rows(select(data), lambda found: {"obs/lost": np.full(found.n_cells, np.nan)}, tmp_path / "out.zarr")
    assert spans == [(start, min(start + 30, 403)) for start in range(0, 403, 30)]
    assert group["obs/lost"].shards == (30,)
    assert len(list((tmp_path / "out.zarr/obs/lost/c").iterdir())) == len(spans)


def test_chunks_and_shards_are_bounded_in_bytes_and_there_is_work_for_many(data: CellData, tmp_path: Path) -> None:
    for row_bytes, n_cells, chunk_most in ((80_000, 10**7, 1 << 22), (40, 10**7, 1 << 22), (1 << 24, 50, 1 << 24)):
        chunk, shard = zarr_output._rows_together({"X": np.zeros((1, row_bytes), np.uint8)}, n_cells)
        assert chunk * row_bytes <= chunk_most
        assert shard % chunk == 0
        assert shard * row_bytes <= 16 * chunk_most
        assert n_cells / shard > 10


def test_a_folder_that_was_not_finished_is_absent_and_does_not_hinder_the_next(
    data: CellData, adata: ad.AnnData, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"

    def break_off(minibatch: Any) -> dict[str, np.ndarray]:
        if minibatch.row_n[0] > 100:
            raise RuntimeError("the power is gone")
        return answers(minibatch)

    with pytest.raises(RuntimeError, match="the power is gone"):
        write_rows(select(data), break_off, out, var_names=GENES, chunk_cells=50)
    assert not out.exists()
    write_rows(select(data), answers, out, var_names=GENES)
    check(out, select(data), adata)
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


@pytest.mark.usefixtures("small_shards")
def test_what_was_computed_is_not_computed_again_but_for_another_question(
    data: CellData, adata: ad.AnnData, tmp_path: Path
) -> None:
    out, computed = tmp_path / "out.zarr", []

    def compute(minibatch: Any) -> dict[str, np.ndarray]:
        if minibatch.n_cells > 1:  # else it is asked what there is to write
            computed.append(int(minibatch.row_n[0]))
            if computed[-1] == 120:
                raise RuntimeError("the power is gone")
        return answers(minibatch)

    def begin(cells: Any = None, **options: Any) -> int:
        computed.clear()
        with pytest.raises(RuntimeError, match="the power is gone"):
            write_rows(select(data, cells), compute, out, var_names=GENES, chunk_cells=15, **options)
        return computed[0]

    assert begin() == 0
    for another in ({"cells": np.arange(300)}, {"identity": {"seed": 2}}, {"attributes": {"labels": ["B"]}}):
        assert begin(**another) == 0
        assert begin(**another) == 120
    told: list[tuple[int, int]] = []
    options = {"chunk_cells": 30, "on_progress": lambda *at: told.append(at)}  # computed in other steps from here on
    write_rows(select(data), answers, out, var_names=GENES, attributes={"labels": ["B"]}, **options)
    assert told[:2] == [(120, 403), (150, 403)]
    assert told[-1] == (403, 403)
    check(out, select(data), adata)


def test_what_is_added_in_the_end_is_there_when_the_folder_appears(data: CellData, tmp_path: Path) -> None:
    def add(root: zarr.Group) -> None:
        assert not (tmp_path / "out.zarr").exists()
        root.attrs["added"] = True

    assert write_rows(select(data), answers, tmp_path / "out.zarr", finish=add).attrs["added"]


def test_a_place_that_is_taken_or_far_away_is_refused(data: CellData, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match=r"out='.*mine' exists: give another path"):
        write_rows(select(data), answers, tmp_path / "mine")
    with pytest.raises(ValueError, match="a folder on a disk is needed, not a URL"):
        write_rows(select(data), answers, "s3://bucket/out.zarr")


@pytest.mark.parametrize(("cells", "place", "row"), [([4, 9, 7], 1, 9), ([4, 7, 7], 2, 7), ([0, 5, 2, 8], 1, 5)])
def test_cells_in_another_order_are_refused(
    data: CellData, tmp_path: Path, cells: list[int], place: int, row: int
) -> None:
    with pytest.raises(ValueError, match=rf"indices\[{place}\] is row {row}.*sort indices, or leave out away"):
        write_rows(select(data, cells), answers, tmp_path / "out.zarr")
    write_rows(select(data, sorted(set(cells))), answers, tmp_path / "out.zarr", var_names=GENES)


def test_the_answer_in_memory_is_in_the_order_asked_and_on_disk_the_same(data: CellData, tmp_path: Path) -> None:
    found = compute_or_write(select(data, [9, 2, 9]), answers, identity={}, batch_size=2)
    assert isinstance(found, list)
    np.testing.assert_array_equal(found[1], [[9, -9], [2, -2], [9, -9]])
    group = compute_or_write(
        select(data, [2, 9]), answers, tmp_path / "out.zarr", identity={}, var_names=GENES, batch_size=1
    )
    assert isinstance(group, zarr.Group)
    np.testing.assert_array_equal(group["obsm/place"], [[2, -2], [9, -9]])


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "8"])
def test_a_number_of_cells_is_a_whole_number_from_one(value: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_size=.*: a whole number from 1 is needed"):
        chunk_cells_of(value)
    check_count("n", np.int64(3))
    assert (chunk_cells_of(None), chunk_cells_of(7)) == (1024, 7)


def test_progress_counts_the_cells_that_are_written(data: CellData, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_rows(
        select(data),
        answers,
        tmp_path / "o.zarr",
        var_names=GENES,
        chunk_cells=100,
        on_progress=lambda *at: seen.append(at),
    )
    assert seen == [(0, 403), (100, 403), (200, 403), (300, 403), (400, 403), (403, 403)]


ASKED = {
    "get_latent_representation": ({}, {"give_mean": False}, {"mc_samples": 9}, {"return_dist": True}, {"seed": 1}),
    "get_elbo": ({"return_mean": False}, {"return_mean": False, "seed": 1}),
    "get_reconstruction_error": ({"return_mean": False}, {"return_mean": False, "seed": 1}),
    "get_marginal_ll": ({"return_mean": False, "n_mc_samples": 2}, {"return_mean": False, "n_mc_samples": 3}),
    "get_latent_library_size": ({"give_mean": False}, {"give_mean": False, "seed": 1}),
    "differential_abundance": (
        {"sample_key": "batch"},
        {"sample_key": "site"},
        {"sample_key": "batch", "num_cells_posterior": 5},
        {"sample_key": "batch", "dof": 3.0},
        {"sample_key": "batch", "variance_as_scale": True},
    ),
    "get_normalized_expression": (
        {},
        {"transform_batch": "b1"},
        {"gene_list": ["gene1"]},
        {"library_size": 10.0},
        {"library_size": "latent"},
        {"n_samples": 2},
        {"n_samples": None},
        {"seed": 1},
    ),
    "posterior_predictive_sample": ({}, {"transform_batch": "b1"}, {"gene_list": ["gene1"]}, {"seed": 1}),
}


@pytest.mark.parametrize("method", ASKED)
def test_each_argument_that_decides_an_answer_makes_it_another_question(
    model: SCVI, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AskedError(Exception):
        pass

    asked: list[str] = []

    def note(*_: Any, identity: Any, **_options: Any) -> None:
        asked.append(to_json(identity))
        raise AskedError

    def ask(arguments: Any) -> str:
        with pytest.raises(AskedError):
            getattr(model, method)(**arguments, out=tmp_path / "out")
        return asked[-1]

    monkeypatch.setattr(zarr_output, "write_rows", note)
    first = [ask(arguments) for arguments in ASKED[method]]
    assert len(set(first)) == len(ASKED[method])
    assert [ask({**arguments, "batch_size": 7}) for arguments in ASKED[method]] == first
    weights = model.module.px_r.data
    model.module.px_r.data = weights + 1
    changed = ask(ASKED[method][0])
    model.module.px_r.data = weights
    assert changed != first[0]
