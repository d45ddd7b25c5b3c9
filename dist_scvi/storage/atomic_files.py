"""Files and folders on a disk that are complete or absent: checkpoints, models, whatever must never be half there.

The files of a folder are written to a temporary one and synced, a manifest with their sizes and SHA-256 comes last, and
one rename makes all of it appear. Names that begin with a dot are those of temporary files.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

MANIFEST = "MANIFEST.json"
_FORMAT = "dist_scvi.folder/1"
_MANIFEST_BYTES = 1 << 24
"""No manifest of ours is longer."""


class DamagedFolderError(ValueError):
    """A folder whose files are not those its manifest names. Resume catches it to fall back on an older checkpoint."""


class IncompleteFolderError(DamagedFolderError):
    """A folder without manifest: it is being written just now, or its writer was killed."""


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` to the new folder `path`, or replace the folder that is there.

    Whatever happens in between, `read_folder` afterwards gives all of the new files, or what it gave before: while an
    old folder is being replaced it lies for an instant beside `path`, under the name ``.old-NAME``.

    Raises
    ------
    OSError
        If the disk is full, fails or may not be written; the path is named.
    """
    manifest = manifest_of(files)
    _make_folder(path.parent)
    partial = path.with_name(f".partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, content in files.items():
            _write_synced(partial / name, content)
        _write_synced(partial / MANIFEST, manifest)
        sync_folder(partial)
        replace_folder(partial, path)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
        raise


def replace_folder(partial: Path, path: Path) -> None:
    """Rename the finished folder `partial` to `path`, moving an older one out of the way first."""
    old = _old(path)
    if path.exists():  # else `old`, left by a crash between the two renames, is all there is
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    partial.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_folder(path: Path) -> dict[str, bytes]:
    """Read all files of `path` and check them against the manifest.

    Raises
    ------
    DamagedFolderError
        If a file is missing, longer, shorter or changed, or the manifest is not one of ours; `IncompleteFolderError` if
        there is none.
    OSError
        If the disk fails or may not be read.
    """
    path = resolve_replaced(path)
    try:
        check_manifest_size(str(path), (path / MANIFEST).stat().st_size)
        manifest = read_file(path / MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IncompleteFolderError(f"{path} has no {MANIFEST}: it is incomplete") from error
    listed = listed_files(str(path), manifest)
    return {name: _read_checked(path / name, *entry) for name, entry in listed.items()}


def resolve_replaced(path: Path) -> Path:
    """Give where the content of a folder lies: in itself, or beside it after a crash between the two renames."""
    return path if path.exists() or not _old(path).exists() else _old(path)


def names_in(path: Path) -> list[str]:
    """Name the files and folders right below `path`, in order; none if there is no such folder."""
    try:
        found = [entry.name.removeprefix(_OLD) for entry in path.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted({name for name in found if not name.startswith(".")})


def read_file(path: Path) -> bytes:
    """Read a file.

    Raises
    ------
    FileNotFoundError
        If it is absent.
    OSError
        If the disk fails or may not be read; the path is named.
    """
    try:
        with add_path_to_errors(path):
            if not stat.S_ISREG(path.stat().st_mode):  # a device or a pipe may have no end
                raise OSError(errno.EINVAL, "is no file", str(path))
            return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist") from None


def write_file(path: Path, content: bytes) -> None:
    """Write or replace a file, whole or not at all.

    Raises
    ------
    OSError
        If the disk is full, fails or may not be written; the path is named.
    """
    with _partial_file(path, content) as partial:
        partial.replace(path)
        sync_folder(path.parent)


def create_file(path: Path, content: bytes) -> bool:
    """Write a file if there is none, whole or not at all; False if there is one. Of many that try at once one does.

    Raises
    ------
    OSError
        As `write_file`, and on a disk without hard links.
    """
    with _partial_file(path, content) as partial:
        with suppress(FileExistsError):
            os.link(partial, path)
        made = partial.stat().st_nlink > 1  # NFS may lose the answer to a link that it made
        sync_folder(path.parent)
    return made


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there. A folder counts as incomplete from the first instant on.

    Raises
    ------
    OSError
        If the disk fails or may not be written.
    """
    if path.is_dir() or _old(path).exists():
        for folder in (_old(path), path):  # in this order, or what is removed would stand again
            if folder.exists():
                (folder / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(folder)
    else:
        with suppress(NotADirectoryError):
            path.unlink(missing_ok=True)


def rename(old: Path, new: Path) -> None:
    """Rename a folder, in place of one that has the new name.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    found = resolve_replaced(old)
    if found == old and old.exists():
        shutil.rmtree(_old(old), ignore_errors=True)
    elif not found.exists():
        raise FileNotFoundError(f"{old} does not exist")
    _make_folder(new.parent)
    replace_folder(found, new)
    sync_folder(old.parent)


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    """Make the manifest of files, with their sizes and SHA-256."""
    listed = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in files.items()}
    return json.dumps({"format": _FORMAT, "files": listed}, indent=1).encode()


def listed_files(folder: str, manifest: bytes) -> dict[str, tuple[int, str]]:
    """Give the size and SHA-256 of each file that the manifest of `folder` names.

    Raises
    ------
    DamagedFolderError
        If it is not one of ours, or names a file elsewhere.
    """
    try:
        found = json.loads(manifest)
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in found["files"].items()}
        written_as = found["format"]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedFolderError(f"{folder}/{MANIFEST} is none of ours ({error!r}): it is damaged") from error
    if written_as != _FORMAT:
        raise DamagedFolderError(
            f"{folder} has format {written_as!r}: {_FORMAT!r} is needed, read it with a newer version"
        )
    for name in listed:
        if name in ("", ".", "..") or not name.isprintable() or "/" in name or "\\" in name:
            raise DamagedFolderError(f"the manifest of {folder} names {name!r}: only plain file names are allowed")
    return listed


def check_manifest_size(folder: str, size: int) -> None:
    """Refuse a manifest that none of ours could be, before it is read.

    Raises
    ------
    DamagedFolderError
        If it is too long.
    """
    if size > _MANIFEST_BYTES:
        raise DamagedFolderError(f"{folder}/{MANIFEST} has {size} bytes, at most {_MANIFEST_BYTES} are allowed")


def check_size(file: str, found: int | None, size: int) -> None:
    """Compare the size of a file with that in the manifest, before it is read.

    Raises
    ------
    DamagedFolderError
        If they differ, or there is no such file.
    """
    if found is None:
        raise DamagedFolderError(f"{file} cannot be read: it is missing")
    if found != size:
        raise DamagedFolderError(f"{file} has {found} bytes, the manifest says {size}: it is truncated or changed")


def check_content(file: str, content: bytes | bytearray, digest: str) -> None:
    """Compare a file with the SHA-256 in the manifest.

    Raises
    ------
    DamagedFolderError
        If they differ.
    """
    if _sha256(content) != digest:
        raise DamagedFolderError(f"{file} has changed: its SHA-256 is not the manifest's")


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Name `path` in errors of the disk that name none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _read_checked(path: Path, size: int, digest: str) -> bytes:
    try:
        check_size(str(path), path.stat().st_size, size)
        content = read_file(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedFolderError(f"{path} cannot be read: {error}") from error
    check_content(str(path), content, digest)
    return content


def _sha256(content: bytes | bytearray) -> str:
    return hashlib.sha256(content).hexdigest()


_OLD = ".old-"


def _old(path: Path) -> Path:
    return path.with_name(f"{_OLD}{path.name}")


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


@contextmanager
def _partial_file(path: Path, content: bytes) -> Iterator[Path]:
    """Write `content` to a synced file beside `path`, which is removed in the end if it is still there."""
    _make_folder(path.parent)
    partial = path.with_name(f".partial-{path.name}-{secrets.token_hex(8)}")
    try:
        _write_synced(partial, content)
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _write_synced(path: Path, content: bytes) -> None:
    with add_path_to_errors(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Bring to the disk which names a folder, or what a file, holds.

    Raises
    ------
    OSError
        If the disk fails; the path is named.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with add_path_to_errors(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
