import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from dist_scvi.loaders import open_store, read_limits
from dist_scvi.loaders.checks import scan, scan_cells, scan_duplicates
from dist_scvi.loaders.checks.scan import format_inspection, inspect_store


@pytest.fixture
def uneven() -> AnnData:
    """Two batches of different depth, a third of 4 cells."""
    rng = np.random.default_rng(4)
    depth_n = np.repeat([2.0, 9.0, 2.0], [400, 596, 4])
    counts_ng = rng.poisson((0.01 + rng.gamma(0.3, 1.0, 60)) * depth_n[:, None])
    batch = np.repeat(["a", "b", "c"], [400, 596, 4])
    names = {"index": [f"cell{row}" for row in range(1000)]}
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(60)])
    return AnnData(sparse.csr_matrix(counts_ng), obs=pd.DataFrame({"batch": batch, "type": "t"}, **names), var=var)


@pytest.fixture(params=[1 << 22, 700])
def read_entries(monkeypatch, request):
    """Read all at once, and some rows at a time."""
    monkeypatch.setattr(read_limits, "READ_ENTRIES", request.param)


def test_sizes_and_counts_are_exact(read_entries, cells, expected_ng):
    found = inspect_store(open_store(cells), batch_key="place", labels_key="gap")
    assert (found.n_cells, found.n_genes, found.count_max) == (150, 23, expected_ng.max())
    assert (found.n_entries, found.density) == ((expected_ng > 0).sum(), (expected_ng > 0).mean())
    assert (found.n_empty_cells, found.first_empty_cell) == (1, 5)
    assert {name: one.n_cells for name, one in found.batches.items()} == {"s1": 40, "s10": 40, "s2": 70}
    assert found.labels == {"u": 75, "v": 60, "(missing)": 15}
    assert (found.obs_columns[0], found.layers) == ("place", ("twice",))


def test_log_library_moments_are_those_of_numpy(read_entries, uneven):
    found = inspect_store(open_store(uneven), batch_key="batch")
    library_n = uneven.X.toarray().sum(axis=1)
    for name, one in {**found.batches, "all": found.library}.items():
        mine = library_n[(uneven.obs["batch"] == name) | (name == "all")]
        assert (one.n_cells, one.mean) == (len(mine), pytest.approx(mine[mine > 0].mean()))
        logs = np.log(mine[mine > 0])
        assert (one.log_mean, one.log_var) == (
            pytest.approx(logs.mean(), rel=1e-12),
            pytest.approx(logs.var(), rel=1e-9),
        )


def test_quantiles_are_within_the_stated_error():
    library_n = np.random.default_rng(0).lognormal(8, 1, 20_000).astype(np.int64)
    counts = sparse.csr_matrix(library_n[:, None])
    found = inspect_store(open_store(AnnData(counts)))
    for share, size in found.library.quantiles.items():
        assert size == pytest.approx(np.quantile(library_n, float(share)), rel=0.012)


def test_cells_without_counts_do_not_enter_the_moments(cells):
    whole, without = (inspect_store(open_store(adata)) for adata in (cells, cells[np.arange(150) != 5].copy()))
    assert whole.library.log_mean == pytest.approx(without.library.log_mean)
    assert (whole.n_empty_cells, without.n_empty_cells) == (1, 0)


def test_sound_cells_need_no_advice(uneven):
    found = inspect_store(open_store(uneven[:996].copy()), batch_key="batch", labels_key="type")
    assert (found.advice, found.n_unseen_genes) == ((), 0)
    assert format_inspection(found).endswith("nothing to mend")


def test_what_should_be_mended_is_said(cells):
    counts_ng = cells.X.toarray()
    counts_ng[:, 7] = 0
    cells.X = sparse.csr_matrix(counts_ng)
    cells.obs_names = ["cell8", *cells.obs_names[1:]]
    found = inspect_store(open_store(cells), batch_key="place", labels_key="gap")
    n_copies = 149 - len(np.unique(np.delete(counts_ng, 5, axis=0), axis=0))
    keep = "keep one of each, a copy in the validation split of a cell trained on hides overfitting"
    few = "the effect of a batch cannot be learned from so few, join it to another or remove it"
    assert found.advice == (
        "1 cells have the name of another (rows 0 and 8): call adata.obs_names_make_unique() and save again",
        f"{n_copies} cells have the very counts of another (rows 7 and 40, 23 and 56, 24 and 57): {keep}",
        "1 cells have no counts, the first is row 5: remove them, a model learns nothing from them",
        "1 genes are never seen (g7): remove them, they cost time and memory",
        f"obs column 'place' has 40 cells of 's1': {few}",
        f"obs column 'place' has 40 cells of 's10': {few}",
        "obs column 'gap' has no value in 15 cells: they count as unlabelled",
    )


def test_a_batch_column_with_missing_values_is_told(cells):
    advice = inspect_store(open_store(cells), batch_key="gap").advice
    assert "obs column 'gap' has no value in 15 cells: fill it, training refuses them" in advice


@pytest.mark.parametrize(
    ("counts_ng", "advice"),
    [
        (np.eye(6), "no count is larger than 1: give the raw counts"),
        (np.eye(6) * 10_000, "all cells have nearly the same total count"),
        (np.arange(1, 37).reshape(6, 6), "100% of the counts are above zero"),
    ],
)
def test_counts_that_look_processed_are_told(counts_ng, advice):
    found = inspect_store(open_store(AnnData(sparse.csr_matrix(counts_ng))))
    assert any(line.startswith(advice) for line in found.advice)


def test_categories_without_cells_are_told(cells):
    cells.obs["place"] = cells.obs["place"].cat.add_categories("s0")
    found = inspect_store(open_store(cells), batch_key="place", labels_key="place")
    assert found.advice.count("obs column 'place' has no cells of 's0': remove the category") == 2
    assert found.batches["s0"].quantiles["0.5"] == 0


def test_a_bad_count_is_told_with_its_row_and_the_rest_is_still_summed_up(read_entries, cells):
    cells.X.data[-1] = -2
    found = inspect_store(open_store(cells), batch_key="place")
    assert "holds -2.0 at row 149" in found.advice[0]
    assert found.advice[1].startswith(f"{found.n_unread_cells:,} cells were in reads that were refused")
    assert sum(one.n_cells for one in found.batches.values()) == 150 - found.n_unread_cells
    assert [column.n_categories for column in found.columns] == [3, 7, 12, 2, 150]
    assert not any("never seen" in line for line in found.advice) or found.n_unread_cells < 150


def test_a_layer_with_raw_counts_is_named_if_x_has_none(cells, save):
    cells.raw = cells.copy()
    cells.X = sparse.csr_matrix(np.log1p(cells.X.toarray()))
    path = save(cells)
    found = inspect_store(open_store(path), open_layer=lambda layer: open_store(path, layer=layer))
    assert (found.n_cells, found.n_genes, found.n_unread_cells, found.n_entries) == (150, 23, 150, 0)
    assert [(probe.layer, probe.counts) for probe in found.probes] == [(None, False), ("twice", True), ("raw/X", True)]
    assert "layers/twice looks like raw counts: name it with data.layer=twice" in found.advice
    assert "raw/X looks like raw counts: name it with data.layer=raw/X" in found.advice
    assert "    layers/twice: whole numbers up to 620 in a few rows" in format_inspection(found).splitlines()
    layer = inspect_store(open_store(path, layer="twice"), open_layer=lambda layer: open_store(path, layer=layer))
    assert not any("looks like raw counts" in line for line in layer.advice)


def test_copies_beyond_what_is_held_are_estimated_from_a_share(monkeypatch, cells):
    monkeypatch.setattr(scan_duplicates, "_HELD", 80)
    found = inspect_store(open_store(cells))
    assert found.copied_cells.share == 0.5
    share = "those of 50.0% of the cells"
    assert any(line.startswith("about ") and share in line for line in found.advice)


def test_columns_that_could_be_batches_or_labels_are_suggested_unless_given(uneven):
    uneven.obs["cell_type"] = np.where(np.arange(1000) % 2, "t", "u")
    found = inspect_store(open_store(uneven))
    assert (found.batch_suggestions, found.label_suggestions) == (("batch",), ("cell_type",))
    assert "  by their names, batches could be: batch" in format_inspection(found).splitlines()
    given = inspect_store(open_store(uneven), batch_key="batch", labels_key="cell_type")
    assert (given.batch_suggestions, given.label_suggestions) == ((), ())


@pytest.mark.parametrize(
    ("order", "line"),
    [
        (np.argsort, "neighbouring rows are of one batch: the loader shuffles all cells together; nothing to do"),
        (np.arange, "neighbouring rows are mixed by batch: the loader shuffles all cells together; nothing to do"),
    ],
    ids=["sorted", "shuffled"],
)
def test_the_order_of_the_rows_is_reported_with_what_is_to_be_done(order, line):
    batch = np.random.default_rng(0).permutation(np.repeat(list("abcd"), 3200))
    batch = batch[order(batch, kind="stable")] if order is np.argsort else batch
    obs = pd.DataFrame({"batch": batch}, index=[f"cell{row}" for row in range(12_800)])
    found = inspect_store(open_store(AnnData(sparse.csr_matrix(np.ones((12_800, 2))), obs=obs)), batch_key="batch")
    assert f"  {line}" in format_inspection(found).splitlines()
    large = replace(found, n_cells=10**8, n_entries=10**11, chunk_cells=3000)
    advice = {np.argsort: "of one batch: the loader mixes 66 blocks of rows at a time, too few: raise data.memory_mib"}
    advice[np.arange] = "mixed by batch: the loader mixes 16 blocks of rows at a time; nothing to do"
    assert advice[order] in format_inspection(large)


def test_the_time_of_an_epoch_is_that_of_reading_all_cells(monkeypatch, cells):
    ticks = itertools.count(0, 2)
    monkeypatch.setattr(scan_cells.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(read_limits, "READ_CELLS", 50)
    found = inspect_store(open_store(cells))
    assert found.read_cells_per_s == 25
    assert f"  reading alone takes 6 s per epoch on the {found.n_processors} processors" in format_inspection(found)


def test_chunks_longer_than_blocks_are_told_of_stores_larger_than_windows(cells, monkeypatch):
    store = open_store(cells)
    store.chunk_cells = 5000
    assert not any("decompressed together" in line for line in inspect_store(store).advice)
    monkeypatch.setattr(scan, "_WINDOW_ENTRIES", 100)
    assert any(line.startswith("5,000 rows are decompressed together") for line in inspect_store(store).advice)


def test_progress_reaches_the_last_cell(monkeypatch, cells):
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(read_limits, "READ_CELLS", 64)
    inspect_store(open_store(cells), progress=lambda done, all_cells: told.append((done, all_cells)))
    assert told == [(64, 150), (128, 150), (150, 150)]


def test_every_column_is_shown_in_a_line(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/gap/codes", np.full(150, 2, dtype=np.int8))
    lines = format_inspection(inspect_store(open_store(path))).splitlines()
    assert "    place: 3 categories, s2 (70), s1 (40), s10 (40)" in lines
    assert "    lane: numbers 0 to 11, 12 different, 0 (13), 1 (13), 2 (13)" in lines
    assert "    age: numbers 0 to 37.25, 150 different" in lines
    assert "    gap: cannot be read" in lines
    assert any("obs column 'gap' holds code 2 at row 0" in line for line in lines)


def test_a_summary_is_plain_values_and_readable(uneven):
    found = inspect_store(open_store(uneven), batch_key="batch", labels_key="type")
    assert json.loads(json.dumps(found.to_dict()))["batches"]["a"]["n_cells"] == 400
    text = format_inspection(found)
    assert "1,000 cells x 60 genes in X" in text
    assert "    a: 400 cells, mean" in text
    assert "    t: 1,000 cells" in text
    assert "    batch: 3 categories, b (596), a (400), c (4)" in text
    assert max(len(line) for line in text.splitlines()) < 200


def test_the_column_of_several_stores_that_names_them_is_counted_like_any_other(cells, pristine):
    found = inspect_store(open_store([cells, pristine]))
    (source,) = (column for column in found.columns if column.key == "source")
    assert (source.kind, source.n_categories, sorted(source.most_frequent.values())) == ("categories", 2, [150, 150])
    assert not [line for line in found.advice if "source" in line]
