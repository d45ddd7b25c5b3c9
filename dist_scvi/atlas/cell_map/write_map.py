"""Make the map of an atlas: UMAP of landmarks, all other cells placed by them in one pass.

Shape letters in this file
    n   cells
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.cell_map.cell_map import (
    BLOCKS,
    COORDINATES,
    MAP,
    MAP_RECORD,
    STEPS,
    CellMap,
    MapRecord,
    open_map,
)
from dist_scvi.atlas.cell_map.landmarks import Landmarks, MapOptions, fit_landmarks
from dist_scvi.atlas.cell_map.place_cells import candidates_of, place_cells
from dist_scvi.atlas.store.atlas_store import AtlasStore
from dist_scvi.storage.run_storage import RunStorage, open_run_storage

log = logging.getLogger(__name__)
BLOCK_ROWS = 4096
CHUNK_ROWS = 1 << 18
"""Rows of a file; a multiple of `BLOCK_ROWS`."""
_MARGIN = 0.02


def write_map(
    atlas: AtlasStore,
    folder: str | Path | None = None,
    options: MapOptions = MapOptions(),  # noqa: B008 - a frozen record
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> CellMap:
    """Make the map of an atlas and open it. No file of the atlas itself is changed.

    Parameters
    ----------
    folder
        Folder or URL to write to, in place of an earlier map; ``map`` in the atlas by default.
    options
        The sample, and the arguments of UMAP.
    on_progress
        Called with the number of cells placed so far, and of all.

    Raises
    ------
    ValueError
        If the atlas is of format 1 or has fewer than 4 cells.
    ImportError
        If umap-learn is not installed.
    OSError
        If the folder cannot be written.
    """
    if atlas.neighbourhoods is None:
        raise ValueError(f"{atlas.uri} has format 1, without neighbourhoods: upgrade_atlas adds them")
    uri = folder or f"{atlas.uri}/{MAP}"
    storage = open_run_storage(uri, storage_options=atlas.storage_options)
    storage.remove(MAP_RECORD)  # the previous map is not valid while its files are replaced
    landmarks = fit_landmarks(atlas, options)
    low, size = _square(landmarks)
    files, bounds = {}, []
    for chunk, steps_n2 in enumerate(_placed(atlas, landmarks, low, size, on_progress)):
        padded_n2 = np.zeros((min(CHUNK_ROWS, atlas.n_cells), 2), dtype="<u2")
        padded_n2[: len(steps_n2)] = steps_n2
        name = f"{COORDINATES}/c/{chunk}/0"
        files[name] = _write(storage, name, padded_n2.tobytes())
        bounds.append(_block_bounds(steps_n2))
    files[f"{BLOCKS}/c/0/0"] = _write(storage, f"{BLOCKS}/c/0/0", np.concatenate(bounds).astype("<u2").tobytes())
    record = MapRecord(
        atlas=atlas.digest,
        n_cells=atlas.n_cells,
        options=asdict(options) | {"n_landmarks": len(landmarks.row_m)},
        low=(float(low[0]), float(low[1])),
        size=size,
        chunk_rows=min(CHUNK_ROWS, atlas.n_cells),
        block_rows=BLOCK_ROWS,
        files=files,
    )
    storage.write(MAP_RECORD, record.model_dump_json(indent=1).encode())
    return open_map(atlas, folder)


def open_or_write_map(
    atlas: AtlasStore,
    options: MapOptions = MapOptions(),  # noqa: B008 - a frozen record
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> CellMap:
    """Open the map of an atlas, or make it; where the atlas cannot be written, in the user's cache folder.

    Raises
    ------
    ValueError, ImportError, OSError
        As `write_map`.
    """
    cached = _cache_folder() / atlas.digest[:32]
    for folder in (None, cached):
        try:
            return open_map(atlas, folder)
        except FileNotFoundError:
            continue
        except ValueError as error:
            log.warning("%s; it is made again", error)
    writable = "://" not in atlas.uri and os.access(atlas.uri, os.W_OK)
    return write_map(atlas, None if writable else cached, options, on_progress=on_progress)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dist_scvi" / "maps"


def _placed(
    atlas: AtlasStore,
    landmarks: Landmarks,
    low: NDArray[np.float64],
    size: float,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[NDArray[np.uint16]]:
    """Yield the coordinates of the rows of one file after the other."""
    assert atlas.neighbourhoods is not None
    offsets = atlas.neighbourhoods.offsets
    candidate_cd = candidates_of(atlas.neighbourhoods.centroids, landmarks)
    for start in range(0, atlas.n_cells, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, atlas.n_cells)
        qzm_nk = atlas.read_latent(slice(start, stop))[0]
        neighbourhood_n = np.searchsorted(offsets, np.arange(start, stop), side="right") - 1
        xy_n2 = place_cells(qzm_nk, neighbourhood_n, candidate_cd, landmarks)
        yield np.rint((xy_n2 - low) * (STEPS / size)).clip(0, STEPS).astype(np.uint16)
        if on_progress is not None:
            on_progress(stop, atlas.n_cells)


def _square(landmarks: Landmarks) -> tuple[NDArray[np.float64], float]:
    """Return the low corner and the size of the square that holds all landmarks, and so all means of them."""
    low, high = landmarks.xy_m2.min(axis=0).astype(np.float64), landmarks.xy_m2.max(axis=0).astype(np.float64)
    size = float((high - low).max()) * (1 + 2 * _MARGIN) or 1.0
    return (low + high - size) / 2, size


def _block_bounds(steps_n2: NDArray[np.uint16]) -> NDArray[np.uint16]:
    starts = np.arange(0, len(steps_n2), BLOCK_ROWS)
    return np.concatenate([np.minimum.reduceat(steps_n2, starts), np.maximum.reduceat(steps_n2, starts)], axis=1)


def _write(storage: RunStorage, name: str, content: bytes) -> tuple[int, str]:
    storage.write(name, content)
    return len(content), hashlib.sha256(content).hexdigest()
