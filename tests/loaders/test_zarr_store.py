import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal
from zarr.codecs import BloscCodec, Crc32cCodec

from dist_scvi.loaders import open_store

from .store_contract import Opened, StoreContract, dense

PARTS = ("X/data", "X/indices", "X/indptr")


class TestZarrV2(StoreContract):
    @pytest.fixture
    def opened(self, save) -> Opened:
        return lambda adata, layer=None: open_store(save(adata, "zarr2"), layer=layer)


class TestZarrV3InChunks(StoreContract):
    shards: int | None = None

    @pytest.fixture
    def opened(self, save, rewrite) -> Opened:
        def store_and_open(adata, layer=None):
            path = save(adata)
            for name in (*PARTS, "obs/place/codes", "obs/age"):
                if isinstance(zarr.open_group(path, mode="r").get(name), zarr.Array):
                    rewrite(path, name, chunks=64, shards=self.shards)
            return open_store(path, layer=layer)

        return store_and_open


class TestZarrV3Sharded(TestZarrV3InChunks):
    shards = 256


@pytest.fixture(params=[None, 128], ids=["chunks", "shards"])
def path(cells, save, rewrite, request):
    """A store in several files, each with a checksum."""
    path = save(cells)
    for name in PARTS:
        codecs = [BloscCodec(cname="lz4"), Crc32cCodec()]
        rewrite(path, name, chunks=32, shards=request.param, codecs=codecs)
    return path


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("which", [0, -1])
def test_a_lost_chunk_is_refused_by_name(path, name, which):
    lost = sorted((path / name / "c").iterdir(), key=lambda file: int(file.name))[which]
    lost.unlink()
    with pytest.raises(ValueError, match=f"{name} of .* lacks 1 of .* chunks, the first is {name}/c/{lost.name} "):
        open_store(path)


@pytest.mark.parametrize("name", PARTS)
def test_a_truncated_chunk_is_refused_by_name(path, name):
    file = path / name / "c" / "0"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{name} of .* cannot be read at .*: a chunk is truncated or damaged"):
        open_store(path).read(0, 150)


@pytest.mark.parametrize("name", PARTS)
def test_a_flipped_byte_under_crc32c_is_refused_wherever_it_lies(path, name):
    file = path / name / "c" / "0"
    good = file.read_bytes()
    for at in range(0, len(good), 23):
        file.write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
        with pytest.raises(ValueError, match=f"{name} of .* cannot be read"):
            open_store(path).read(1, 30)


def test_a_missing_chunk_of_a_dense_matrix_is_refused_with_the_setting_for_zeros(cells, expected_ng, save, rewrite):
    cells.X = expected_ng.astype(np.float32)
    path = save(cells)
    rewrite(path, "X", chunks=50)
    (path / "X" / "c" / "1" / "0").unlink()
    with pytest.raises(ValueError, match=r"X of .* lacks 1 of 3 chunks, .* \(entries 50 to 99\).*write_empty_chunks"):
        open_store(path)


@pytest.mark.parametrize("name", PARTS)
def test_arrays_that_disagree_in_length_are_refused(cells, save, rewrite, name):
    path = save(cells)
    rewrite(path, name, zarr.open_array(path / name, mode="r")[:-1])
    with pytest.raises(ValueError, match=r"X of .* disagrees with itself: data holds .* entries, indices .*, indptr"):
        open_store(path)


def test_an_obs_column_of_another_length_is_refused(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/place/codes", np.zeros(149, dtype=np.int8))
    with pytest.raises(ValueError, match=r"obs/place of .* has 149 values for 150 cells"):
        open_store(path).categorical("place")


def test_a_code_of_no_category_is_refused_with_its_row(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/place/codes", np.where(np.arange(150) == 99, 3, 0).astype(np.int8))
    with pytest.raises(ValueError, match="obs column 'place' holds code 3 at row 99 for 3 categories"):
        open_store(path).categorical("place").codes(90, 110)


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (0, 1, "runs from 1 to"),
        (150, 9, "runs from 0 to 9, there are"),
        (70, 0, "is damaged at row 69: it must rise"),
        (70, 10**6, "is damaged at row 70: it must rise"),
    ],
)
def test_a_row_pointer_that_falls_is_refused(cells, save, rewrite, row, value, message):
    path = save(cells)
    indptr = np.array(cells.X.indptr)
    indptr[row] = value
    rewrite(path, "X/indptr", indptr)
    with pytest.raises(ValueError, match=f"X/indptr of .* {message}"):
        open_store(path).read(0, 150)


@pytest.mark.parametrize("gene", [-1, 23])
def test_an_entry_of_no_gene_is_refused(cells, save, gene):
    cells.X.indices[cells.X.indptr[8]] = gene
    with pytest.raises(
        ValueError, match=f"holds an entry at row 8, gene {gene}: there are 23 genes; the store is damaged"
    ):
        open_store(save(cells)).read(0, 20)


def test_columns_compressed_are_refused_with_the_way_to_convert_them(cells, save):
    cells.X = cells.X.tocsc()
    with pytest.raises(ValueError, match=r"stored as csc_matrix.*adata.X = scipy.sparse.csr_matrix\(adata.X\)"):
        open_store(save(cells))


def test_a_folder_that_is_no_zarr_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder but no Zarr group"):
        open_store(tmp_path)


def test_a_zarr_group_that_is_no_anndata_is_refused(tmp_path):
    zarr.create_group(tmp_path / "other.zarr").create_array("numbers", data=np.arange(3))
    with pytest.raises(ValueError, match="is no AnnData: groups 'obs' and 'var' are needed, found numbers"):
        open_store(tmp_path / "other.zarr")


def test_a_shape_that_obs_and_var_do_not_have_is_refused(path):
    zarr.open_group(path, mode="r+", use_consolidated=False)["X"].attrs["shape"] = [150, 24]
    with pytest.raises(ValueError, match=r"X of .* has shape \(150, 24\) but obs has 150 rows and var 23"):
        open_store(path)


def test_reading_in_threads_gives_each_its_rows(path, expected_ng):
    from concurrent.futures import ThreadPoolExecutor

    store = open_store(path)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: store.read(start, start + 10), range(0, 150, 10)))
    assert_array_equal(np.concatenate([dense(rows, 23) for rows in parts]), expected_ng)


@pytest.mark.parametrize("name", ["_index", "place/categories"])
def test_a_lost_chunk_of_names_is_refused(path, name) -> None:
    for file in [part for part in (path / "obs" / name / "c").rglob("*") if part.is_file()]:
        file.unlink()
    with pytest.raises(ValueError, match=f"obs/{name} of .* lacks 1 of 1 chunks"):
        open_store(path).categorical("place")
