"""The manifest of a folder: which files belong to it, with their sizes and SHA-256."""

import hashlib
import json
from collections.abc import Mapping

from dist_scvi.loaders.arrays.bounded_json import Budget, check_bytes, parse_json_object

MANIFEST = "MANIFEST.json"
_FORMAT = "dist_scvi.folder/1"
_BUDGET = Budget(max_bytes=1 << 24, max_depth=4)


class DamagedFolderError(ValueError):
    """A folder whose files differ from its manifest. Resuming catches it to use an older checkpoint."""


class IncompleteFolderError(DamagedFolderError):
    """A folder without a manifest: it is being written, or its writer was killed."""


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    """Return the manifest of files, with their sizes and SHA-256."""
    listed = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in files.items()}
    return json.dumps({"format": _FORMAT, "files": listed}, indent=1).encode()


def listed_files(folder: str, manifest: bytes) -> dict[str, tuple[int, str]]:
    """Return the size and SHA-256 of each file that the manifest of `folder` names.

    Raises
    ------
    DamagedFolderError
        If it is not a manifest of this package, or names a file outside the folder.
    """
    where = f"{folder}/{MANIFEST}"
    try:
        found = parse_json_object(manifest, where, _BUDGET)
    except ValueError as error:
        raise DamagedFolderError(str(error)) from error
    written_as, files = found.get("format"), found.get("files")
    if written_as != _FORMAT and isinstance(written_as, str):
        raise DamagedFolderError(f"{where} has format {written_as!r:.80}: {_FORMAT!r} is needed, use a newer version")
    if written_as != _FORMAT or not isinstance(files, dict):
        raise DamagedFolderError(f"{where} is not a manifest of {_FORMAT!r}: it is damaged")
    return {name: _entry(where, name, entry) for name, entry in files.items()}


def _entry(where: str, name: str, entry: object) -> tuple[int, str]:
    if name in ("", ".", "..") or not name.isprintable() or "/" in name or "\\" in name:
        raise DamagedFolderError(f"{where} names {name!r:.80}: only plain file names are allowed")
    size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if type(size) is not int or not isinstance(digest, str):
        raise DamagedFolderError(f"{where} does not hold the size and SHA-256 of {name!r:.80}: it is damaged")
    return size, digest


def check_manifest_size(folder: str, size: int) -> None:
    """Refuse a manifest that is too long, before it is read.

    Raises
    ------
    DamagedFolderError
        If it is too long.
    """
    try:
        check_bytes(size, f"{folder}/{MANIFEST}", _BUDGET)
    except ValueError as error:
        raise DamagedFolderError(str(error)) from error


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


def _sha256(content: bytes | bytearray) -> str:
    return hashlib.sha256(content).hexdigest()
