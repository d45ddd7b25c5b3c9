"""Whatever is written into a place is whole or absent there, on a disk as in object storage."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path

import pytest

from dist_scvi.loaders.arrays import remote
from dist_scvi.loaders.arrays.objects import StorageError
from dist_scvi.loaders.arrays.remote import RemoteObjects
from dist_scvi.storage.folder_manifest import MANIFEST, DamagedFolderError, IncompleteFolderError
from dist_scvi.storage.run_storage import ObjectStorage, RunStorage, open_run_storage
from tests.dist_scvi.storage.stored_folders import NEW, OLD, folder_or_none
from tests.loaders.object_server import ObjectServer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)
    (tmp_path / "bucket").mkdir()
    with ObjectServer(tmp_path) as server:
        yield server


def opened(kind: str, server: ObjectServer) -> RunStorage:
    uri = str(server.root / "disk" / "run") if kind == "disk" else f"{kind}://bucket/some/run"
    return open_run_storage(uri, storage_options={"s3": server.s3_options, "gs": server.gs_options}.get(kind))


@pytest.fixture(params=["disk", "s3", "gs"])
def place(request: pytest.FixtureRequest, server: ObjectServer) -> RunStorage:
    return opened(request.param, server)


def names_below(place: RunStorage, name: str = "") -> set[str]:
    """Name all files, however deep."""
    inside = place.names(name)
    return (
        {name} - {""}
        if not inside
        else {below for one in inside for below in names_below(place, f"{name}/{one}"[not name :])}
    )


class TestAnyPlace:
    @pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 12_000], ids=["none", "one", "3 MB"])
    def test_what_is_written_is_read_and_replaced(self, place: RunStorage, content: bytes) -> None:
        place.write("deep/er/file.json", content)
        assert place.read("deep/er/file.json") == content
        place.write("deep/er/file.json", b"other")
        assert place.read("deep/er/file.json") == b"other"
        assert names_below(place) == {"deep/er/file.json"}

    @pytest.mark.parametrize("name", ["file", "no/file", "there/file"])
    def test_an_absent_file_is_refused_by_name(self, place: RunStorage, name: str) -> None:
        place.write("there", b"")
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(place.uri)}/{name} does not exist$"):
            place.read(name)

    def test_only_the_first_creates_a_file(self, place: RunStorage) -> None:
        assert place.create("deep/lease", b"first")
        assert not place.create("deep/lease", b"second")
        assert not place.create("deep/lease", b"first")
        assert place.read("deep/lease") == b"first"
        assert names_below(place) == {"deep/lease"}

    def test_of_many_threads_that_create_a_file_one_does(self, place: RunStorage) -> None:
        with ThreadPoolExecutor(8) as threads:
            for turn in range(5):
                made = list(threads.map(place.create, [f"lease-{turn}"] * 8, [b"%d" % who for who in range(8)]))
                assert sum(made) == 1
                assert place.read(f"lease-{turn}") == b"%d" % made.index(True)

    def test_names_are_those_right_below_in_order(self, place: RunStorage) -> None:
        for name in ("b", "a/x/deep", "a/y", "a b+%&<.json", "c/z", "aa"):
            place.write(name, b"")
        assert place.names() == ["a", "a b+%&<.json", "aa", "b", "c"]
        assert place.names("a") == ["x", "y"]
        assert place.names("none") == place.names("b") == place.subfolder("none").names() == []

    def test_what_is_removed_is_gone_and_nothing_else(self, place: RunStorage) -> None:
        for name in ("ck/one", "ck/deep/two", "ck2/one", "ck.json", "file"):
            place.write(name, b"")
        place.remove("ck")
        assert names_below(place) == {"ck2/one", "ck.json", "file"}
        for name in ("file", "ck", "none", "ck.json/none"):
            place.remove(name)
        assert names_below(place) == {"ck2/one", "ck.json"}
        place.remove("")
        assert place.names() == []

    def test_a_folder_reads_back(self, place: RunStorage) -> None:
        place.write_folder("deep/model", OLD)
        assert place.read_folder("deep/model") == OLD
        assert place.names("deep") == ["model"]

    def test_a_folder_is_replaced_as_a_whole(self, place: RunStorage) -> None:
        place.write_folder("model", OLD)
        place.write_folder("model", NEW)
        assert place.read_folder("model") == NEW
        assert names_below(place) == {f"model/{name}" for name in (*NEW, MANIFEST)}

    def test_a_renamed_folder_takes_the_place_of_another(self, place: RunStorage) -> None:
        place.write_folder("new", NEW)
        place.write_folder("deep/old", OLD)
        for _ in range(2):
            place.rename("new", "deep/old")
            assert place.read_folder("deep/old") == NEW
            assert names_below(place) == {f"deep/old/{name}" for name in (*NEW, MANIFEST)}
            place.rename("deep/old", "new")
            place.write_folder("deep/old", OLD)

    def test_an_incomplete_folder_may_be_renamed_and_an_absent_one_not(self, place: RunStorage) -> None:
        place.write("half/file", b"x")
        place.rename("half", "aside")
        assert names_below(place) == {"aside/file"}
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(place.uri)}/half does not exist$"):
            place.rename("half", "aside")
        assert names_below(place) == {"aside/file"}

    def test_a_place_within_is_the_folder_of_that_name(self, place: RunStorage) -> None:
        inside = place.subfolder("deep/model")
        inside.write_folder("", OLD)
        assert inside.uri == f"{place.uri}/deep/model"
        assert inside.read_folder("") == place.read_folder("deep/model") == OLD
        place.subfolder("deep").remove("model")
        assert inside.names() == []

    def test_an_absent_folder_is_told_from_an_incomplete_one(self, place: RunStorage) -> None:
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(place.uri)}/model does not exist$"):
            place.read_folder("model")
        place.write_folder("model", OLD)
        place.remove(f"model/{MANIFEST}")
        with pytest.raises(
            IncompleteFolderError, match=f"^{re.escape(place.uri)}/model has no {MANIFEST}: it is incomplete$"
        ):
            place.read_folder("model")

    @pytest.mark.parametrize(
        "content", [b"", b"short", OLD["weights.bin"][:-1] + b"\0", OLD["weights.bin"] + b"\0", None]
    )
    def test_a_changed_shorter_longer_or_missing_file_is_refused_by_name(
        self, place: RunStorage, content: bytes | None
    ) -> None:
        place.write_folder("model", OLD)
        if content is None:
            place.remove("model/weights.bin")
        else:
            place.write("model/weights.bin", content)
        with pytest.raises(
            DamagedFolderError, match=f"{re.escape(place.uri)}/model/weights.bin (has|cannot)"
        ) as refused:
            place.read_folder("model")
        assert not isinstance(refused.value, IncompleteFolderError)

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "\0", "\ud800"])
    def test_a_manifest_that_names_a_file_elsewhere_is_refused(self, place: RunStorage, name: str) -> None:
        place.write_folder("model", OLD)
        manifest = json.loads(place.read(f"model/{MANIFEST}"))
        manifest["files"][name] = {"bytes": 1, "sha256": "00"}
        place.write(f"model/{MANIFEST}", json.dumps(manifest).encode())
        with pytest.raises(DamagedFolderError, match=r"names '.*': only plain file names are allowed"):
            place.read_folder("model")

    def test_a_size_beyond_all_bounds_is_refused_before_anything_is_read(self, place: RunStorage) -> None:
        place.write_folder("model", OLD)
        manifest = place.read(f"model/{MANIFEST}")
        for size in (1 << 60, 1 << 100, -1):
            place.write(f"model/{MANIFEST}", manifest.replace(b'"bytes": 48', b'"bytes": %d' % size))
            with pytest.raises(DamagedFolderError, match=rf"weights.bin has 48 bytes, the manifest says {size}: it is"):
                place.read_folder("model")

    @pytest.mark.parametrize("content", [b"[" * 100_000, b"x" * ((1 << 24) + 1)], ids=["deep", "long"])
    def test_a_manifest_that_only_malice_writes_is_refused(self, place: RunStorage, content: bytes) -> None:
        place.write_folder("model", OLD)
        place.write(f"model/{MANIFEST}", content)
        with pytest.raises(DamagedFolderError, match=rf"model/{MANIFEST} has (100,000 levels|16,777,217 bytes)"):
            place.read_folder("model")

    @pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/", "a/../b", ".x", "a/.x", "."])
    def test_names_that_lead_elsewhere_are_refused(self, place: RunStorage, name: str) -> None:
        actions: list[Callable[[], object]] = [
            lambda: place.read(name),
            lambda: place.write(name, b""),
            lambda: place.create(name, b""),
            lambda: place.names(name),
            lambda: place.remove(name),
            lambda: place.rename(name, "x"),
            lambda: place.rename("x", name),
            lambda: place.write_folder(name, {}),
            lambda: place.read_folder(name),
            lambda: place.subfolder(name),
        ]
        for act in actions:
            with pytest.raises(ValueError, match=rf"^{re.escape(repr(name))} is not a name in a run folder: "):
                act()


class TestOpenPlace:
    @pytest.mark.parametrize("uri", ["http://host/run", "https://host/run", "file:///run", "az://bucket/run"])
    def test_what_cannot_be_written_is_refused(self, uri: str) -> None:
        with pytest.raises(ValueError, match=rf"^{uri} cannot be written: a local path or a URL of s3, gs is needed"):
            open_run_storage(uri)

    def test_an_open_place_is_given_back(self, tmp_path: Path) -> None:
        place = open_run_storage(tmp_path)
        assert open_run_storage(place) is place

    def test_a_bucket_itself_is_a_place(self, server: ObjectServer) -> None:
        place = open_run_storage("s3://bucket/", storage_options=server.s3_options)
        place.write_folder("", OLD)
        assert (place.uri, place.read_folder("")) == ("s3://bucket", OLD)
        place.remove("")
        assert place.names() == []


# Forks eight processes that create a file at the same time, and prints what each of them was told.
RACE = """
import json, sys
from multiprocessing import get_context
from dist_scvi.storage.run_storage import open_run_storage
fork = get_context("fork")
gate, told = fork.Barrier(8), fork.SimpleQueue()
def create(who):
    for uri, options in json.loads(sys.argv[1]).items():
        place = open_run_storage(uri, storage_options=options)
        for turn in range(5):
            gate.wait(30)
            told.put((uri, turn, who, place.create(f"lease-{turn}", b"%d" % who)))
racers = [fork.Process(target=create, args=[who], daemon=True) for who in range(8)]
for racer in racers: racer.start()
print(json.dumps([told.get() for _ in range(80)]))
"""


def test_of_many_processes_that_create_a_file_one_does(server: ObjectServer) -> None:
    places = {place.uri: place for place in (opened("disk", server), opened("s3", server))}
    options = {uri: server.s3_options if isinstance(place, ObjectStorage) else None for uri, place in places.items()}
    script = [sys.executable, "-c", RACE, json.dumps(options)]
    told = json.loads(subprocess.run(script, check=True, timeout=100, capture_output=True).stdout)
    for uri, place in places.items():
        made = {turn: who for where, turn, who, won in told if won and where == uri}
        assert sum(won for where, _, _, won in told if where == uri) == len(made) == 5
        assert {turn: int(place.read(f"lease-{turn}")) for turn in range(5)} == made


class TestObjectPlace:
    @pytest.fixture
    def hasty(self, server: ObjectServer) -> ObjectStorage:
        """A place whose requests are tried once."""
        options = server.s3_options
        return ObjectStorage(RemoteObjects("s3://bucket/run", storage_options=options, retries=0, timeout_s=5))

    @pytest.mark.parametrize("last", [503, "cut"], ids=["undone", "done"])
    @pytest.mark.parametrize("action", ["new folder", "write_folder", "rename", "remove"])
    def test_killed_after_any_request_nothing_is_half_there(
        self, hasty: ObjectStorage, server: ObjectServer, action: str, last: int | str
    ) -> None:
        do: Callable[[], object] = {
            "new folder": lambda: hasty.write_folder("third", NEW),
            "write_folder": lambda: hasty.write_folder("model", NEW),
            "rename": lambda: hasty.rename("model", "deep/other"),
            "remove": lambda: hasty.remove("model"),
        }[action]
        for requests in range(100):
            server.inflict([])
            hasty.remove("third")
            hasty.write_folder("model", OLD)
            hasty.write_folder("deep/other", NEW)
            server.inflict(chain(repeat(None, requests), [last], repeat(503)))
            try:
                do()
                done = True
            except StorageError:
                done = False
            server.inflict([])
            self.check_whole(action, hasty)
            if done:
                break
        assert done
        assert requests > 3

    def check_whole(self, action: str, place: ObjectStorage) -> None:
        third, model, other = (folder_or_none(place, name) for name in ("third", "model", "deep/other"))
        assert third is None or (third == NEW and action == "new folder")
        assert model in {"write_folder": (OLD, NEW, None), "new folder": (OLD,)}.get(action, (OLD, None))
        assert other in ((OLD, NEW, None) if action == "rename" else (NEW,))
        assert action != "rename" or OLD in (model, other)

    def test_a_manifest_comes_last_and_goes_first(self, hasty: ObjectStorage, server: ObjectServer) -> None:
        for asked in (lambda: hasty.write_folder("model", OLD), lambda: hasty.rename("model", "other")):
            server.inflict([])
            asked()
            put = [path.rpartition("/")[2] for method, path in server.requests if method == "PUT"]
            assert (put[-1], sorted(put)) == (MANIFEST, sorted([*OLD, MANIFEST]))
        gone: list[bool] = []
        for requests in range(2, 6):
            hasty.write_folder("model", OLD)
            server.inflict(chain(repeat(None, requests), repeat(503)))
            with pytest.raises(StorageError) if requests < 5 else pytest.MonkeyPatch.context():
                hasty.remove("model")
            server.inflict([])
            gone.append(MANIFEST not in hasty.names("model"))
        assert all(gone)

    def test_a_file_whose_creation_was_not_answered_is_known_as_ones_own(
        self, place: RunStorage, server: ObjectServer
    ) -> None:
        server.inflict(["cut"])
        assert place.create("lease", b"mine")
        assert place.read("lease") == b"mine"

    def test_a_file_of_another_stays_that_of_the_other_when_an_answer_is_lost(
        self, place: RunStorage, server: ObjectServer
    ) -> None:
        place.write("lease", b"theirs")
        server.inflict(["cut", 503])
        assert not place.create("lease", b"mine")
        assert place.read("lease") == b"theirs"

    def test_large_files_are_read_in_parts(
        self, hasty: ObjectStorage, server: ObjectServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dist_scvi.storage.run_storage._PART_BYTES", 20)
        hasty.write_folder("model", OLD)
        server.inflict([])
        assert hasty.read_folder("model") == OLD
        assert server.requests.count(("GET", "/bucket/run/model/weights.bin")) == 3

    def test_storage_that_fails_does_not_count_as_damage(self, hasty: ObjectStorage, server: ObjectServer) -> None:
        hasty.write_folder("model", OLD)
        for requests in range(100):
            server.inflict(chain(repeat(None, requests), [503]))
            try:
                assert hasty.read_folder("model") == OLD
            except StorageError as error:
                assert "s3://bucket/run/model" in str(error)  # noqa: PT017 - until no request is left to fail
            else:
                break
        assert requests == 2 + 2 * len(OLD) - 1
