import shutil

import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal
from scipy import sparse
from zarr.codecs import BloscCodec, Crc32cCodec

from dist_scvi.loaders import open_data, open_store
from dist_scvi.loaders.arrays import remote
from dist_scvi.loaders.arrays.objects import StorageError
from dist_scvi.loaders.checks.scan import inspect_store
from dist_scvi.loaders.stream import row_stream
from tests.loaders.object_server import ObjectServer
from tests.loaders.store_contract import Opened, StoreContract, dense

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


@pytest.mark.parametrize("name", PARTS[:2])
@pytest.mark.parametrize("which", [0, -1])
def test_a_lost_chunk_is_refused_by_name(path, name, which):
    lost = sorted((path / name / "c").iterdir(), key=lambda file: int(file.name))[which]
    lost.unlink()
    with pytest.raises(ValueError, match=f"{name} of .* lacks 1 of .* chunks, the first is {name}/c/{lost.name} "):
        open_store(path)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_lost_chunk_of_row_starts_is_never_read_as_empty_cells(path, which):
    sorted((path / "X/indptr/c").iterdir(), key=lambda file: int(file.name))[which].unlink()
    with pytest.raises(ValueError, match=r"X/indptr of .* (runs from 0 to 0|is damaged at row|lacks 1 of)"):
        open_store(path).read(0, 150)


def test_row_starts_of_empty_cells_that_zarr_left_out_are_read_as_anndata_does(cells, save, rewrite):
    empty = np.arange(150) < 40
    cells.X = sparse.csr_matrix(cells.X.toarray() * ~empty[:, None])
    path = save(cells)
    rewrite(path, "X/indptr", chunks=32)
    assert not (path / "X/indptr/c/0").exists()
    store = open_store(path)
    assert_array_equal(dense(store.read(0, 150), 23), cells.X.toarray())
    assert "X/indptr of" in store.limits()[0]


@pytest.mark.parametrize("name", PARTS)
def test_a_truncated_chunk_is_refused_by_name(path, name):
    file = path / name / "c" / "0"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{name} of .* cannot be read at .*: .* is truncated or damaged"):
        open_store(path).read(0, 150)


@pytest.mark.parametrize("name", PARTS)
def test_a_flipped_byte_under_crc32c_is_refused_wherever_it_lies(path, name):
    file = path / name / "c" / "0"
    good = file.read_bytes()
    for at in range(0, len(good), 23):
        file.write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
        with pytest.raises(ValueError, match=f"{name} of .* cannot be read"):
            open_store(path).read(1, 30)


def test_zero_chunks_of_a_dense_matrix_that_zarr_left_out_are_read_as_anndata_does_and_inspect_says_so(
    cells, expected_ng, save, rewrite
):
    cells.X = np.where(np.arange(150)[:, None] // 50 == 1, 0, expected_ng).astype(np.float32)
    path = save(cells)
    rewrite(path, "X", chunks=50)
    assert not (path / "X" / "c" / "1").exists()
    store = open_store(path)
    assert_array_equal(dense(store.read(0, 150), 23), cells.X)
    (limit,) = store.limits()
    assert "X of" in limit
    assert "1 of 3 chunks are not stored and are read as zeros" in limit
    assert limit in inspect_store(store).advice
    shutil.rmtree(path / "X" / "c")
    with pytest.raises(ValueError, match=r"X of .* lacks 3 of 3 chunks, the first is X/c/0/0 \(entries 0 to 149\)"):
        open_store(path)


def test_a_code_of_no_category_is_refused_with_its_row(cells, save, rewrite):
    path = save(cells)
    rewrite(path, "obs/place/codes", np.where(np.arange(150) == 99, 3, 0).astype(np.int8))
    with pytest.raises(ValueError, match="obs column 'place' holds code 3 at row 99 for 3 categories"):
        open_store(path).categorical("place").codes(90, 110)


def test_a_folder_that_is_no_zarr_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no Zarr group"):
        open_store(tmp_path)


def test_a_zarr_group_that_is_no_anndata_is_refused(tmp_path):
    zarr.create_group(tmp_path / "other.zarr").create_array("numbers", data=np.arange(3))
    with pytest.raises(ValueError, match="is no AnnData: groups 'obs' and 'var' are needed, found numbers"):
        open_store(tmp_path / "other.zarr")


def test_reading_in_threads_gives_each_its_rows(path, expected_ng):
    from concurrent.futures import ThreadPoolExecutor

    store = open_store(path)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: store.read(start, start + 10), range(0, 150, 10)))
    assert_array_equal(np.concatenate([dense(rows, 23) for rows in parts]), expected_ng)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ObjectServer(tmp_path_factory.getbasetemp()) as server:
        yield server


class TestZarrOverHttp(StoreContract):
    scheme = "http"

    @pytest.fixture
    def opened(self, server, save) -> Opened:
        def open_(adata, **options):
            key = save(adata).relative_to(server.root)
            s3 = self.scheme == "s3"
            uri = f"s3://{key}" if s3 else f"{server.uri}/{key}"
            return open_store(uri, storage_options=server.s3_options if s3 else None, **options)

        return open_


class TestZarrOnS3(TestZarrOverHttp):
    scheme = "s3"


def test_a_chunk_that_is_missing_over_the_network_is_noticed_when_it_is_read(path):
    with ObjectServer(path.parent) as server:
        store = open_store(f"{server.uri}/{path.name}")
        assert store.read(0, 5).n_cells == 5
        (path / "X" / "indices" / "c" / "0").unlink()
        with pytest.raises(ValueError, match=r"X/indices of http.* X/indices/c/0 .*the chunk is missing"):
            open_store(f"{server.uri}/{path.name}").read(0, 5)


@pytest.mark.parametrize("kind", ["http", "s3"])
@pytest.mark.parametrize(
    ("document", "refusal"),
    [
        ('{"attributes":' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}", "levels of lists or mappings"),
        ("[" + "1," * 600_000 + "1]", "values, at most"),
        (" " * (17 << 20), "bytes, at most"),
    ],
)
def test_metadata_beyond_the_budget_are_refused_over_the_network_too(tmp_path, kind, document, refusal):
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "zarr.json").write_text(document)
    with ObjectServer(tmp_path) as server:
        uri, options = (f"{server.uri}/bucket", None) if kind == "http" else ("s3://bucket", server.s3_options)
        with pytest.raises(ValueError, match=refusal):
            open_store(uri, storage_options=options)
        assert not [path for method, path in server.requests if method == "GET" and len(document) > 1 << 24]


def test_storage_that_fails_is_told_to_the_trainer_by_the_name_of_the_object(path, monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)
    with ObjectServer(path.parent) as server:
        data = open_data(f"{server.uri}/{path.name}")
        server.inflict([503, "cut"])
        assert next(row_stream(data, iter([(0, 50)]))).n_cells == 50
        server.inflict([503] * 100)
        with pytest.raises(StorageError, match=rf"{server.uri}/{path.name}/.* was not delivered in 6 tries"):
            next(row_stream(data, iter([(0, 150)])))
