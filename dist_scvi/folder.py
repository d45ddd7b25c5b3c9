"""A folder of files that is complete or absent: checkpoints, models, and whatever else must never be half there.

Files are written to a temporary folder and synced, a manifest with their sizes and SHA-256 comes last, and one rename
makes all of it appear.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

MANIFEST = "MANIFEST.json"
_FORMAT = "dist_scvi.folder/1"


class DamagedFolderError(ValueError):
    """A folder whose files are not those its manifest names. Resume catches it to fall back on an older checkpoint."""


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` to the new folder `path`, or replace the folder that is there.

    Whatever happens in between, `path` afterwards holds all of the new files, or what it held before, or (only while
    an old folder is being replaced) the old one lies beside it under the name ``.old-NAME``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    listed = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in files.items()}
    for name, content in files.items():
        _write_synced(partial / name, content)
    _write_synced(partial / MANIFEST, json.dumps({"format": _FORMAT, "files": listed}, indent=1).encode())
    _sync_folder(partial)
    put_in_place(partial, path)


def put_in_place(partial: Path, path: Path) -> None:
    """Rename the finished folder `partial` to `path`, moving an older one out of the way first."""
    old = path.with_name(f".old-{path.name}")
    if path.exists():  # else `old`, left by a crash between the two renames, is all there is
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    partial.rename(path)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_folder(path: Path) -> dict[str, bytes]:
    """Read all files of `path` and check them against the manifest.

    Raises
    ------
    DamagedFolderError
        If a file is missing, longer, shorter or changed, or the manifest is not one of ours.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedFolderError(
            f"{path / MANIFEST} is missing or unreadable ({error!r}): {path} is incomplete"
        ) from error
    if found != _FORMAT:
        raise DamagedFolderError(f"{path} has format {found!r}: {_FORMAT!r} is needed, read it with a newer version")
    return {name: _read_checked(path, name, *entry) for name, entry in listed.items()}


def _read_checked(path: Path, name: str, size: int, digest: str) -> bytes:
    if name != Path(name).name or name in ("", ".", ".."):
        raise DamagedFolderError(f"the manifest of {path} names {name!r}: only plain file names are allowed")
    try:
        found = (path / name).stat().st_size
        content = (path / name).read_bytes() if found == size else b""
    except OSError as error:
        raise DamagedFolderError(f"{path / name} cannot be read: {error}") from error
    if found != size:
        raise DamagedFolderError(
            f"{path / name} has {found} bytes, the manifest says {size}: it is truncated or changed"
        )
    if _sha256(content) != digest:
        raise DamagedFolderError(f"{path / name} has changed: its SHA-256 is not the manifest's")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
