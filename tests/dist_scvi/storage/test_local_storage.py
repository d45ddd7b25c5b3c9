"""On a disk, whatever instant a process is killed at, and whatever the disk refuses, files are whole or absent."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dist_scvi.storage.folder_manifest import MANIFEST
from dist_scvi.storage.run_storage import LocalStorage
from tests.dist_scvi.storage.stored_folders import NEW, OLD, folder_or_none

# Does something again and again in a child that kills itself just before operation 0, 1, ... on the file system.
KILLED = """
import os, signal, sys
from pathlib import Path
from dist_scvi.storage.atomic_files import write_folder
from dist_scvi.storage.run_storage import LocalStorage
old = {"weights.bin": bytes(range(48)), "spec.json": b'{"old": 1}', "gone.json": b""}
new = {"weights.bin": bytes(range(200, 148, -1)), "spec.json": b'{"new": 2}'}
actions = {
    "write": lambda place: place.write("file", b"new"),
    "create": lambda place: place.create("deep/lease", b"new"),
    "write_folder": lambda place: place.write_folder("model", new),
    "write_fresh": lambda place: place.write_folder("fresh", new),
    "write_renamed": lambda place: place.write_folder("model", new),
    "rename": lambda place: place.rename("model", "deep/other"),
    "remove": lambda place: place.remove("model"),
}
changes = ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "shutil.rmtree")
at = -1
def boundary(event="fsync", _=None):
    global at
    if event in ("fsync", *changes) and at >= 0:
        if at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        at -= 1
os.fsync = lambda descriptor: boundary()
sys.addaudithook(boundary)
for name, act in actions.items():
    for turn in range(100):
        place = LocalStorage(Path(sys.argv[1], name, str(turn)))
        place.write("file", b"old")
        place.write_folder("model", old)
        place.write_folder("deep/other", new)
        place.write("model/figures/notes", b"mine")
        if name == "write_renamed":  # what a kill in a rename leaves
            (place.path / "model").rename(place.path / ".old-model")
        else:  # and one just after it
            write_folder(place.path / ".old-model", {"stale": b""})
        child = os.fork()
        if child == 0:
            at = turn
            act(place)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one for each action, and in it one for each operation that it was killed before."""
    path = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=True, timeout=100)
    return path


class TestLocalPlace:
    @pytest.mark.parametrize(
        ("action", "least"),
        [
            *(("write", 6), ("create", 6), ("write_folder", 20), ("write_fresh", 10), ("write_renamed", 20)),
            *(("rename", 5), ("remove", 5)),
        ],
    )
    def test_killed_at_any_instant_the_old_or_the_new_is_there(self, killed: Path, action: str, least: int) -> None:
        turns = sorted(int(path.name) for path in (killed / action).iterdir())
        assert least < len(turns) < 100
        for turn in turns:
            place, last = LocalStorage(killed / action / str(turn)), turn == turns[-1]
            assert set(place.names()) <= {"file", "model", "deep", "fresh"}
            assert set(place.names("deep")) <= {"other", "lease"}
            self.check_whole(action, place, done=last)

    def check_whole(self, action: str, place: LocalStorage, *, done: bool) -> None:
        file = place.read("file")
        model, other = folder_or_none(place, "model"), folder_or_none(place, "deep/other")
        made = place.read("deep/lease") if "lease" in place.names("deep") else None
        assert file == b"old" or (file == b"new" and action == "write")
        assert made is None or (made == b"new" and action == "create")
        if action == "rename":
            assert (model, other) in ((OLD, NEW), (None, OLD))
        else:
            assert other == NEW
            assert model == OLD or model == {"write_folder": NEW, "write_renamed": NEW, "remove": None}.get(action, OLD)
        assert folder_or_none(place, "fresh") in (None, NEW if action == "write_fresh" else None)
        if action != "remove":
            found = [path for path in place.path.rglob("notes") if path.parts[-3] in ("model", ".old-model", "other")]
            assert [path.read_bytes() for path in found] == [b"mine"]
        if done:
            assert [path.name for path in place.path.rglob(".*") if path.name != ".old-model"] == []
            assert (file, made, model, folder_or_none(place, "fresh")) != (b"old", None, OLD, None)
            place.write_folder("model", NEW)  # whatever an earlier kill left
            assert place.read_folder("model") == NEW

    def test_a_folder_that_stands_aside_after_a_crash_is_listed_replaced_renamed_and_removed(
        self, tmp_path: Path
    ) -> None:
        place = LocalStorage(tmp_path)

        def crash() -> None:
            place.write_folder("model", OLD)
            (tmp_path / "model").rename(tmp_path / ".old-model")

        crash()
        assert (place.names(), place.read_folder("model")) == (["model"], OLD)
        place.rename("model", "aside")
        assert (place.names(), place.read_folder("aside")) == (["aside"], OLD)
        crash()
        place.write_folder("model", NEW)
        assert (place.names(), place.read_folder("model")) == (["aside", "model"], NEW)
        place.remove("model")
        crash()
        place.remove("model")
        assert place.names() == ["aside"]
        assert not list(tmp_path.glob(".*"))

    def test_what_was_replaced_does_not_come_back(self, tmp_path: Path) -> None:
        place = LocalStorage(tmp_path)
        for leave in (lambda: place.remove("model"), lambda: place.rename("model", "other")):
            place.write_folder("model", NEW)
            place.write_folder("older", OLD)
            (tmp_path / "older").rename(tmp_path / ".old-model")  # as after a kill just after a folder was replaced
            leave()
            with pytest.raises(FileNotFoundError):
                place.read_folder("model")

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
    @pytest.mark.parametrize("action", ["write", "create", "write_folder"])
    def test_a_disk_that_fails_is_named_and_left_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, action: str
    ) -> None:
        place = LocalStorage(tmp_path / "run")
        place.write("file", b"old")
        place.write_folder("model", OLD)

        def fail(_: int) -> None:
            raise OSError(code, os.strerror(code))

        do = {
            "write": lambda: place.write("file", b"new"),
            "create": lambda: place.create("lease", b"new"),
            "write_folder": lambda: place.write_folder("model", NEW),
        }[action]
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match=rf"{os.strerror(code)}: '{tmp_path}/run") as told:
                do()
        assert told.value.errno == code
        assert (place.read("file"), place.read_folder("model")) == (b"old", OLD)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["file", "model"]

    @pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
    def test_a_disk_that_cannot_be_read_does_not_count_as_damage(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        place = LocalStorage(tmp_path)
        place.write_folder("model", OLD)

        def fail(_: Path) -> bytes:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "read_bytes", fail)
        for read in (lambda: place.read_folder("model"), lambda: place.read(f"model/{MANIFEST}")):
            with pytest.raises(OSError, match=rf"{os.strerror(code)}: '{tmp_path}/model/{MANIFEST}'"):
                read()

    def test_what_is_written_is_synced_before_it_appears_and_its_folder_after(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[str] = []
        sync = os.fsync

        def note(descriptor: int) -> None:
            name = Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path.resolve()).as_posix()
            steps.append(f"{re.sub('-[0-9a-f]{16}', '', name)} {(tmp_path / 'run/file').exists()}")
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        LocalStorage(tmp_path / "run").write("file", b"x")
        assert steps == [". False", "run/.partial-file False", "run True"]

    def test_a_link_whose_answer_is_lost_counts_as_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        link = os.link

        def forgetful(source: Path, target: Path) -> None:
            link(source, target)
            link(source, target)  # as NFS asks again

        monkeypatch.setattr(os, "link", forgetful)
        assert LocalStorage(tmp_path).create("lease", b"x")
        assert not LocalStorage(tmp_path).create("lease", b"x")
