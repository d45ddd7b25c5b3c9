"""Minifying: an AnnData that others open, equal to the model's own answers, and there only when complete."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.atlas.minify import minify
from dist_scvi.loaders import CellData, open_data
from dist_scvi.model import SCVI
from dist_scvi.network.model_files import load_model
from tests.dist_scvi.workers import together

KEYS = {"batch_key": "batch", "categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 403 cells make 13 shards of two chunks."""
    monkeypatch.setattr("dist_scvi.atlas.minify._CHUNK_CELLS", 16)


@pytest.fixture
def rich(adata: ad.AnnData) -> CellData:
    """The cells with further obs columns."""
    more = adata.copy()
    more.obs["depth"] = np.arange(403, dtype=np.int16)
    more.obs["quality"] = np.where(np.arange(403) % 5 == 0, np.nan, 0.5)
    more.obs["group"] = pd.Categorical.from_codes(np.arange(403) % 4 - 1, ["g2", "g1", "g0"])
    more.obs["doublet"] = np.arange(403) % 7 == 0
    return open_data(more, **KEYS)


@pytest.fixture
def write(model: SCVI, tmp_path: Path) -> Callable[..., Path]:
    def run(data: CellData, name: str = "atlas", **options: object) -> Path:
        minify(model.module, model.spec, data, tmp_path / name, **options)
        return tmp_path / name

    return run


def opened(path: Path) -> ad.AnnData:
    return ad.read_zarr(path / "cells.zarr")


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_anndata_opens_it_and_finds_what_the_model_says(model: SCVI, data: CellData, write, adata: ad.AnnData) -> None:
    atlas = opened(write(data))
    qzm, qzv = model.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(atlas.obsm["scvi_latent_qzm"], qzm, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(atlas.obsm["scvi_latent_qzv"], qzv, rtol=1e-5)
    np.testing.assert_array_equal(atlas.obs["observed_lib_size"], np.asarray(adata.X.sum(1)).ravel())
    assert atlas.X is None
    assert list(atlas.var_names) == list(adata.var_names)


def test_rows_are_those_of_the_source_in_its_order(data: CellData, write, adata: ad.AnnData) -> None:
    atlas = opened(write(data))
    assert list(atlas.obs_names) == list(adata.obs_names)
    np.testing.assert_array_equal(atlas.obs["source_row"], np.arange(403))


def test_covariates_and_label_are_carried_over(data: CellData, write, adata: ad.AnnData) -> None:
    obs = opened(write(data)).obs
    for key in ("batch", "label", "site"):
        assert list(obs[key].cat.categories) == list(adata.obs[key].cat.categories)
        assert list(obs[key]) == list(adata.obs[key])
    np.testing.assert_array_equal(obs["age"], adata.obs["age"])


def test_columns_asked_for_are_carried_over(rich: CellData, write) -> None:
    obs = opened(write(rich, obs_columns=["depth", "quality", "group", "doublet", "site"])).obs
    assert obs["depth"].dtype == np.int16
    np.testing.assert_array_equal(obs["depth"], np.arange(403))
    np.testing.assert_array_equal(obs["quality"].isna(), np.arange(403) % 5 == 0)
    names = np.array([None, "g2", "g1", "g0"], dtype=object)[np.arange(403) % 4]
    assert [None if pd.isna(name) else name for name in obs["group"]] == list(names)
    assert list(obs["doublet"]) == [str(row % 7 == 0) for row in range(403)]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("dept", r"has no obs column 'dept': did you mean 'depth'"),
        ("source_row", r"^obs column 'source_row' cannot be carried over"),
        ("observed_lib_size", r"^obs column 'observed_lib_size' cannot be carried over"),
    ],
)
def test_a_column_that_cannot_be_carried_is_refused_before_anything_is_written(
    rich: CellData, write, tmp_path: Path, key: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write(rich, obs_columns=[key])
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_says_where_it_comes_from(data: CellData, write, adata: ad.AnnData) -> None:
    manifest = json.loads((write(data, lineage={"run": "/runs/a"}) / "ATLAS.json").read_text())
    assert (manifest["format"], manifest["n_cells"], manifest["n_genes"]) == ("dist_scvi.atlas/1", 403, 50)
    assert manifest["source"] == {"uri": "memory", "layer": None, "n_entries": adata.X.nnz}
    assert manifest["lineage"] == {"run": "/runs/a"}


def test_the_model_lies_beside_the_cells(model: SCVI, data: CellData, write) -> None:
    module, spec = load_model(write(data) / "model")
    assert spec == model.spec
    np.testing.assert_array_equal(module.px_r.detach(), model.module.px_r.detach())


def test_an_atlas_is_replaced_only_when_asked(data: CellData, rich: CellData, write) -> None:
    path = write(data)
    before = files(path)
    with pytest.raises(ValueError, match=r"atlas exists: give another path, or allow it to be replaced"):
        write(rich)
    assert files(path) == before
    write(rich, obs_columns=["depth"], overwrite=True)
    assert "depth" in opened(path).obs
    assert [entry.name for entry in path.parent.iterdir()] == ["atlas"]


def test_a_folder_of_something_else_is_never_replaced(data: CellData, write, tmp_path: Path) -> None:
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"atlas is no minified atlas and is not replaced"):
        write(data, overwrite=True)
    assert files(tmp_path) == {"atlas/thesis.txt": b"years of work"}


@pytest.mark.usefixtures("small_chunks")
def test_cells_that_turn_out_to_be_no_counts_leave_no_atlas(
    data: CellData, write, adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_scvi.inference.output_identity._PROBES", 1)
    path = write(data)
    before = files(path)
    late = open_data(adata.copy(), **KEYS)
    late.store._matrix.data[-1] = 0.5
    for name in ("atlas", "other"):
        with pytest.raises(
            ValueError, match=r"^X of the AnnData holds 0\.5 at row 402, gene \d+: SCVI needs raw counts"
        ):
            write(late, name, overwrite=True)
    assert files(path) == before
    assert not path.with_name("other").exists()
    write(data, "other")  # what the failure left is no hindrance
    assert {entry.name for entry in path.parent.iterdir()} == {"atlas", "other", ".partial-atlas"}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("size", [2, 3])
def test_several_workers_write_what_one_writes(data: CellData, write, tmp_path: Path, size: int) -> None:
    alone = files(write(data, "alone"))
    together(size, lambda world: write(data, "shared", world=world))
    assert files(tmp_path / "shared") == alone


@pytest.mark.usefixtures("small_chunks")
def test_every_shard_is_written_once_and_whole(data: CellData, write, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, int]] = []
    put = zarr.Array.__setitem__

    def record(array: zarr.Array, place: slice, values: object) -> None:
        if isinstance(place.start, int):
            written.append((array.path, place.start))
        put(array, place, values)

    monkeypatch.setattr(zarr.Array, "__setitem__", record)
    path = write(data)
    assert len(written) == len(set(written))
    assert {start for name, start in written if name.endswith("qzm")} == set(range(0, 403, 32))
    monkeypatch.undo()
    assert np.isfinite(open_atlas(path).get_latent_representation()).all()


@pytest.mark.usefixtures("small_chunks")
def test_progress_reaches_the_number_of_cells(data: CellData, write) -> None:
    told: list[tuple[int, int]] = []
    write(data, on_progress=lambda *progress: told.append(progress))
    assert told[:2] == [(0, 403), (32, 403)]
    assert told[-1] == (403, 403)


class CutError(Exception):
    """The power is gone."""


def cut_off(write, data: CellData, path: Path, at: int, **options: object) -> None:
    def check(done: int, _: int) -> None:
        if done >= at:
            raise CutError

    with pytest.raises(CutError):
        write(data, path.name, on_progress=check, **options)


@pytest.mark.usefixtures("small_chunks")
def test_what_was_encoded_is_not_encoded_again_and_counts_as_progress(
    model: SCVI, data: CellData, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, encoded, told = files(write(data, "whole")), [], []
    encode = model.module.encode
    cut_off(write, data, tmp_path / "atlas", 160, overwrite=True)
    monkeypatch.setattr(model.module, "encode", lambda cells: encoded.append(len(cells.library_n)) or encode(cells))
    write(data, on_progress=lambda *progress: told.append(progress))
    assert sum(encoded) == 403 - 160
    assert (told[0], told[-1]) == ((160, 403), (403, 403))
    assert files(tmp_path / "atlas") == whole


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("other", ["weights", "counts", "carried", "columns"])
def test_what_was_done_of_another_model_or_other_cells_is_not_used(
    model: SCVI, rich: CellData, adata: ad.AnnData, tmp_path: Path, other: str
) -> None:
    def write(module: object, cells: CellData, columns: list[str], **options: object) -> None:
        minify(module, model.spec, cells, tmp_path / "atlas", obs_columns=columns, **options)

    def cells(**columns: object) -> CellData:
        changed = adata.copy()
        changed.obs["depth"] = np.arange(403, dtype=np.int16)
        changed.obs["depth"] += np.int16(other == "carried")
        if other == "counts":
            changed.X[0, changed.X[0].indices[0]] += 1
        return open_data(changed, **KEYS)

    with pytest.raises(CutError):
        write(
            model.module, rich, ["depth"], on_progress=lambda done, _: (_ for _ in ()).throw(CutError) if done else None
        )
    module, told = copy.deepcopy(model.module), []
    if other == "weights":
        module.px_r.data[0] += 1
    columns = ["depth", "age"] if other != "columns" else []
    write(module, cells(), columns, on_progress=lambda *progress: told.append(progress))
    assert told[0] == (0, 403)


@pytest.mark.usefixtures("small_chunks")
def test_an_atlas_stays_until_the_one_that_replaces_it_is_complete(data: CellData, write, tmp_path: Path) -> None:
    before = files(write(data))
    cut_off(write, data, tmp_path / "atlas", 160, overwrite=True)
    assert files(tmp_path / "atlas") == before
    write(data, overwrite=True, lineage={"run": "another"})
    assert open_atlas(tmp_path / "atlas").manifest["lineage"] == {"run": "another"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["atlas"]


def test_data_that_does_not_fit_the_model_is_refused(write, adata: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"on 50 genes, memory lacks 10 of them"):
        write(open_data(adata[:, 10:].copy(), **KEYS))
    assert list(tmp_path.iterdir()) == []


def test_cells_whose_labels_are_needed_and_not_opened_are_refused(adata: ad.AnnData, tmp_path: Path) -> None:
    model = SCVI(open_data(adata, labels_key="label"), n_hidden=8, dispersion="gene-label")
    with pytest.raises(ValueError, match=r"^memory was not opened .*: open it with labels_key='label' \(found None\)$"):
        minify(model.module, model.spec, open_data(adata), tmp_path / "atlas")
    assert list(tmp_path.iterdir()) == []


def test_cells_without_any_label_are_kept_as_such(model: SCVI, adata: ad.AnnData, tmp_path: Path) -> None:
    cells = adata.copy()
    cells.obs["label"] = pd.Categorical([None] * cells.n_obs, categories=["T", "B"])
    keys = {"batch_key": "batch", "labels_key": "label"}
    covariates = {"categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}
    minify(model.module, model.spec, open_data(cells, **keys, **covariates), tmp_path / "atlas")
    atlas = open_atlas(tmp_path / "atlas")
    assert atlas.group_sizes("label").to_dict() == {"B": 0, "NK": 0, "T": 0}
    assert atlas.mean_expression("label", ["gene0"]).empty
