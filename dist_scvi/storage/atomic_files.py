"""Files and folders on a disk that are complete or absent: checkpoints, models, run records.

The files of a folder are written to a temporary one and synced, with a manifest of their sizes and SHA-256 last. One
rename makes all of them valid. Names of temporary files begin with a dot.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_scvi.storage.folder_manifest import (
    MANIFEST,
    DamagedFolderError,
    IncompleteFolderError,
    check_content,
    check_manifest_size,
    check_size,
    listed_files,
    manifest_of,
)


def write_folder(path: Path, files: Mapping[str, bytes], *, prefix: str = "") -> None:
    """Write `files` to the folder `path`, in place of those that an earlier call wrote; all other files stay.

    At any time `read_folder` returns all of the new files or all of the previous ones. The files are replaced, not the
    folder: it may be the working directory of a shell, a mount point, or in a read-only folder.

    Parameters
    ----------
    files
        Content by name.
    prefix
        Prefix of the file names on disk, the manifest included, so that several models share a folder.

    Raises
    ------
    OSError
        If the disk is full, fails or may not be written; the path is named.
    """
    manifest = manifest_of(files)
    _make_folder(path.parent)
    _restore_renamed(path)
    fresh = not path.exists()
    if not fresh:
        _finish_replacement(path, prefix)  # complete a call that was killed
    partial = path.with_name(f".partial-{path.name}") if fresh else path / f".partial-{prefix}"
    file_prefix = prefix if fresh else ""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, content in {**files, MANIFEST: manifest}.items():
            _write_synced(partial / f"{file_prefix}{name}", content)
        # Files, then their folder, then the rename: otherwise a loss of power may leave the new name without content.
        sync_folder(partial)
        partial.rename(path if fresh else path / _replacement(prefix))  # from here on the new files are valid
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the space
        raise
    if fresh:
        sync_folder(path.parent)
    else:
        sync_folder(path)
        _finish_replacement(path, prefix)


def check_no_foreign_files(path: Path, names: Iterable[str], *, prefix: str = "") -> None:
    """Refuse to replace files that `write_folder` did not write.

    Parameters
    ----------
    names
        Names of the files to be written.

    Raises
    ------
    FileExistsError
        If one of them, or the manifest, exists in `path` and is not named by a manifest there, or `path` is a file.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: a folder is needed")
    written = written_names(path, prefix=prefix)
    on_disk = [f"{prefix}{name}" for name in (*names, MANIFEST) if name not in written]
    foreign = [name for name in on_disk if (path / name).exists()]
    if foreign:
        raise FileExistsError(
            f"{path} holds {', '.join(foreign)} of something else: move it, or choose another folder or prefix"
        )


def written_names(path: Path, *, prefix: str = "") -> set[str]:
    """Return the names, without `prefix`, of the files that `write_folder` wrote; none without a valid manifest."""
    manifest = _place_of(path, MANIFEST, prefix)
    listed = _listed_in(manifest)
    return {*listed, MANIFEST} if listed else set()


def remove_written(path: Path, *, prefix: str = "") -> None:
    """Remove from `path` the files that `write_folder` wrote there; other files stay."""
    _finish_replacement(path, prefix)
    for name in sorted(written_names(path, prefix=prefix), key=lambda name: name != MANIFEST):  # the manifest first
        (path / f"{prefix}{name}").unlink(missing_ok=True)


def _finish_replacement(path: Path, prefix: str) -> None:
    """Move files that are valid already to their final places; after a crash, another call continues."""
    new = path / _replacement(prefix)
    if not new.exists():
        return
    with suppress(FileNotFoundError, DamagedFolderError):  # without a manifest, all files were moved
        names = listed_files(str(new), read_file(new / MANIFEST))
        replaced = _listed_in(path / f"{prefix}{MANIFEST}")
        for name in replaced - names.keys():
            (path / f"{prefix}{name}").unlink(missing_ok=True)
        for name in names:
            with suppress(FileNotFoundError):  # moved before the crash
                (new / name).replace(path / f"{prefix}{name}")
        sync_folder(path)  # after a loss of power, the manifest must not exist without its files
        (new / MANIFEST).replace(path / f"{prefix}{MANIFEST}")
        sync_folder(path)
    shutil.rmtree(new)


def _listed_in(manifest: Path) -> set[str]:
    try:
        return set(listed_files(str(manifest.parent), read_file(manifest)))
    except (FileNotFoundError, DamagedFolderError):
        return set()


def _replacement(prefix: str) -> str:
    return f".replacement-{prefix}"


def _place_of(path: Path, name: str, prefix: str) -> Path:
    """Return the path of a file of a folder: its final one, or after a crash that from which it was not yet moved."""
    not_moved = path / _replacement(prefix) / name
    return not_moved if not_moved.exists() else path / f"{prefix}{name}"


def read_folder(path: Path, *, prefix: str = "") -> dict[str, bytes]:
    """Read the files that `write_folder` wrote to `path`, and check them against the manifest.

    Raises
    ------
    DamagedFolderError
        If a file is missing, longer, shorter or changed, or the manifest is invalid; `IncompleteFolderError` if there
        is none.
    OSError
        If the disk fails or may not be read.
    """
    path = resolve_replaced(path)
    manifest_path = _place_of(path, MANIFEST, prefix)
    try:
        check_manifest_size(str(path), manifest_path.stat().st_size)
        manifest = read_file(manifest_path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IncompleteFolderError(f"{path} has no {prefix}{MANIFEST}: it is incomplete") from error
    listed = listed_files(str(path), manifest)
    return {name: _read_checked(_place_of(path, name, prefix), *entry) for name, entry in listed.items()}


def _restore_renamed(path: Path) -> None:
    """Undo a crash between two renames, which leaves the content of `path` under another name."""
    old = _old(path)
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def resolve_replaced(path: Path) -> Path:
    """Return the path of the content of a folder: its own, or another one after a crash between two renames."""
    return path if path.exists() or not _old(path).exists() else _old(path)


def names_in(path: Path) -> list[str]:
    """Return the names of the files and folders directly in `path`, sorted; none if there is no such folder."""
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
                raise OSError(errno.EINVAL, "is not a regular file", str(path))
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
    """Create a file, whole or not at all; return False if it exists. Of several simultaneous calls one succeeds.

    Raises
    ------
    OSError
        As `write_file`, and on a disk without hard links.
    """
    # `open` with O_EXCL would create the name before its content, and a rename would replace an existing file.
    with _partial_file(path, content) as partial:
        with suppress(FileExistsError):
            os.link(partial, path)
        made = partial.stat().st_nlink > 1  # not the result of `link`: NFS may lose the reply of a successful one
        sync_folder(path.parent)
    return made


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists. A folder counts as incomplete from the start.

    Raises
    ------
    OSError
        If the disk fails or may not be written.
    """
    if path.is_dir() or _old(path).exists():
        for folder in (_old(path), path):  # in this order, or the removed content would be valid again
            if folder.exists():
                _finish_replacement(folder, "")  # or its manifest would still be valid
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
    aside = _old(new)
    if new.exists():  # else `aside`, from a crash between the two renames, is the only copy
        shutil.rmtree(aside, ignore_errors=True)
        new.rename(aside)
    found.rename(new)
    sync_folder(new.parent)
    shutil.rmtree(aside, ignore_errors=True)
    sync_folder(old.parent)


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Add `path` to errors of the disk that do not name a file."""
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
    """Write `content` to a synced file next to `path`, and remove it at the end if it still exists."""
    # In the same folder: a rename or a link works only within a file system.
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
    """Flush a folder or a file to the disk, so that it survives a loss of power.

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
