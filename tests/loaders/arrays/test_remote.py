import itertools
import re
import time
from concurrent.futures import ThreadPoolExecutor

import anndata
import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal

from dist_scvi.loaders.arrays import remote
from dist_scvi.loaders.arrays.objects import StorageError
from dist_scvi.loaders.arrays.remote import RemoteObjects, open_objects, storage_errors, zarr_store_of
from tests.loaders.object_server import ObjectServer

BODY = np.random.default_rng(0).bytes(10_000)
QUICK = {"retries": 2, "timeout_s": 0.5, "deadline_s": 10.0}


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)
    (tmp_path / "bucket" / "deep").mkdir(parents=True)
    (tmp_path / "bucket" / "deep" / "object").write_bytes(BODY)
    with ObjectServer(tmp_path) as server:
        yield server


def options(server, kind) -> dict[str, str] | None:
    return {"s3": server.s3_options, "gs": server.gs_options}.get(kind)


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


@pytest.fixture(params=["s3", "gs"])
def bucket(request, server):
    """A bucket, and what a request is that changes it; deletion differs."""
    return RemoteObjects(f"{request.param}://bucket", storage_options=options(server, request.param), **QUICK)


CHANGES = {
    "write": lambda objects: objects.write("deep/new", b"new"),
    "create": lambda objects: objects.create("deep/new", b"new"),
    "copy": lambda objects: objects.copy("deep/object", "deep/new"),
    "delete": lambda objects: objects.delete("deep/object"),
    "keys": lambda objects: objects.keys("deep"),
    "names": lambda objects: objects.names("deep"),
}


class TestWriting:
    @pytest.mark.parametrize("change", CHANGES)
    def test_each_change_is_made_by_one_request(self, bucket, server, change):
        server.inflict([])
        CHANGES[change](bucket)
        assert len(server.requests) == 1
        made = {"write": b"new", "create": b"new", "copy": BODY}.get(change)
        assert (bytes(bucket.read_whole("deep/new")) if made else None) == made
        assert (bucket.size("deep/object") is None) == (change == "delete")

    @pytest.mark.parametrize("fault", [500, 503, 429, 409, "silent", "stall", "cut"])
    @pytest.mark.parametrize("change", CHANGES)
    def test_what_fails_twice_is_done_the_third_time(self, server, change, fault):
        objects = RemoteObjects("s3://bucket", storage_options=server.s3_options, **(QUICK | {"timeout_s": 0.2}))
        server.inflict([fault, fault])
        result = CHANGES[change](objects)
        looks = change == "create" and fault in ("stall", "cut")  # whether what is there is its own
        assert len(server.requests) == 3 + looks
        expected = {"create": True, "keys": ["deep/object"], "names": ["object"]}
        assert result == expected.get(change)
        made = {"write": b"new", "create": b"new", "copy": BODY}.get(change)
        assert (bytes(objects.read_whole("deep/new")) if made else None) == made
        assert (objects.size("deep/object") is None) == (change == "delete")

    @pytest.mark.parametrize("fault", [503, 403, "silent"])
    @pytest.mark.parametrize("change", CHANGES)
    def test_what_fails_always_is_given_up_and_named_and_nothing_has_changed(self, server, change, fault):
        objects = RemoteObjects("s3://bucket", storage_options=server.s3_options, **(QUICK | {"timeout_s": 0.2}))
        server.inflict(itertools.repeat(fault))
        done = {"copy": "copied", "delete": "deleted", "keys": "listed", "names": "listed"}.get(change, "written")
        tries = "1 try" if fault == 403 else "3 tries"
        with pytest.raises(
            StorageError, match=rf"^s3://bucket/deep\S* was not {done} in {tries} over .* s \(.*\): see "
        ):
            CHANGES[change](objects)
        assert len(server.requests) == int(tries[0])
        server.inflict([])
        assert objects.keys("") == ["deep/object"]

    def test_a_bucket_that_is_absent_is_named(self, server):
        objects = RemoteObjects("s3://nothing/run", storage_options=server.s3_options, **QUICK)
        for change in ("write", "create"):
            with pytest.raises(FileNotFoundError, match=r"^the bucket of s3://nothing/run does not exist$"):
                CHANGES[change](objects)

    def test_absent_objects_cannot_be_copied_and_need_not_be_deleted(self, bucket):
        bucket.delete("deep/none")
        with pytest.raises(FileNotFoundError, match=r"://bucket/deep/none does not exist$"):
            bucket.copy("deep/none", "deep/new")
        assert bucket.keys("") == ["deep/object"]

    def test_keys_are_those_of_all_objects_below_and_names_those_right_below(self, bucket):
        for key in ("deep/er/a b+%&<.json", "deep/er/b", "deep2/c", "d"):
            bucket.write(key, b"")
        assert bucket.keys("deep") == ["deep/er/a b+%&<.json", "deep/er/b", "deep/object"]
        assert bucket.keys("deep/none") == bucket.names("none") == []
        assert bucket.names("") == ["d", "deep", "deep2"]
        assert bucket.names("deep") == ["er", "object"]

    def test_an_object_that_is_there_is_not_created(self, bucket):
        assert not bucket.create("deep/object", b"new")
        assert not bucket.create("deep/object", BODY)
        assert bytes(bucket.read_whole("deep/object")) == BODY

    def test_an_object_of_another_stays_the_others_when_an_answer_is_lost(self, bucket, server):
        server.inflict(["cut", 503])
        assert not bucket.create("deep/object", b"new")
        assert bytes(bucket.read_whole("deep/object")) == BODY

    def test_a_conflict_with_another_request_is_no_proof_that_an_object_is_there(self, bucket, server):
        server.inflict([409])
        assert bucket.create("deep/new", b"new")
        assert bytes(bucket.read_whole("deep/new")) == b"new"

    def test_a_slow_upload_that_goes_on_is_finished(self, server):
        content = np.random.default_rng(1).bytes(3 << 20)
        objects = RemoteObjects("s3://bucket", storage_options=server.s3_options, retries=0, timeout_s=0.5)
        server.inflict(["slow"])
        objects.write("large", content)
        assert server.requests == [("PUT", "/bucket/large")]
        assert bytes(objects.read_whole("large")) == content

    @pytest.mark.parametrize("size", [10, 2 << 20])
    @pytest.mark.parametrize("fault", [503, "silent"])
    def test_no_upload_outlasts_its_deadline(self, server, fault, size):
        limits = {"retries": 1_000, "timeout_s": 0.25, "deadline_s": 1.0}
        objects = RemoteObjects("s3://bucket", storage_options=server.s3_options, **limits)
        server.inflict(itertools.repeat(fault))
        began = time.monotonic()
        with pytest.raises(StorageError, match="was not written in"):
            objects.write("large", bytes(size))
        assert time.monotonic() - began < 1 + 2 * size / (1 << 20) + 2

    def test_an_object_larger_than_storage_takes_is_refused(self, server, monkeypatch):
        monkeypatch.setattr(remote, "_MOST_BYTES", 10)
        objects = RemoteObjects("s3://bucket", storage_options=server.s3_options)
        objects.write("object", bytes(10))
        with pytest.raises(
            ValueError, match=r"^s3://bucket/object would have 11 bytes: object storage takes 10 at once"
        ):
            objects.write("object", bytes(11))

    def test_the_environment_says_where_the_storage_is(self, server, monkeypatch):
        for key, value in {"ENDPOINT_URL": server.uri, "REGION": "nowhere", "SKIP_SIGNATURE": "true"}.items():
            monkeypatch.setenv(f"AWS_{key}", value)
        objects = RemoteObjects("s3://bucket/deep", **QUICK)
        objects.write("new", b"new")
        assert objects.names("") == ["new", "object"]
        assert (server.root / "bucket/deep/new").read_bytes() == b"new"


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
