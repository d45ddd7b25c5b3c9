"""Verify a minified atlas: read every byte of it and compare it with the manifest."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dist_scvi.atlas.store.atlas_store import AtlasStore
from dist_scvi.atlas.store.manifest import read_manifest
from dist_scvi.atlas.store.names import MANIFEST
from dist_scvi.atlas.store.raw_arrays import CheckedFiles
from dist_scvi.loaders.arrays.remote import open_objects
from dist_scvi.storage.atomic_files import resolve_replaced

_MOST_PROBLEMS = 20


def verify_atlas(
    path: str | Path,
    *,
    storage_options: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Read a whole atlas and return a line for each problem; an empty list if it is intact.

    Parameters
    ----------
    on_progress
        Called with the number of bytes read so far and in total.

    Raises
    ------
    FileNotFoundError
        If there is no atlas.
    OSError
        If the disk or storage fails.
    """
    uri = str(path) if "://" in str(path) else str(Path(path).expanduser().resolve())
    if "://" not in uri and not resolve_replaced(Path(uri)).is_dir():
        raise FileNotFoundError(f"there is no minified atlas {uri}")
    try:
        atlas = AtlasStore(uri, storage_options=storage_options)
    except ValueError as error:
        return [str(error)]
    if atlas.format == 1:
        return _verify_first_format(atlas)
    objects = open_objects(uri if "://" in uri else resolve_replaced(Path(uri)), storage_options=storage_options)
    manifest = read_manifest(bytes(objects.read_whole(MANIFEST)), uri)
    files, problems, done = CheckedFiles(objects, manifest.files), [], 0
    total = sum(size for size, _ in manifest.files.values())
    for name, (size, _) in sorted(manifest.files.items()):
        try:
            files.read_whole(name)
        except ValueError as error:
            problems.append(str(error))
        done += size
        if on_progress is not None:
            on_progress(done, total)
        if len(problems) == _MOST_PROBLEMS:
            return [*problems, "more was not looked at"]
    return problems or _disagreements(atlas)


def _disagreements(atlas: AtlasStore) -> list[str]:
    """Compare the parts of an atlas with each other, after its files were found intact."""
    assert atlas.leaves is not None
    assert atlas.neighbourhoods is not None
    found = {
        "cells of all leaves": int(atlas.leaves.n_cells.sum()),
        "cells of all neighbourhoods": int(atlas.neighbourhoods.offsets[-1]),
    }
    problems = [
        f"{atlas.uri} disagrees with itself: {what} are {number}, there are {atlas.n_cells}"
        for what, number in found.items()
        if number != atlas.n_cells
    ]
    counted_l = np.zeros(atlas.leaves.n_leaves, dtype=np.int64)
    for rows in atlas.chunks():
        leaf_n = atlas.read_leaf(rows)
        assert leaf_n is not None
        counted_l += np.bincount(leaf_n, minlength=len(counted_l))[: len(counted_l)]
    if not np.array_equal(counted_l, atlas.leaves.n_cells):
        problems.append(f"{atlas.uri} disagrees with itself: the leaves of its cells are not those of its table")
    return problems


def _verify_first_format(atlas: AtlasStore) -> list[str]:
    """Read every chunk of an atlas of format 1, whose checksums are in the chunks."""
    try:
        for rows in atlas.chunks():
            atlas.read_cells(rows)
            atlas.read_library(rows)
            atlas.obs.names(rows)
            for key in atlas.obs.columns():
                (atlas.obs.codes if atlas.obs.kind(key) == "categorical" else atlas.obs.values)(key, rows)
    except ValueError as error:
        return [str(error)]
    return []
