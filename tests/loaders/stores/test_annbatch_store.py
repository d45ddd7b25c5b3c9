import itertools
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import pytest
import zarr
from numpy.testing import assert_array_equal

from dist_scvi.loaders.stores.annbatch_store import is_annbatch, open_annbatch
from tests.loaders.store_contract import Opened, StoreContract, dense

ENCODING = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
BORDERS = [0, 60, 100, 150]


def write_collection(path: Path, groups: list[anndata.AnnData]) -> None:
    """Write what annbatch 0.3.1 writes: sharded groups one after the other, the root's attributes last."""

    def in_shards(write, store, name, elem, dataset_kwargs, *, iospec) -> None:
        if iospec.encoding_type == "csr_matrix":
            dataset_kwargs = {**dataset_kwargs, "chunks": (16,), "shards": (64,)}
        write(store, name, elem, dataset_kwargs=dataset_kwargs)

    root = zarr.create_group(path, zarr_format=3)
    with (
        warnings.catch_warnings(),
        anndata.settings.override(zarr_write_format=3, write_csr_csc_indices_with_min_possible_dtype=True),
    ):
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        for number, group in enumerate(groups):
            anndata.experimental.write_dispatched(root, f"dataset_{number}", group, callback=in_shards)
    root.update_attributes(ENCODING)


@pytest.fixture(scope="session")
def collect(tmp_path_factory) -> Callable[..., Path]:
    """Write cells as a collection of three groups."""

    def write(adata: anndata.AnnData) -> Path:
        path = tmp_path_factory.mktemp("stored") / "collection.zarr"
        write_collection(path, [adata[start:stop].copy() for start, stop in itertools.pairwise(BORDERS)])
        return path

    return write


@pytest.mark.filterwarnings("ignore:Variable names are not unique")  # says anndata as it cuts such cells
class TestAnnbatch(StoreContract):
    @pytest.fixture
    def opened(self, collect) -> Opened:
        return lambda adata, layer=None: open_annbatch(collect(adata), layer=layer)

    def test_a_value_that_is_no_count_is_refused_with_its_place(self, opened, cells):
        cells.X.data[cells.X.indptr[[20, 125]]] = 0.5
        store = opened(cells)
        for row, own in {20: "dataset_0 holds 0.5 at row 20", 125: "dataset_2 holds 0.5 at row 25"}.items():
            gene = cells.X.indices[cells.X.indptr[row]]
            with pytest.raises(ValueError, match=f"^X of .*collection.zarr/{own}, gene {gene}: SCVI needs raw counts"):
                store.read(row - 10, row + 10)
            store.read(row + 1, row + 9)

    @pytest.mark.parametrize(("shape", "found"), [((0, 23), "0 cells x 23 genes"), ((150, 0), "60 cells x 0 genes")])
    def test_an_empty_matrix_is_refused(self, opened, cells, shape, found):
        with pytest.raises(ValueError, match=rf"dataset_0 is empty \({found}\)"):
            opened(cells[: shape[0], : shape[1]].copy())


@pytest.fixture(scope="session")
def written(pristine, collect) -> Path:
    return collect(pristine)


@pytest.fixture
def path(written, tmp_path) -> Path:
    """A collection for a test to damage."""
    return shutil.copytree(written, tmp_path / "collection.zarr")


def test_a_collection_is_known_by_its_attributes(path, save, cells, tmp_path):
    assert is_annbatch(path)
    for other in (save(cells), save(cells, "h5ad"), tmp_path, path / "dataset_1", tmp_path / "nothing"):
        assert not is_annbatch(other)


def test_damaged_attributes_are_refused(path):
    (path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"zarr\.json is not valid JSON"):
        is_annbatch(path)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_group_is_refused_by_name(path, lost):
    shutil.rmtree(path / f"dataset_{lost}")
    with pytest.raises(ValueError, match=rf"collection.zarr lacks dataset_{lost} \(2 groups are there, 1 are not\)"):
        open_annbatch(path)


def test_a_collection_of_nothing_is_refused(tmp_path):
    zarr.create_group(tmp_path / "empty.zarr", attributes=ENCODING)
    with pytest.raises(ValueError, match=r"empty.zarr lacks dataset_0 \(0 groups are there"):
        open_annbatch(tmp_path / "empty.zarr")


def test_a_group_that_was_half_written_is_refused_by_name(path):
    shutil.rmtree(path / "dataset_2" / "X" / "indptr")
    with pytest.raises(ValueError, match=r"X/indptr of .*collection.zarr/dataset_2 is missing"):
        open_annbatch(path)


def test_another_version_is_refused(path):
    described = json.loads((path / "zarr.json").read_text())
    described["attributes"]["encoding-version"] = "0.2.0"
    (path / "zarr.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"is an annbatch collection of version 0.2.0: only 0.1.0 can be read"):
        open_annbatch(path)


@pytest.mark.parametrize(
    ("genes", "said"),
    [
        ([0, 2, 1], "dataset_1 of .* has 3 genes and dataset_0 3, number 1 is g2 against g1"),
        ([0, 1], "dataset_1 of .* has 2 genes and dataset_0 3, number 2 is None against g2"),
    ],
)
def test_groups_of_other_genes_are_refused_with_the_first_that_differs(cells, tmp_path, genes, said):
    write_collection(tmp_path / "c.zarr", [cells[:10, :3].copy(), cells[10:20, genes].copy()])
    with pytest.raises(ValueError, match=said):
        open_annbatch(tmp_path / "c.zarr")


def test_ten_comes_after_nine(cells, expected_ng, tmp_path):
    few = anndata.AnnData(cells.X, obs=cells.obs[[]], var=cells.var)
    write_collection(tmp_path / "c.zarr", [few[at : at + 10].copy() for at in range(0, 110, 10)])
    store = open_annbatch(tmp_path / "c.zarr")
    assert_array_equal(dense(store.read(0, 110), 23), expected_ng[:110])
    assert list(store.obs_names(99, 101)) == ["cell99", "cell100"]
    assert (store.uri, store.unmatched[10].source) == (str(tmp_path / "c.zarr"), "dataset_10")
