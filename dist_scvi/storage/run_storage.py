"""The storage of a run: a folder on a disk or in object storage, in which everything is complete or absent."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dist_scvi.loaders.arrays.remote import RemoteObjects
from dist_scvi.storage import atomic_files
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

_SCHEMES = ("s3", "gs")
_PART_BYTES = 1 << 26
"""Bytes per request, so that the time limit of a request does not depend on the size of the file."""


class RunStorage(Protocol):
    """A folder, on a disk or in object storage; names are relative, with slashes, and no part begins with a dot.

    The empty name is the folder itself. All methods may be called from many threads. If the disk or the storage fails,
    they raise an `OSError` that names the file or object.
    """

    @property
    def uri(self) -> str:
        """Path or URL."""
        ...

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises
        ------
        FileNotFoundError
            If it is absent.
        """
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file, whole or not at all."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Create a file, whole or not at all; return False if it exists.

        Of several simultaneous calls, on any number of hosts, one succeeds. Their contents must differ: if a reply of
        the storage is lost, the content decides which one did.
        """
        ...

    def names(self, name: str = "") -> list[str]:
        """Return the names of the files and folders directly in a folder, sorted; none if there is no such folder."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it, if it exists. The folder counts as incomplete from the start."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Rename a folder, in place of one that has the new name.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        ...

    def write_folder(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write files to a folder, in place of those that an earlier call wrote; other files stay.

        The folder is complete or counts as incomplete.
        """
        ...

    def read_folder(self, name: str) -> dict[str, bytes]:
        """Read a folder of files and check them against its manifest.

        Raises
        ------
        FileNotFoundError
            If it is absent.
        IncompleteFolderError
            If it has no manifest: it is being written, or its writer was killed.
        DamagedFolderError
            If a file is missing, longer, shorter or changed, or the manifest is invalid.
        """
        ...

    def subfolder(self, name: str) -> "RunStorage":
        """Return a folder below this one, which need not exist."""
        ...


def open_run_storage(uri: str | Path | RunStorage, *, storage_options: Mapping[str, str] | None = None) -> RunStorage:
    """Open a local folder or a URL (``s3://bucket/folder``, ``gs://bucket/folder``), which need not exist.

    Parameters
    ----------
    uri
        The folder; an open one is returned as it is.
    storage_options
        Options of a URL; see `dist_scvi.loaders.arrays.remote.RemoteObjects`.

    Raises
    ------
    ValueError
        If the URL is of another kind, or an option is unknown.
    """
    if not isinstance(uri, (str, Path)):
        return uri
    scheme, found, _ = str(uri).partition("://")
    if not found:
        return LocalStorage(Path(uri))
    if scheme not in _SCHEMES:
        raise ValueError(f"{uri} cannot be written: a local path or a URL of {', '.join(_SCHEMES)} is needed (run)")
    return ObjectStorage(RemoteObjects(str(uri), storage_options=storage_options))


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """The folder `path` on a disk; see `RunStorage`."""

    path: Path

    @property
    def uri(self) -> str:
        """The path."""
        return str(self.path)

    def read(self, name: str) -> bytes:
        """Read a file; see `RunStorage`."""
        return atomic_files.read_file(self._of(name))

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file; see `RunStorage`."""
        atomic_files.write_file(self._of(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file if there is none, by a hard link; see `RunStorage`."""
        return atomic_files.create_file(self._of(name), content)

    def names(self, name: str = "") -> list[str]:
        """Return the names in a folder; see `RunStorage`."""
        return atomic_files.names_in(self._of(name))

    def remove(self, name: str) -> None:
        """Remove a file or a folder; see `RunStorage`."""
        atomic_files.remove(self._of(name))

    def rename(self, old: str, new: str) -> None:
        """Rename a folder; see `RunStorage`."""
        atomic_files.rename(self._of(old), self._of(new))

    def write_folder(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write files to a folder; see `RunStorage`."""
        atomic_files.write_folder(self._of(name), files)

    def read_folder(self, name: str) -> dict[str, bytes]:
        """Read a folder and check it; see `RunStorage`."""
        path = self._of(name)
        if not atomic_files.resolve_replaced(path).exists():
            raise FileNotFoundError(f"{path} does not exist")
        return atomic_files.read_folder(path)

    def subfolder(self, name: str) -> "LocalStorage":
        """Return a folder below this one; see `RunStorage`."""
        return LocalStorage(self._of(name))

    def _of(self, name: str) -> Path:
        _check_name(name)
        return self.path / name


@dataclass(frozen=True, slots=True)
class ObjectStorage:
    """The objects in object storage whose keys begin with `prefix`; see `RunStorage`.

    Object storage has no rename: a folder of files is complete once its manifest exists, which is written last and
    deleted first. A folder that is being replaced, or whose writer was killed, is incomplete. A folder that is being
    renamed is complete under one of both names.
    """

    objects: RemoteObjects
    prefix: str = ""

    @property
    def uri(self) -> str:
        """The URL."""
        return f"{self.objects.uri}/{self.prefix}".rstrip("/")

    def read(self, name: str) -> bytes:
        """Read an object; see `RunStorage`."""
        return bytes(self.objects.read_whole(self._key(name)))

    def write(self, name: str, content: bytes) -> None:
        """Write or replace an object; see `RunStorage`."""
        self.objects.write(self._key(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object if there is none, by a conditional request; see `RunStorage`."""
        return self.objects.create(self._key(name), content)

    def names(self, name: str = "") -> list[str]:
        """Return the names in a folder; see `RunStorage`."""
        return self.objects.names(self._key(name))

    def remove(self, name: str) -> None:
        """Delete an object, or all in a folder; see `RunStorage`."""
        key = self._key(name)
        if not self._emptied(key) and key:
            self.objects.delete(key)

    def rename(self, old: str, new: str) -> None:
        """Copy a folder, then delete it; see `RunStorage`."""
        begin, to = self._key(old), self._key(new)
        # The manifest is copied last and deleted first, so that a kill never leaves it without its files.
        found = sorted(self.objects.keys(begin), key=_is_manifest)
        if not found:
            raise FileNotFoundError(f"{self.objects.uri}/{begin} does not exist")
        self._emptied(to)
        for key in found:
            self.objects.copy(key, to + key.removeprefix(begin))
        self._emptied(begin)

    def write_folder(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write files to a folder, its manifest last; see `RunStorage`."""
        key = self._key(name)
        replaced = self._listed(key)
        self.objects.delete(_below(key, MANIFEST))  # before all else: from here on the folder is incomplete
        for file in replaced - files.keys():
            self.objects.delete(_below(key, file))
        for file, content in {**files, MANIFEST: manifest_of(files)}.items():
            self.objects.write(_below(key, file), content)

    def read_folder(self, name: str) -> dict[str, bytes]:
        """Read a folder and check it; see `RunStorage`."""
        key, where = self._key(name), self.subfolder(name).uri
        size = self.objects.size(_below(key, MANIFEST))
        if size is None:
            if self.names(name):
                raise IncompleteFolderError(f"{where} has no {MANIFEST}: it is incomplete")
            raise FileNotFoundError(f"{where} does not exist")
        check_manifest_size(where, size)
        listed = listed_files(where, bytes(self.objects.read_whole(_below(key, MANIFEST))))
        for file, (file_size, _) in listed.items():
            check_size(f"{where}/{file}", self.objects.size(_below(key, file)), file_size)
        return {file: _read_checked(self.objects, _below(key, file), *entry) for file, entry in listed.items()}

    def subfolder(self, name: str) -> "ObjectStorage":
        """Return a folder below this one; see `RunStorage`."""
        return ObjectStorage(self.objects, self._key(name))

    def _listed(self, folder_key: str) -> set[str]:
        """Return the names in the manifest of a folder; none without a valid manifest."""
        try:
            size = self.objects.size(_below(folder_key, MANIFEST))
            check_manifest_size(folder_key, size or 0)
            return set(listed_files(folder_key, bytes(self.objects.read_whole(_below(folder_key, MANIFEST)))))
        except (FileNotFoundError, DamagedFolderError):
            return set()

    def _emptied(self, folder_key: str) -> bool:
        """Delete all objects of a folder, its manifest first, and return whether there were any."""
        found = sorted(self.objects.keys(folder_key), key=_is_manifest, reverse=True)
        for key in found:
            self.objects.delete(key)
        return bool(found)

    def _key(self, name: str) -> str:
        _check_name(name)
        return _below(self.prefix, name)


def _read_checked(objects: RemoteObjects, key: str, size: int, digest: str) -> bytes:
    where, content = f"{objects.uri}/{key}", bytearray(size)
    try:
        for start in range(0, size, _PART_BYTES):
            part = objects.read(key, start, min(_PART_BYTES, size - start))
            content[start : start + len(part)] = part
    except (FileNotFoundError, ValueError) as error:
        raise DamagedFolderError(f"{where} cannot be read: {error}") from error
    check_content(where, content, digest)
    return bytes(content)


def _below(folder_key: str, name: str) -> str:
    return "/".join(part for part in (folder_key, name) if part)


def _is_manifest(key: str) -> bool:
    return key.rpartition("/")[2] == MANIFEST


def _check_name(name: str) -> None:
    if name and any(part == "" or part.startswith(".") for part in name.split("/")):
        raise ValueError(
            f"{name!r} is not a name in a run folder: a relative name with slashes is needed, no part of it empty or "
            "beginning with a dot"
        )
