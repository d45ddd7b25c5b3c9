"""A folder is all there or not there: no damage passes, and no crash leaves half of it."""

import json
import os
from pathlib import Path

import pytest

from dist_scvi.storage.atomic_files import (
    check_no_foreign_files,
    read_folder,
    remove_written,
    write_folder,
    written_names,
)
from dist_scvi.storage.folder_manifest import MANIFEST, DamagedFolderError, IncompleteFolderError

OLD = {"weights.bin": bytes(range(48)), "spec.json": b'{"old": 1}'}
NEW = {"weights.bin": bytes(range(200, 148, -1)), "spec.json": b'{"new": 2}'}


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
    found = r"is not valid JSON|holds a JSON list|is not a manifest|has format 'x'"
    with pytest.raises(DamagedFolderError, match=rf"model/MANIFEST\.json ({found})"):
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
    with pytest.raises(DamagedFolderError, match=r"MANIFEST\.json does not hold the size and SHA-256 of"):
        read_folder(folder)


def test_a_folder_with_other_things_is_written_into_and_they_stay(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "umap.png").write_text("mine")
    inode = folder.stat().st_ino
    for files in (OLD, NEW, {"other.bin": b""}, OLD):
        write_folder(folder, files)
        assert read_folder(folder) == files
        assert {entry.name for entry in folder.iterdir()} == {"figures", MANIFEST, *files}
        assert (folder / "figures" / "umap.png").read_text() == "mine"
    assert folder.stat().st_ino == inode  # a shell in it goes on
    remove_written(folder)
    assert [entry.name for entry in folder.iterdir()] == ["figures"]


def test_folders_of_two_prefixes_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_folder(folder, OLD, prefix="a_")
    write_folder(folder, NEW, prefix="b_")
    write_folder(folder, {"weights.bin": b"x"}, prefix="a_")
    assert read_folder(folder, prefix="a_") == {"weights.bin": b"x"}
    assert read_folder(folder, prefix="b_") == NEW
    assert written_names(folder, prefix="b_") == {*NEW, MANIFEST}
    with pytest.raises(IncompleteFolderError, match=r"models has no MANIFEST\.json"):
        read_folder(folder)
    remove_written(folder, prefix="a_")
    assert {entry.name for entry in folder.iterdir()} == {f"b_{name}" for name in (*NEW, MANIFEST)}


def test_a_file_that_was_not_written_here_is_not_replaced_unseen(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    check_no_foreign_files(folder, OLD)  # there is no folder yet
    folder.mkdir()
    (folder / "spec.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"results holds spec\.json of something else: move it, or"):
        check_no_foreign_files(folder, OLD)
    check_no_foreign_files(folder, OLD, prefix="m_")
    (folder / "spec.json").unlink()
    write_folder(folder, OLD)
    check_no_foreign_files(folder, OLD)
    (folder / MANIFEST).write_text("{}")  # of another program, or damaged: what belongs to it is not known
    with pytest.raises(FileExistsError, match=r"holds weights\.bin, spec\.json, MANIFEST\.json of something else"):
        check_no_foreign_files(folder, OLD)
    with pytest.raises(FileExistsError, match=r"is a file: a folder is needed$"):
        check_no_foreign_files(folder / "spec.json", OLD)


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
