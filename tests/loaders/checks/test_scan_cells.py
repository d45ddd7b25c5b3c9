import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from dist_scvi.loaders import open_store
from dist_scvi.loaders.checks.scan_cells import CellPass, NamePass, probe_layers


def passed(store, step: int = 10) -> CellPass:
    cells = CellPass(store, store.categorical("place"), None)
    for start in range(0, store.n_cells, step):
        cells.add(start, min(start + step, store.n_cells))
    return cells


def test_refused_reads_are_left_out_and_the_first_is_told(cells, expected_ng):
    cells.X.data[cells.X.indptr[[23, 61]]] = -1
    found = passed(open_store(cells))
    assert "holds -1.0 at row 23, gene" in found.refused
    assert (found.n_unread, found.libraries.n_b.sum()) == (20, 130)
    read = np.delete(np.arange(150), [*range(20, 30), *range(60, 70)])
    assert found.count.n_entries == (expected_ng[read] > 0).sum()
    assert len(found.speeds) == 13


def test_counts_are_given_up_if_all_first_reads_are_refused(cells, monkeypatch):
    cells.X = cells.X * -1
    store = open_store(cells)
    calls: list[int] = []
    read = store.read
    monkeypatch.setattr(store, "read", lambda start, stop: (calls.append(start), read(start, stop))[1])
    found = passed(store)
    assert (len(calls), found.n_unread, found.speeds) == (8, 150, [])


def test_a_code_of_no_category_leaves_the_read_out(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/place/codes", np.where(np.arange(150) == 99, 3, 0).astype(np.int8))
    found = passed(open_store(path))
    assert "holds code 3 at row 99" in found.refused
    assert found.n_unread == 10


def test_names_are_compared_until_one_cannot_be_read(cells):
    cells.obs_names = ["cell0", "cell0", *cells.obs_names[2:]]
    names = NamePass(open_store(cells))
    for start in range(0, 150, 50):
        names.add(start, start + 50)
    assert (names.hashes.copies().pairs, names.refused) == (((0, 1),), None)


def test_names_that_cannot_be_read_are_told(cells, monkeypatch):
    store = open_store(cells)
    names = NamePass(store)

    def damaged(start: int, stop: int) -> None:
        raise ValueError(f"names cannot be read at {start}")

    monkeypatch.setattr(store, "obs_names", damaged)
    names.add(0, 50)
    names.add(50, 100)
    assert names.refused == "names cannot be read at 0"


@pytest.mark.parametrize("kind", ["zarr3", "h5ad"])
def test_a_probe_tells_raw_counts_from_others_in_every_layer(cells, save, kind):
    cells.layers["logged"] = sparse.csr_matrix(np.log1p(cells.X.toarray()))
    cells.layers["columns"] = cells.X.tocsc()
    path = save(cells, kind)
    store = open_store(path)
    found = {probe.layer: probe for probe in probe_layers(store, lambda layer: open_store(path, layer=layer))}
    assert {name: probe.counts for name, probe in found.items()} == {
        None: True, "columns": False, "logged": False, "twice": True
    }  # fmt: skip
    assert found["twice"].found == "whole numbers up to 620 in a few rows"
    assert "SCVI needs raw counts" in found["logged"].found
    assert "csc_matrix" in found["columns"].found


def test_a_probe_sees_a_store_smaller_than_what_it_reads():
    store = open_store(AnnData(sparse.csr_matrix(np.eye(3) * 4)))
    assert [probe.found for probe in probe_layers(store, lambda _: store)] == ["whole numbers up to 4 in a few rows"]
