"""A folder is all there or not there: no damage passes, and no crash leaves half of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dist_scvi.storage.atomic_files import (
    MANIFEST,
    DamagedFolderError,
    IncompleteFolderError,
    read_folder,
    write_folder,
)

OLD = {"weights.bin": bytes(range(48)), "spec.json": b'{"old": 1}'}
NEW = {"weights.bin": bytes(range(200, 148, -1)), "spec.json": b'{"new": 2}'}

# Replaces a folder and kills itself just before operation number `at` on the file system, if there are so many.
KILLED = """
import os, signal, sys
from pathlib import Path
from dist_scvi.storage.atomic_files import write_folder
path, at, count = Path(sys.argv[1]), int(sys.argv[2]), 0
new = {"weights.bin": bytes(range(200, 148, -1)), "spec.json": b'{"new": 2}'}
def boundary(event="fsync", _=None):
    global count
    if event in ("fsync", "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
fsync = os.fsync
os.fsync = lambda descriptor: (boundary(), fsync(descriptor))
sys.addaudithook(boundary)
write_folder(path, new)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "model"
    write_folder(path, OLD)
    return path


def files_beside(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def test_what_is_written_reads_back(folder: Path) -> None:
    assert read_folder(folder) == OLD
    assert files_beside(folder) == {"model"}


def test_a_folder_is_replaced_as_a_whole(folder: Path) -> None:
    write_folder(folder, {"other.bin": b""})
    assert read_folder(folder) == {"other.bin": b""}
    assert {entry.name for entry in folder.iterdir()} == {"other.bin", MANIFEST}
    assert files_beside(folder) == {"model"}


@pytest.mark.parametrize("name", OLD)
@pytest.mark.parametrize("mask", [1, 0x80, 0xFF])
def test_every_flipped_byte_of_a_file_is_refused(folder: Path, name: str, mask: int) -> None:
    for at in range(len(OLD[name])):
        content = bytearray(OLD[name])
        content[at] ^= mask
        (folder / name).write_bytes(content)
        with pytest.raises(DamagedFolderError, match=rf"{name} has changed: its SHA-256"):
            read_folder(folder)


@pytest.mark.parametrize("mask", [1, 2, 4, 0x20, 0x57, 0x80, 0xFF])
def test_a_flipped_byte_of_the_manifest_is_refused_or_changes_nothing(folder: Path, mask: int) -> None:
    good = (folder / MANIFEST).read_bytes()
    for at in range(len(good)):
        content = bytearray(good)
        content[at] ^= mask
        (folder / MANIFEST).write_bytes(content)
        try:
            assert read_folder(folder) == OLD  # white space, for instance
        except DamagedFolderError as error:
            assert str(folder) in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize("name", OLD)
def test_a_truncated_longer_or_missing_file_is_refused(folder: Path, name: str) -> None:
    for content in (OLD[name][:-1], b"", OLD[name] + b"\0"):
        (folder / name).write_bytes(content)
        with pytest.raises(DamagedFolderError, match=rf"{name} has {len(content)} bytes, the manifest says"):
            read_folder(folder)
    (folder / name).unlink()
    with pytest.raises(DamagedFolderError, match=rf"{name} cannot be read"):
        read_folder(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": "x"}', b'{"files": {}}', b"\xff"])
def test_a_manifest_that_is_none_of_ours_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedFolderError, match=r"model/MANIFEST\.json is none of ours \(.*\): it is damaged$"):
        read_folder(folder)


def test_a_missing_folder_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(IncompleteFolderError, match=r"nothing has no MANIFEST\.json: it is incomplete$"):
        read_folder(tmp_path / "nothing")


def test_only_a_folder_without_manifest_may_still_be_being_written(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"[]")
    with pytest.raises(DamagedFolderError) as damaged:
        read_folder(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(IncompleteFolderError):
        read_folder(folder)
    assert not isinstance(damaged.value, IncompleteFolderError)


def test_a_folder_that_a_crash_left_aside_is_read_until_there_is_a_new_one(folder: Path) -> None:
    folder.rename(folder.with_name(".old-model"))
    assert read_folder(folder) == OLD
    write_folder(folder, NEW)
    assert read_folder(folder) == NEW


def test_a_manifest_of_another_format_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text()) | {"format": "dist_scvi.folder/2"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedFolderError, match=r"has format 'dist_scvi\.folder/2': 'dist_scvi\.folder/1' is needed"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", ""])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("x")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "00"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedFolderError, match=r"names '.*': only plain file names are allowed"):
        read_folder(folder)


def test_a_size_beyond_all_bounds_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"bytes": 48', '"bytes": 4e999'))
    with pytest.raises(DamagedFolderError, match=r"MANIFEST\.json is none of ours"):
        read_folder(folder)


def test_killed_at_any_instant_the_old_or_the_new_files_are_whole(tmp_path: Path) -> None:
    aside = 0
    for at in range(100):
        path = tmp_path / str(at) / "model"
        write_folder(path, OLD)
        killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(at)], check=False).returncode
        assert read_folder(path) in (OLD, NEW)
        aside += not path.exists()
        write_folder(path, NEW)
        assert read_folder(path) == NEW
        assert files_beside(path) == {"model"}
        if killed == 0:
            break
    assert killed == 0
    assert at > 12
    assert aside == 1  # and read all the same


def test_killed_twice_the_old_files_are_still_there(tmp_path: Path) -> None:
    for at in range(100):
        path = tmp_path / str(at) / "model"
        write_folder(path.with_name(".old-model"), OLD)  # what a kill between the two renames leaves
        shutil.rmtree(path, ignore_errors=True)
        killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(at)], check=False).returncode
        assert read_folder(path) in (OLD, NEW)
        if killed == 0:
            break
    assert killed == 0


def test_a_full_disk_leaves_the_old_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_folder(folder, NEW)
    assert read_folder(folder) == OLD
    assert files_beside(folder) == {"model"}
    write_folder(folder, NEW)
    assert read_folder(folder) == NEW
    assert files_beside(folder) == {"model"}
