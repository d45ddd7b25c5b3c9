"""Minifying: an AnnData that others open, the same for any number of workers, and there only when complete."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.atlas.minify import minify
from dist_scvi.atlas.store.verify import verify_atlas
from dist_scvi.loaders import CellData, open_data
from dist_scvi.model import SCVI
from dist_scvi.network.model_files import load_model
from tests.dist_scvi.workers import together

KEYS = {"batch_key": "batch", "categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}
pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def rich(more: ad.AnnData) -> CellData:
    """The cells with further obs columns."""
    return open_data(more.copy(), **KEYS)


@pytest.fixture
def write(model: SCVI, tmp_path: Path) -> Callable[..., Path]:
    def run(data: CellData, name: str = "atlas", **options: object) -> Path:
        minify(model.module, model.spec, data, tmp_path / name, **options)
        return tmp_path / name

    return run


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_anndata_opens_cells_and_leaves(rich: CellData, write, more: ad.AnnData) -> None:
    path = write(rich, obs_columns=["barcode"])
    cells, leaves = ad.read_zarr(path / "cells.zarr"), ad.read_zarr(path / "leaves.zarr")
    rows = cells.obs["source_row"].to_numpy()
    assert list(cells.obs_names) == list(more.obs_names[rows])
    assert list(cells.obs["barcode"]) == list(more.obs["barcode"].iloc[rows])
    assert list(cells.var_names) == list(more.var_names)
    assert list(cells.var["symbol"]) == list(more.var["symbol"])
    atlas = open_atlas(path)
    mean, variance = atlas.read_latent()
    np.testing.assert_array_equal(cells.obsm["scvi_latent_qzm"], mean)
    np.testing.assert_allclose(cells.obsm["scvi_latent_qzv"], variance, rtol=0.03)
    np.testing.assert_array_equal(cells.obs["observed_lib_size"], np.asarray(more.X.sum(1)).ravel()[rows])
    assert leaves.X.sum() == more.X.sum()
    assert leaves.obs["n_cells"].sum() == 403
    np.testing.assert_array_equal(leaves.layers["scale_mean"], atlas.leaves.scale_mean())


def test_sizes_are_reported(rich: CellData, write) -> None:
    sizes = open_atlas(write(rich)).manifest["bytes_per_cell"]
    assert sizes["query"] == 3 * 4 + 4 + 4 + 4
    written = sum(file.stat().st_size for file in (write(rich, "again") / "cells.zarr").rglob("*") if file.is_file())
    assert sizes["total"] == pytest.approx(written / 403, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obs_columns": ["dept"]}, r"has no obs column 'dept': did you mean 'depth'"),
        ({"obs_columns": ["source_row"]}, r"^obs column 'source_row' cannot be carried over"),
        ({"leaf_columns": ["depth"]}, r"^obs column 'depth' holds numbers and cannot make leaves"),
        ({"leaf_columns": ["cluster"]}, r"^obs column 'cluster' is not kept and cannot make leaves"),
        (
            {"leaf_columns": ["label", "barcode"], "obs_columns": ["barcode"], "leaf_budget_bytes": 104 * 50 * 9},
            r"^the leaf columns label, barcode have more than 9 observed combinations, .* --leaf-budget",
        ),
        ({"leaf_budget_bytes": 5199}, r"^leaf_budget_bytes=5199: one leaf of 50 genes takes 5200 bytes"),
    ],
)
def test_wrong_columns_are_refused_before_anything_is_written(
    rich: CellData, write, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write(rich, **options)
    assert list(tmp_path.iterdir()) == []


def test_leaves_are_as_fine_as_the_budget_allows(model: SCVI, rich: CellData, write) -> None:
    def columns(**options: object) -> tuple[str, ...]:
        atlas = open_atlas(write(rich, overwrite=True, **options))
        assert atlas.leaves.n_cells.sum() == 403
        assert (atlas.leaves.n_cells > 0).all()
        return atlas.leaves.columns

    assert columns(leaf_budget_bytes=104 * 50) == ()
    assert columns(leaf_budget_bytes=104 * 50 * 3) == ("batch",)
    assert columns(leaf_budget_bytes=104 * 50 * 6) == ("batch", "site")
    assert columns(leaf_columns=["group"]) == ("group",)


def test_missing_values_make_a_leaf_of_their_own(rich: CellData, write) -> None:
    table = open_atlas(write(rich, leaf_columns=["group"])).leaves.table
    assert table["group"].isna().tolist() == [True, False, False, False]
    assert table["n_cells"].tolist() == [101, 101, 101, 100]


def test_the_manifest_says_where_it_comes_from(data: CellData, write, adata: ad.AnnData) -> None:
    manifest = json.loads((write(data, lineage={"run": "/runs/a"}) / "ATLAS.json").read_text())
    assert (manifest["format"], manifest["n_cells"], manifest["n_genes"]) == ("dist_scvi.atlas/2", 403, 50)
    assert manifest["source"]["uri"] == "memory"
    assert manifest["source"]["n_entries"] == adata.X.nnz
    assert manifest["lineage"] == {"run": "/runs/a"}


def test_the_model_lies_alongside_the_cells(model: SCVI, data: CellData, write) -> None:
    module, spec = load_model(write(data) / "model")
    assert spec == model.spec
    np.testing.assert_array_equal(module.px_r.detach(), model.module.px_r.detach())


def test_an_atlas_is_replaced_only_when_requested(data: CellData, rich: CellData, write) -> None:
    path = write(data)
    before = files(path)
    with pytest.raises(ValueError, match=r"atlas exists: give another path, or allow it to be replaced"):
        write(rich)
    assert files(path) == before
    write(rich, overwrite=True)
    assert "depth" in open_atlas(path).obs
    assert [entry.name for entry in path.parent.iterdir()] == ["atlas"]


def test_a_folder_of_something_else_is_never_replaced(data: CellData, write, tmp_path: Path) -> None:
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"atlas is no minified atlas and is not replaced"):
        write(data, overwrite=True)
    assert files(tmp_path) == {"atlas/thesis.txt": b"years of work"}


def test_cells_that_turn_out_to_be_no_counts_leave_no_atlas(
    data: CellData, write, adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(data)
    before = files(path)
    late = open_data(adata.copy(), **KEYS)
    late.store._matrix.data[len(late.store._matrix.data) * 3 // 5] = -1
    with pytest.raises(ValueError, match=r"^X of the AnnData holds -1"):
        write(late, "other", overwrite=True)
    assert files(path) == before
    assert not path.with_name("other").exists()
    write(data, "other")  # what the failure left is no hindrance
    assert {entry.name for entry in path.parent.iterdir()} == {"atlas", "other"}


@pytest.mark.parametrize("size", [2, 3])
def test_several_workers_write_what_one_writes(rich: CellData, write, tmp_path: Path, size: int) -> None:
    alone = files(write(rich, "alone"))
    together(size, lambda world: write(rich, "shared", world=world))
    assert files(tmp_path / "shared") == alone


def test_sums_do_not_depend_on_pieces(rich: CellData, write, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_atlas(write(rich, "first"))
    monkeypatch.setattr("dist_scvi.atlas.writer.plan._SMALLEST_PIECE", 403)
    second = open_atlas(write(rich, "second"))
    assert first.digest != ""
    for read in ("count_sum", "detected", "square_sum", "quantiles", "scale_max"):
        np.testing.assert_array_equal(getattr(first.leaves, read)(), getattr(second.leaves, read)())
    np.testing.assert_allclose(first.leaves.scale_mean(), second.leaves.scale_mean(), rtol=1e-6)
    np.testing.assert_array_equal(first.read_source_row(), second.read_source_row())


class CutError(Exception):
    """The power is gone."""


def cut_off(write, data: CellData, path: Path, at: int, **options: object) -> None:
    def check(done: int, _: int) -> None:
        if done >= at:
            raise CutError

    with pytest.raises(CutError):
        write(data, path.name, on_progress=check, **options)


def test_what_was_encoded_is_not_encoded_again_and_counts_as_progress(
    model: SCVI, data: CellData, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, encoded, told = files(write(data, "whole")), [], []
    encode = model.module.encode
    cut_off(write, data, tmp_path / "atlas", 101)
    monkeypatch.setattr(model.module, "encode", lambda cells: encoded.append(len(cells.library_n)) or encode(cells))
    write(data, on_progress=lambda *progress: told.append(progress))
    assert sum(encoded) == 403 - 101
    assert (told[0], told[-1]) == ((101, 403), (403, 403))
    assert files(tmp_path / "atlas") == whole


@pytest.mark.parametrize("part", ["write_cells", "write_leaves", "write_tables"])
def test_a_cut_in_any_pass_is_continued(
    rich: CellData, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    from dist_scvi.atlas.writer import write_atlas

    whole, original, calls = files(write(rich, "whole")), getattr(write_atlas, part), []

    def cut(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2 or part == "write_tables":
            raise CutError
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(write_atlas, part, cut)
        with pytest.raises(CutError):
            write(rich)
    assert not (tmp_path / "atlas").exists()
    write(rich)
    assert files(tmp_path / "atlas") == whole
    assert {entry.name for entry in tmp_path.iterdir()} == {"atlas", "whole"}


@pytest.mark.parametrize("other", ["weights", "counts", "carried", "leaves", "seed"])
def test_what_was_done_of_another_model_or_other_cells_is_not_used(
    model: SCVI, more: ad.AnnData, tmp_path: Path, other: str
) -> None:
    def write(module: object, changed: bool, **options: object) -> None:
        cells = more.copy()
        cells.obs["depth"] += np.int16(changed and other == "carried")
        if changed and other == "counts":
            cells.X[0, cells.X[0].indices[0]] += 1
        minify(module, model.spec, open_data(cells, **KEYS), tmp_path / "atlas", **options)

    with pytest.raises(CutError):
        write(model.module, False, on_progress=lambda done, _: (_ for _ in ()).throw(CutError) if done else None)
    module, told = copy.deepcopy(model.module), []
    if other == "weights":
        module.px_r.data[0] += 1
    options = {"leaves": {"leaf_columns": ["batch"]}, "seed": {"seed": 1}}.get(other, {})
    write(module, True, on_progress=lambda *progress: told.append(progress), **options)
    assert told[0] == (0, 403)


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


def test_a_model_whose_posterior_is_not_finite_is_refused(model: SCVI, data: CellData, tmp_path: Path) -> None:
    module = copy.deepcopy(model.module)
    module.z_encoder.mean_encoder.bias.data[0] = np.nan
    with pytest.raises(ValueError, match=r"^the posterior of row \d+ is not finite"):
        minify(module, model.spec, data, tmp_path / "atlas")
    assert not (tmp_path / "atlas").exists()


def test_cells_whose_labels_are_needed_and_not_opened_are_refused(adata: ad.AnnData, tmp_path: Path) -> None:
    model = SCVI(open_data(adata, labels_key="label"), n_hidden=8, dispersion="gene-label")
    with pytest.raises(ValueError, match=r"^memory was not opened .*: open it with labels_key='label' \(found None\)$"):
        minify(model.module, model.spec, open_data(adata), tmp_path / "atlas")
    assert list(tmp_path.iterdir()) == []


def test_cells_without_any_label_are_kept_as_such(model: SCVI, adata: ad.AnnData, tmp_path: Path) -> None:
    cells = adata.copy()
    cells.obs["label"] = pd.Categorical([None] * cells.n_obs, categories=["T", "B"])
    minify(model.module, model.spec, open_data(cells, labels_key="label", **KEYS), tmp_path / "atlas")
    atlas = open_atlas(tmp_path / "atlas")
    assert atlas.group_sizes("label").to_dict() == {"B": 0, "T": 0}
    assert atlas.mean_expression("label", ["gene0"]).empty
    assert verify_atlas(tmp_path / "atlas") == []
