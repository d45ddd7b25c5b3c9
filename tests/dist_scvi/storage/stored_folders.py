"""Two folders that replace each other in tests of storage."""

from dist_scvi.storage.folder_manifest import IncompleteFolderError
from dist_scvi.storage.run_storage import RunStorage

OLD = {"weights.bin": bytes(range(48)), "spec.json": b'{"old": 1}', "gone.json": b""}
NEW = {"weights.bin": bytes(range(200, 148, -1)), "spec.json": b'{"new": 2}'}


def folder_or_none(place: RunStorage, name: str) -> dict[str, bytes] | None:
    """Read a folder, which may be absent or incomplete, but not damaged."""
    try:
        return place.read_folder(name)
    except (FileNotFoundError, IncompleteFolderError):
        return None
