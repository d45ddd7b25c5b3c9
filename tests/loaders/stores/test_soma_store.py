import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiledbsoma
import tiledbsoma.io
from numpy.testing import assert_array_equal
from scipy import sparse

from dist_scvi.loaders import open_store
from dist_scvi.loaders.stores import soma_store
from dist_scvi.loaders.stores.soma_store import SomaOptions, is_soma, open_soma
from tests.loaders.store_contract import Opened, StoreContract, dense


def write_adata(path: Path, adata, layer: str = "raw") -> str:
    """Write an AnnData as tiledbsoma does, its X as `layer`."""
    return tiledbsoma.io.from_anndata(str(path), adata, "RNA", X_layer_name=layer)


def write_counts(
    path: Path,
    counts_ng: np.ndarray,
    cell_ids: Sequence[int],
    gene_ids: Sequence[int],
    *,
    fragments: int = 1,
    tile: int = 2048,
    duplicates: bool = False,
) -> str:
    """Write counts above 0 of cells and genes with these soma_joinids, obs and X in several fragments."""
    cell_ids, gene_ids = np.asarray(cell_ids, dtype=np.int64), np.asarray(gene_ids, dtype=np.int64)
    layout = {"dims": {name: {"tile": tile} for name in ("soma_dim_0", "soma_dim_1")}, "allows_duplicates": duplicates}
    last = int(cell_ids.max(initial=0)) + 1, int(gene_ids.max(initial=0)) + 1
    tables = {"obs": ("cell_id", cell_ids), "ms/RNA/var": ("gene_name", gene_ids)}
    with tiledbsoma.Experiment.create(str(path), tiledb_timestamp=1) as experiment:
        measurement = experiment.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
        measurement.add_new_collection("X").add_new_sparse_ndarray(
            "data", type=pa.int32(), shape=last, platform_config={"tiledb": {"create": layout}}
        )
        for (name, (column, ids)), owner in zip(tables.items(), (experiment, measurement), strict=True):
            schema = pa.schema([("soma_joinid", pa.int64()), (column, pa.large_string())])
            owner.add_new_dataframe(Path(name).name, schema=schema, domain=[(0, int(ids.max(initial=0)))])

    def write(array: str, moment: int, columns: dict[str, object]) -> None:
        with tiledbsoma.open(f"{path}/{array}", "w", tiledb_timestamp=moment) as opened:
            opened.write(pa.table(columns, schema=opened.schema))

    for moment, part in enumerate(np.array_split(np.arange(len(cell_ids)), fragments), start=2):
        row_e, gene_e = np.nonzero(counts_ng[part])
        row_e, gene_e = (np.tile(index, 2) if duplicates else index for index in (row_e, gene_e))
        values_e = counts_ng[part][row_e, gene_e].astype(np.int32)
        if len(row_e):
            entries = {"soma_dim_0": cell_ids[part][row_e], "soma_dim_1": gene_ids[gene_e], "soma_data": values_e}
            write("ms/RNA/X/data", moment, entries)
        if len(part):
            write(
                "obs", moment, {"soma_joinid": cell_ids[part], "cell_id": [f"c{number}" for number in cell_ids[part]]}
            )
    if len(gene_ids):
        write("ms/RNA/var", 2, {"soma_joinid": gene_ids, "gene_name": [f"g{number}" for number in gene_ids]})
    return str(path)


class TestSomaStore(StoreContract):
    @pytest.fixture
    def opened(self, tmp_path_factory) -> Opened:
        return lambda adata, layer=None: open_soma(
            write_adata(tmp_path_factory.mktemp("soma") / "cells", adata), layer=layer
        )

    def test_a_gene_that_stands_twice_in_a_row_is_refused(self, tmp_path, expected_ng):
        """An array must be made for it: by default TileDB refuses to write such."""
        uri = write_counts(tmp_path / "cells", expected_ng, range(150), range(23), duplicates=True)
        with pytest.raises(
            ValueError, match=r"X of .* holds a second entry at row 0, gene 0: each gene may occur once"
        ):
            open_soma(uri).read(0, 30)

    def test_genes_of_one_name_are_refused(self, tmp_path, cells):
        """In another column than that by which tiledbsoma tells them apart."""
        cells.var["symbol"] = ["g1", *cells.var_names[1:]]
        uri = write_adata(tmp_path / "cells", cells)
        with pytest.raises(ValueError, match=r"has 1 duplicated gene names \(g1\)"):
            open_soma(uri, options=SomaOptions(var_names_column="symbol"))

    @pytest.mark.parametrize("shape", [(0, 23), (150, 0)])
    def test_an_empty_matrix_is_refused(self, tmp_path, expected_ng, shape):
        uri = write_counts(tmp_path / "cells", expected_ng[: shape[0], : shape[1]], range(shape[0]), range(shape[1]))
        with pytest.raises(ValueError, match=rf"is empty \({shape[0]} cells x {shape[1]} genes\)"):
            open_soma(uri)


@pytest.fixture(scope="module")
def uri(tmp_path_factory, pristine) -> str:
    """The cells as tiledbsoma writes them; not to be changed."""
    return write_adata(tmp_path_factory.mktemp("soma") / "cells", pristine)


@pytest.fixture
def path(uri, tmp_path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(Path(uri.removeprefix("file://")), tmp_path / "copy"))


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """300 cells in three fragments."""
    counts_ng = np.arange(1, 300 * 4 + 1).reshape(300, 4) % 7
    path = tmp_path_factory.mktemp("soma") / "cells"
    write_counts(path, counts_ng, range(300), range(4), fragments=3)
    return path, counts_ng


def only(value_filter: str) -> SomaOptions:
    return SomaOptions(obs_value_filter=value_filter)


def test_a_filter_chooses_the_rows(uri, pristine, expected_ng):
    store = open_soma(uri, options=only("place == 's10' and lane != 3"))
    chosen_n = np.flatnonzero((pristine.obs["place"] == "s10") & (pristine.obs["lane"] != 3))
    assert store.n_cells == len(chosen_n)
    assert_array_equal(dense(store.read(0, store.n_cells), 23), expected_ng[chosen_n])
    assert_array_equal(dense(store.read_ranges([(3, 5), (9, 30)]), 23), expected_ng[chosen_n[[3, 4, *range(9, 30)]]])
    assert store.n_entries == round(1100 * len(chosen_n) / 150)
    assert list(store.obs_names(3, 5)) == [f"cell{row}" for row in chosen_n[3:5]]


def test_the_row_of_a_bad_count_is_that_among_the_cells_chosen(tmp_path, cells):
    cells.X.data[cells.X.indptr[80]] = 0.5
    uri = write_adata(tmp_path / "cells", cells)
    with pytest.raises(ValueError, match=r"holds 0.5 at row 40, gene"):
        open_soma(uri, options=only("place == 's1' or place == 's2'")).read_ranges([(0, 2), (30, 50)])


def test_counts_that_are_not_whole_are_refused_or_read_as_they_are(tmp_path, cells):
    cells.X.data *= np.float32(0.75)
    path = write_adata(tmp_path / "cells", cells)
    with pytest.raises(ValueError, match=r"SCVI needs raw counts.* data\.allow_fractional: true"):
        open_store(path).read(0, 150)
    read = open_store(path, allow_fractional=True).read(0, 150)
    found = sparse.csr_matrix((read.counts_e, read.genes_e, read.indptr), (150, 23))
    assert read.counts_e.dtype == np.float32
    assert_array_equal(found.toarray(), cells.X.toarray())


def test_gaps_among_the_soma_joinids_of_cells_and_genes_are_no_rows(tmp_path, expected_ng):
    cell_ids = np.arange(150) * 3 + 1000 * (np.arange(150) > 60) + 7
    gene_ids = np.arange(23) * 2 + 5
    store = open_soma(write_counts(tmp_path / "cells", expected_ng, cell_ids, gene_ids))
    assert_array_equal(dense(store.read(0, 150), 23), expected_ng)
    assert_array_equal(dense(store.read_ranges([(2, 3), (59, 70)]), 23), expected_ng[[2, *range(59, 70)]])
    assert (list(store.var_names[:2]), list(store.obs_names(61, 62))) == (["g5", "g7"], ["c1190"])


def test_cells_without_counts_are_read_as_such_unless_many_follow_one_another(tmp_path, expected_ng):
    counts_ng = expected_ng * (np.arange(150) % 64 == 1)[:, None]
    counts_ng[149] = 1
    store = open_soma(write_counts(tmp_path / "cells", counts_ng, range(150), range(23)))
    assert_array_equal(dense(store.read(0, 150), 23), counts_ng)
    counts_ng[65] = 0
    with pytest.raises(ValueError, match=r"holds nothing at rows 2 to 128 "):
        open_soma(write_counts(tmp_path / "silent", counts_ng, range(150), range(23))).read(0, 150)


@pytest.mark.parametrize("slice_cells", [16, 32, 4096])
def test_rows_are_the_same_however_the_slices_fall(tmp_path, expected_ng, monkeypatch, slice_cells):
    monkeypatch.setattr(soma_store, "_SLICE_CELLS", slice_cells)
    store = open_soma(write_counts(tmp_path / "cells", expected_ng, range(150), range(23), tile=16, fragments=4))
    assert store._slice_cells == slice_cells
    for ranges in ([(0, 150)], [(15, 17)], [(1, 2), (14, 40), (47, 48), (90, 150)]):
        row_n = np.concatenate([np.arange(*span) for span in ranges])
        assert_array_equal(dense(store.read_ranges(ranges), 23), expected_ng[row_n])


def test_rows_in_a_tile_are_told_by_its_capacity(tmp_path):
    store = open_soma(write_counts(tmp_path / "cells", np.ones((600, 400), np.int32), range(600), range(400)))
    assert store.chunk_cells == 250  # 100,000 entries of 400 a cell
    assert open_soma(write_counts(tmp_path / "few", np.ones((600, 2)), range(600), range(2))).chunk_cells == 600


def test_large_counts_are_read_again_and_from_then_on_at_once(tmp_path, cells, expected_ng, monkeypatch):
    cells.X.data[cells.X.indptr[40]] = 70_000
    store = open_soma(write_adata(tmp_path / "cells", cells))
    first = store.read(30, 50)
    monkeypatch.setattr(store, "_read_closely", None)
    assert_array_equal(dense(store.read(30, 50), 23), dense(first, 23))
    assert first.counts_e.max() == 70_000


def test_reading_in_threads_gives_each_its_rows(uri, expected_ng):
    store = open_soma(uri)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: store.read(start, start + 10), range(0, 150, 10)))
    assert_array_equal(np.concatenate([dense(rows, 23) for rows in parts]), expected_ng)


def test_the_only_layer_is_read_or_raw_and_otherwise_one_must_be_named(tmp_path, cells, expected_ng):
    several = write_adata(tmp_path / "several", cells, layer="data")
    with pytest.raises(ValueError, match=r"has no layer 'raw' in X: present are data, twice; name one with data.layer"):
        open_soma(several)
    assert_array_equal(dense(open_soma(several, layer="data").read(0, 9), 23), expected_ng[:9])
    del cells.layers["twice"]
    store = open_soma(write_adata(tmp_path / "one", cells, layer="counts"))
    assert_array_equal(dense(store.read(0, 9), 23), expected_ng[:9])
    assert store.layers() == []


class TestMoment:
    def test_what_is_written_after_opening_is_not_read(self, path, cells, expected_ng):
        store = open_soma(str(path))
        with tiledbsoma.open(str(path), "w") as experiment:
            entry = {"soma_dim_0": [0], "soma_dim_1": [0], "soma_data": pa.array([99], pa.float32())}
            experiment.ms["RNA"].X["raw"].write(pa.table(entry))
        with tiledbsoma.open(str(path)) as experiment:
            obs = experiment.obs.read().concat().to_pandas()
        obs["lane"] += 50
        with tiledbsoma.open(str(path / "obs"), "w") as frame:
            frame.write(pa.Table.from_pandas(obs, schema=frame.schema, preserve_index=False))
        again = open_soma(str(path), options=SomaOptions(timestamp_ms=store.timestamp_ms))
        for then in (store, again):
            assert_array_equal(dense(then.read(0, 150), 23), expected_ng)
            assert_array_equal(then.numeric("lane").values(0, 150), cells.obs["lane"])
            assert then.n_entries == cells.X.nnz
        now = open_soma(str(path))
        assert dense(now.read(0, 1), 23)[0, 0] == 99
        assert now.numeric("lane").values(0, 1) == 50

    def test_a_moment_before_the_first_write_is_refused(self, uri):
        with pytest.raises(ValueError, match=r"experiment .* as of timestamp_ms=1000 cannot be read"):
            open_soma(uri, options=SomaOptions(timestamp_ms=1000))


class TestWrongOptions:
    def test_a_measurement_that_is_not_there_is_refused_with_those_that_are(self, uri):
        with pytest.raises(ValueError, match=r"no measurement 'rna': set data.soma.measurement to RNA"):
            open_soma(uri, options=SomaOptions(measurement="rna"))

    def test_a_dense_layer_is_refused_with_how_to_write_it(self, path):
        x = str(path / "ms" / "RNA" / "X")
        with tiledbsoma.open(x, "w") as layers:
            layers.add_new_dense_ndarray("full", type=pa.float32(), shape=(150, 23))
        with pytest.raises(ValueError, match=r"X/full of .* is a SOMADenseNDArray: write it with X_kind"):
            open_soma(str(path), layer="full")

    def test_a_part_of_an_experiment_is_refused(self, path):
        with pytest.raises(ValueError, match="is a SOMAMeasurement: an experiment with obs and ms is needed"):
            open_soma(str(path / "ms" / "RNA"))

    def test_a_folder_that_is_no_experiment_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"the TileDB-SOMA experiment .* cannot be read"):
            open_soma(str(tmp_path))

    def test_without_tiledbsoma_the_install_command_is_told(self, uri, monkeypatch):
        monkeypatch.setitem(sys.modules, "tiledbsoma", None)
        with pytest.raises(ValueError, match=r"pip install dist-scvi\[soma\]"):
            open_soma(uri)


def test_an_experiment_is_told_from_other_folders(path, save, cells):
    assert is_soma(path)
    assert not is_soma(save(cells))
    assert not is_soma(path / "obs" / "__fragments")


def fragments(path: Path, array: str) -> list[Path]:
    return sorted((path / array / "__fragments").iterdir())


def lose(fragment: Path) -> None:
    """Remove a fragment together with its commit."""
    shutil.rmtree(fragment)
    (fragment.parent.parent / "__commits" / f"{fragment.name}.wrt").unlink()


ARRAYS = ("obs", "ms/RNA/var", "ms/RNA/X/raw")


class TestDamage:
    @pytest.mark.parametrize("array", ARRAYS)
    def test_a_lost_commit_is_refused_by_name(self, path, array):
        fragment = fragments(path, array)[0].name
        (path / array / "__commits" / f"{fragment}.wrt").unlink()
        with pytest.raises(ValueError, match=rf"{array}/__fragments/{fragment} is not committed"):
            open_soma(str(path))

    def test_commits_in_one_file_are_commits(self, in_parts, tmp_path):
        path = Path(shutil.copytree(in_parts[0], tmp_path / "copy"))
        x = path / "ms" / "RNA" / "X" / "data"
        with tiledbsoma.open(str(x), "w") as array:
            array._handle.consolidate_and_vacuum(["commits"])
        for commit in (x / "__commits").glob("*.wrt"):
            commit.unlink()
        assert_array_equal(dense(open_soma(str(path)).read(0, 300), 4), in_parts[1])

    @pytest.mark.parametrize("array", ARRAYS)
    def test_a_lost_fragment_is_refused(self, path, array):
        shutil.rmtree(fragments(path, array)[0])
        with pytest.raises(ValueError, match=r"cannot be read \(.*No such file"):
            open_soma(str(path))

    @pytest.mark.parametrize(
        ("array", "message"),
        [("obs", "is empty"), ("ms/RNA/var", "is empty"), ("ms/RNA/X/raw", "holds nothing at rows 0 to 149")],
    )
    def test_an_array_that_lost_all_is_refused(self, path, array, message):
        lose(fragments(path, array)[0])
        with pytest.raises(ValueError, match=message):
            open_soma(str(path))

    @pytest.mark.parametrize("lost", [0, 1, 2])
    def test_counts_that_lost_a_part_are_refused_with_its_rows(self, in_parts, tmp_path, lost):
        path = Path(shutil.copytree(in_parts[0], tmp_path / "copy"))
        lose(fragments(path, "ms/RNA/X/data")[lost])
        with pytest.raises(
            ValueError, match=rf"X of .* holds nothing at rows {lost * 100} to {lost * 100 + 99} \(soma_joinid"
        ):
            open_soma(str(path)).read(0, 300)

    @pytest.mark.parametrize(("lost", "first"), [(0, 0), (1, 100), (2, 200)])
    def test_counts_of_cells_that_obs_lost_are_refused(self, in_parts, tmp_path, lost, first):
        path = Path(shutil.copytree(in_parts[0], tmp_path / "copy"))
        lose(fragments(path, "obs")[lost])
        with pytest.raises(ValueError, match=rf"holds an entry of soma_joinid {first}, which obs lacks"):
            open_soma(str(path)).read(0, 200)

    @pytest.mark.parametrize("file", ["a0.tdb", "d0.tdb", "d1.tdb"])
    @pytest.mark.parametrize("kept", [None, -20])
    def test_a_file_of_counts_lost_or_truncated_is_refused_with_rows(self, path, file, kept):
        damaged = fragments(path, "ms/RNA/X/raw")[0] / file
        content = damaged.read_bytes()
        damaged.unlink()
        if kept is not None:
            damaged.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"X of .* at rows 7 to 8 cannot be read .*restore it from a copy"):
            open_soma(str(path)).read(7, 9)

    def test_entries_of_a_gene_that_var_lacks_are_refused(self, path):
        with tiledbsoma.open(str(path / "ms" / "RNA" / "X" / "raw"), "w") as array:
            array.resize((150, 30))
        with tiledbsoma.open(str(path / "ms" / "RNA" / "X" / "raw"), "w") as array:
            entry = {"soma_dim_0": [20], "soma_dim_1": [25], "soma_data": pa.array([1], pa.float32())}
            array.write(pa.table(entry))
        with pytest.raises(ValueError, match="holds an entry at row 20, gene 25: there are 23 genes"):
            open_soma(str(path)).read(0, 30)
