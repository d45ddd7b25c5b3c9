import itertools
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata
import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal

from dist_scvi.loaders import remote
from dist_scvi.loaders.remote import (
    LocalObjects,
    RemoteObjects,
    StorageError,
    open_objects,
    storage_errors,
    zarr_store_of,
)

from .object_server import ObjectServer

BODY = np.random.default_rng(0).bytes(10_000)
QUICK = {"retries": 2, "timeout_s": 0.5, "deadline_s": 10.0}


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)
    (tmp_path / "bucket" / "deep").mkdir(parents=True)
    (tmp_path / "bucket" / "deep" / "object").write_bytes(BODY)
    with ObjectServer(tmp_path) as server:
        yield server


def options(server, kind) -> dict[str, str] | None:
    return {"s3": server.s3_options, "gs": {"base_url": server.uri, "skip_signature": "true"}}.get(kind)


def uri_of(server, kind) -> str:
    return {"local": str(server.root / "bucket"), "http": f"{server.uri}/bucket"}.get(kind, f"{kind}://bucket")


@pytest.fixture(params=["local", "http", "s3", "gs"])
def objects(request, server):
    return open_objects(uri_of(server, request.param), storage_options=options(server, request.param))


@pytest.fixture(params=["http", "s3"])
def distant(request, server):
    uri = uri_of(server, request.param)
    return RemoteObjects(uri, storage_options=options(server, request.param), **QUICK)


class TestAnyObjects:
    @pytest.mark.parametrize("span", [(0, 10_000), (0, 1), (9_999, 1), (17, 4_000), (5, 0)])
    def test_the_bytes_of_a_range_are_those_of_the_file(self, objects, span):
        start, length = span
        assert bytes(objects.read("deep/object", start, length)) == BODY[start : start + length]

    def test_a_whole_object_is_that_of_the_file(self, objects):
        assert bytes(objects.read_whole("deep/object")) == BODY

    def test_sizes_are_known_and_absent_objects_have_none(self, objects):
        keys = ("deep/object", "deep/none", "deep", "deep/object/more")
        assert [objects.size(key) for key in keys] == [10_000, None, None, None]

    @pytest.mark.parametrize("ask", [("read", 0, 5), ("read_whole",), ("version",)])
    def test_an_absent_object_is_refused_by_name(self, objects, ask):
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(objects.uri)}/deep/none does not exist"):
            getattr(objects, ask[0])("deep/none", *ask[1:])

    @pytest.mark.parametrize(("start", "there"), [(9_990, 10), (10_000, 0), (20_000, 0)])
    def test_an_object_that_is_cut_short_is_refused_by_name(self, objects, start, there):
        found = f"/deep/object is truncated: bytes {start} to {start + 19} are needed, {there} of these 20 are there"
        with pytest.raises(ValueError, match=re.escape(objects.uri + found)):
            objects.read("deep/object", start, 20)

    def test_an_object_that_is_written_again_has_another_version(self, objects, server):
        before = objects.version("deep/object")
        assert objects.version("deep/object") == before
        (server.root / "bucket/new").write_bytes(BODY[:-1])
        (server.root / "bucket/new").replace(server.root / "bucket/deep/object")
        assert objects.version("deep/object") != before

    def test_many_threads_read_at_once(self, objects):
        with ThreadPoolExecutor(16) as threads:
            parts = threads.map(lambda start: bytes(objects.read("deep/object", start, 100)), range(0, 10_000, 100))
            assert b"".join(parts) == BODY


class TestLocalObjects:
    def test_few_files_stay_open(self, tmp_path):
        for number in range(40):
            (tmp_path / str(number)).write_bytes(bytes([number]))
        objects = LocalObjects(tmp_path, max_open=4)
        before = open_files()
        with ThreadPoolExecutor(8) as threads:
            keys = [str(number % 40) for number in range(2_000)]
            assert list(threads.map(lambda key: objects.read(key, 0, 1)[0], keys)) == list(map(int, keys))
        assert open_files() - before <= 4

    @pytest.mark.parametrize("known", [True, False])
    def test_a_read_that_comes_in_pieces_is_joined(self, tmp_path, monkeypatch, known):
        (tmp_path / "object").write_bytes(BODY)
        whole = os.pread

        def some(number, buffers, at):
            part = whole(number, min(len(buffers[0]), 1_000), at)
            buffers[0][: len(part)] = part
            return len(part)

        if known:
            monkeypatch.setattr(os, "preadv", some)
        else:
            monkeypatch.delattr(os, "preadv")
            monkeypatch.setattr(os, "pread", lambda number, length, at: whole(number, min(length, 1_000), at))
        assert LocalObjects(tmp_path).read("object", 10, 4_500) == BODY[10:4_510]

    def test_a_disk_that_fails_is_named(self, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(StorageError, match=rf"^{tmp_path}/folder cannot be read \(Is a directory\): see that its"):
            LocalObjects(tmp_path).read("folder", 0, 1)


class TestRemoteObjects:
    @pytest.mark.parametrize("fault", [500, 503, 429, "silent", "stall", "cut"])
    @pytest.mark.parametrize("ask", [("read", 0, 10_000), ("read_whole",)])
    def test_what_fails_twice_is_read_the_third_time(self, distant, server, fault, ask):
        server.inflict([fault, fault])
        assert bytes(getattr(distant, ask[0])("deep/object", *ask[1:])) == BODY
        assert server.requests == [("GET", "/bucket/deep/object")] * 3

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [(503, "503 Service Unavailable"), ("silent", "timeout"), ("stall", "timeout"), ("cut", "interrupted")],
    )
    def test_what_fails_always_is_given_up_after_the_tries_allowed_and_named(self, distant, server, fault, reason):
        server.inflict(itertools.repeat(fault))
        found = rf"^{re.escape(distant.uri)}/deep/object was not delivered in 3 tries over .* s \(.*{reason}.*\): see "
        with pytest.raises(StorageError, match=found):
            distant.read("deep/object", 0, 10_000)
        assert len(server.requests) == 3

    @pytest.mark.parametrize(
        ("status", "kind"), [(400, StorageError), (401, StorageError), (403, StorageError), (404, FileNotFoundError)]
    )
    def test_what_will_not_change_is_not_tried_again(self, distant, server, status, kind):
        server.inflict(itertools.repeat(status))
        with pytest.raises(kind, match=f"^{re.escape(distant.uri)}/deep/object "):
            distant.read("deep/object", 0, 10_000)
        assert len(server.requests) == 1

    def test_a_slash_at_the_end_of_the_url_changes_nothing(self, server):
        objects = open_objects(f"{server.uri}/bucket/")
        assert (objects.uri, objects.size("deep/object")) == (f"{server.uri}/bucket", 10_000)

    def test_an_object_that_is_forbidden_does_not_count_as_absent(self, distant, server):
        server.inflict([403])
        with pytest.raises(StorageError, match=r"in 1 try .* skip_signature=true reads public buckets"):
            distant.size("deep/object")

    @pytest.mark.parametrize("fault", [503, "silent", "slow"])
    def test_no_read_outlasts_its_deadline(self, server, fault):
        objects = RemoteObjects(uri_of(server, "http"), retries=1_000, timeout_s=0.25, deadline_s=1.0)
        server.inflict(itertools.repeat(fault))
        began = time.monotonic()
        with pytest.raises(StorageError, match="was not delivered in"):
            objects.read("deep/object", 0, 10_000)
        assert time.monotonic() - began < 3

    def test_a_slow_object_that_keeps_coming_is_read(self, server):
        objects = RemoteObjects(uri_of(server, "http"), retries=0, timeout_s=0.6, deadline_s=20)
        server.inflict(["slow"])
        assert bytes(objects.read_whole("deep/object")) == BODY
        assert len(server.requests) == 1

    def test_a_server_that_knows_no_ranges_is_refused(self, server):
        server.inflict([200])
        with pytest.raises(
            StorageError, match=r"/deep/object was not delivered in 1 try .*Range request not supported"
        ):
            RemoteObjects(uri_of(server, "http"), **QUICK).read("deep/object", 5, 10)

    def test_a_server_that_is_not_there_is_named(self):
        objects = RemoteObjects("http://127.0.0.1:9/bucket", **QUICK)
        with pytest.raises(
            StorageError, match=r"^http://127.0.0.1:9/bucket/object was .* connect\): see that it can be"
        ):
            objects.size("object")

    @pytest.mark.parametrize("uri", ["ftp://host/folder", "soma://folder"])
    def test_a_scheme_that_is_not_known_is_refused_with_those_that_are(self, uri):
        with pytest.raises(ValueError, match=rf"^{uri} cannot be read: a local path or a URL of s3, gs, http, https"):
            open_objects(uri)

    @pytest.mark.parametrize("uri", ["s3://bucket", "https://host/folder"])
    def test_an_option_that_is_not_known_is_refused(self, uri):
        with pytest.raises(ValueError, match=rf"^{uri} cannot be opened with storage options colour \(.*\): obstore"):
            open_objects(uri, storage_options={"colour": "red"})

    def test_options_of_the_connection_reach_it(self, server):
        objects = RemoteObjects("http://nowhere.invalid/bucket", storage_options={"proxy_url": server.uri}, **QUICK)
        with pytest.raises(FileNotFoundError):
            objects.read_whole("object")
        assert server.requests == [("GET", "/bucket/object")]


class TestZarrStore:
    @pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
    @pytest.mark.parametrize("scheme", ["local", "http", "s3"])
    def test_an_anndata_is_the_one_that_was_saved(self, save, pristine, scheme, kind):
        path = save(pristine, kind)
        with ObjectServer(path.parents[1]) as server:
            bucket = path.parent.name
            uri = {"local": str(path), "http": f"{server.uri}/{bucket}/cells.zarr", "s3": f"s3://{bucket}/cells.zarr"}
            store = zarr_store_of(uri[scheme], server.s3_options if scheme == "s3" else None)
            read = anndata.io.read_elem(zarr.open_group(store, mode="r"))
            assert (len(server.requests) > 0) == (scheme != "local")
        assert_array_equal(read.X.toarray(), pristine.X.toarray())
        assert read.obs["place"].tolist() == pristine.obs["place"].tolist()
        assert read.layers["twice"].nnz == pristine.layers["twice"].nnz

    def test_groups_of_a_bucket_are_listed(self, tmp_path):
        zarr.create_group(tmp_path / "bucket").create_group("a").create_group("b")
        with ObjectServer(tmp_path) as server:
            root = zarr.open_group(zarr_store_of("s3://bucket", server.s3_options), mode="r")
            assert (list(root.keys()), list(root["a"].keys())) == (["a"], ["b"])

    def test_a_store_cannot_be_written(self, server):
        for uri in (server.root, server.uri):
            with pytest.raises(ValueError, match="read-only"):
                zarr.create_group(zarr_store_of(uri))

    def test_storage_that_fails_is_named_after_the_tries_allowed(self, server):
        uri = uri_of(server, "http")
        server.inflict(itertools.repeat(503))
        with pytest.raises(StorageError, match=rf"^{uri} cannot be read \(.*503.*\)"), storage_errors(uri):
            zarr.open_group(zarr_store_of(uri, **QUICK), mode="r")
        asked = {path: server.requests.count(("GET", path)) for _, path in server.requests}
        assert max(asked.values()) == 3
