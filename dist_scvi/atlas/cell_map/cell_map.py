"""The map of an atlas, opened for reading, and the record that binds it to the atlas.

Shape letters in this file
    n   cells
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dist_scvi.atlas.store.atlas_store import AtlasStore
from dist_scvi.atlas.store.manifest import ArrayInfo
from dist_scvi.atlas.store.raw_arrays import CheckedFiles, RawArray, Rows
from dist_scvi.loaders.arrays.remote import open_objects
from dist_scvi.storage.atomic_files import resolve_replaced

MAP, MAP_RECORD = "map", "MAP.json"
"""Folder of the map in the atlas, which the manifest of the atlas does not list, and its record."""
COORDINATES, BLOCKS = "coordinates", "block_bounds"
STEPS = 65_535
"""Coordinates are whole numbers from 0 to this, in a square: of a screen 4,000 pixels wide 1/16 pixel."""
_LARGEST_RECORD = 1 << 24


class MapRecord(BaseModel):
    """``MAP.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dist_scvi.map/1"] = "dist_scvi.map/1"
    atlas: str
    """Digest of the atlas that the map is of."""
    n_cells: int = Field(ge=1)
    method: Literal["umap"] = "umap"
    options: dict[str, float | int | None]
    """Arguments of UMAP, and the number of landmarks."""
    low: tuple[float, float]
    """UMAP coordinates of the whole numbers (0, 0)."""
    size: float = Field(gt=0)
    """Width and height of the square in UMAP coordinates."""
    chunk_rows: int = Field(ge=1)
    block_rows: int = Field(ge=1)
    """Rows whose smallest and largest coordinates are stored together, so that blocks out of view are not read."""
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of each file."""

    @property
    def digest(self) -> str:
        """SHA-256 of this record, which covers every byte of the map."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def arrays(self) -> dict[str, ArrayInfo]:
        """Return what the arrays are."""
        n_blocks = -(-self.n_cells // self.block_rows)
        return {
            COORDINATES: ArrayInfo(dtype="<u2", shape=(self.n_cells, 2), chunk_rows=self.chunk_rows),
            BLOCKS: ArrayInfo(dtype="<u2", shape=(n_blocks, 4), chunk_rows=n_blocks),
        }


class CellMap:
    """Coordinates of all cells, read by rows; nothing but the bounds of blocks stays in memory."""

    def __init__(self, record: MapRecord, files: CheckedFiles) -> None:
        self.record = record
        self.n_cells = record.n_cells
        self._steps = RawArray(files, COORDINATES, record.arrays())
        self.block_bounds: NDArray[np.uint16] = RawArray(files, BLOCKS, record.arrays()).take(None)
        """Smallest x and y and largest x and y of each block of rows."""

    def steps(self, rows: Rows = None) -> NDArray[np.uint16]:
        """Return coordinates as whole numbers from 0 to 65,535, shape (n, 2)."""
        return self._steps.take(rows)

    def coordinates(self, rows: Rows = None) -> NDArray[np.float32]:
        """Return UMAP coordinates of rows of the atlas, in any order, shape (n, 2)."""
        low = np.array(self.record.low)
        return np.asarray(low + self.steps(rows) * (self.record.size / STEPS), dtype=np.float32)

    def to_steps(self, xy_n2: NDArray[Any]) -> NDArray[np.float64]:
        """Convert UMAP coordinates to those of `steps`, without rounding."""
        return np.asarray((np.asarray(xy_n2, np.float64) - np.array(self.record.low)) * (STEPS / self.record.size))


def open_map(atlas: AtlasStore, folder: str | Path | None = None) -> CellMap:
    """Open the map of an atlas.

    Parameters
    ----------
    folder
        Folder or URL of the map; ``map`` in the atlas by default.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged, or of another atlas: of another one that was written in its place, for example.
    """
    uri = str(folder or f"{atlas.uri}/{MAP}")
    objects = open_objects(uri if "://" in uri else resolve_replaced(Path(uri)), storage_options=atlas.storage_options)
    size = objects.size(MAP_RECORD)
    again = f"make it with 'dist-scvi map {atlas.uri}'"
    if size is None:
        raise FileNotFoundError(f"there is no map of the cells in {uri}: {again}")
    if size > _LARGEST_RECORD:
        raise ValueError(f"{uri}/{MAP_RECORD} has {size} bytes, more than any map needs: {again}")
    try:
        record = MapRecord.model_validate_json(bytes(objects.read_whole(MAP_RECORD)))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"{uri}/{MAP_RECORD} is damaged ({'.'.join(map(str, first['loc']))[:80]}: {first['msg'][:200]}): {again}"
        ) from error
    if record.atlas != atlas.digest or record.n_cells != atlas.n_cells:
        raise ValueError(
            f"{uri} is the map of another atlas (digest {record.atlas[:16]}, here {atlas.digest[:16]}): {again}"
        )
    return CellMap(record, CheckedFiles(objects, record.files))
