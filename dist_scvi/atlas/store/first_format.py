"""Minified atlases of format 1, which version 0.1 wrote: rows in the order of the source, without counts' sums.

Shape letters in this file
    n   cells
    k   latent dimensions
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.store.names import CELLS, FACTOR, LIBRARY, MANIFEST, MODEL, QZM, QZV, SOURCE_ROW
from dist_scvi.atlas.store.obs import AtlasObs, Column, take_rows
from dist_scvi.atlas.store.raw_arrays import Rows
from dist_scvi.loaders.arrays.bounded_json import parse_json_object
from dist_scvi.loaders.arrays.obs_columns import PagedArray, read_range
from dist_scvi.loaders.arrays.obs_table import ObsTable
from dist_scvi.loaders.stores.zarr_store import ZarrTree, complete_array, open_root
from dist_scvi.storage.folder_manifest import MANIFEST as FOLDER_MANIFEST


class FirstFormatCells:
    """The cells of an atlas of format 1, as version 0.1 wrote them; see `AtlasCells`."""

    chunk_rows = 1 << 18

    def __init__(self, path: Path) -> None:
        self._uri, self._root = str(path), open_root(path / CELLS)
        own: Any = self._root["obs"]
        table = ObsTable(ZarrTree(self._root, self._uri), self._array, uri=self._uri)
        self.n_cells = table.n_cells
        self._qzm, self._qzv = self._array(f"obsm/{QZM}"), self._array(f"obsm/{QZV}")
        self._table = table
        self._own = {
            name: PagedArray(self._array(f"obs/{name}"), self._uri)
            for name in (LIBRARY, FACTOR, SOURCE_ROW)
            if name in own
        }
        found = {*(array.shape[0] for array in (self._qzm, self._qzv)), *map(len, self._own.values())}
        if found != {self.n_cells}:
            raise ValueError(f"{path} disagrees with itself: its arrays hold {sorted(found)} cells, obs {self.n_cells}")
        names = PagedArray(self._array("obs/_index"), self._uri, max_rows=1 << 17)
        kinds = {key: self._kind(key) for key in table.columns()}
        self.obs = AtlasObs(self.n_cells, self._uri, kinds, self._open_column, lambda rows: _texts(names, rows))

    def latent(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and variance; see `AtlasCells`."""
        mean_nk, variance_nk = (take_rows(_Ranges(array, self._uri), rows) for array in (self._qzm, self._qzv))
        return mean_nk, variance_nk

    def mean(self, rows: Rows) -> NDArray[np.float32]:
        """Return the mean alone; see `AtlasCells`."""
        mean_nk: NDArray[np.float32] = take_rows(_Ranges(self._qzm, self._uri), rows)
        return mean_nk

    def column(self, name: str, rows: Rows) -> NDArray[Any] | None:
        """Return a column that the atlas adds; see `AtlasCells`."""
        return take_rows(self._own[name], rows) if name in self._own else None

    def _kind(self, key: str) -> Literal["categorical", "numeric"]:
        node: Any = self._root["obs"][key]  # type: ignore[index]
        return "numeric" if hasattr(node, "dtype") and np.issubdtype(node.dtype, np.number) else "categorical"

    def _open_column(self, key: str) -> Column:
        found: Column = self._table.numeric(key) if self._kind(key) == "numeric" else self._table.categorical(key)
        return found

    def _array(self, name: str) -> Any:
        return complete_array(self._root, name)


class _Ranges:
    """A Zarr array whose damage is reported by name."""

    def __init__(self, array: Any, uri: str) -> None:
        self._array, self._uri = array, uri

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return read_range(self._array, *rows.indices(len(self))[:2], self._uri)


def _texts(stored: Any, rows: Rows) -> NDArray[np.object_]:
    return np.array([str(name) for name in take_rows(stored, rows)], dtype=object)


def read_first_manifest(path: Path, content: bytes) -> dict[str, Any]:
    """Parse the manifest of an atlas of format 1, and compare its metadata with it.

    Raises
    ------
    ValueError
        If a file is missing, new or changed.
    """
    manifest = parse_json_object(content, str(path / MANIFEST))
    kinds = (type(manifest.get("n_cells")), type(manifest.get("described")))
    if kinds != (int, dict):
        raise ValueError(f"{path / MANIFEST} lacks n_cells or described: restore it from a copy or minify again")
    described, found = manifest["described"], _describing_files(path)
    differ = sorted(name for name in found.keys() | described.keys() if found.get(name) != described.get(name))
    if differ:
        raise ValueError(
            f"{path / differ[0]} is missing, new or changed: its SHA-256 is not that in {MANIFEST}; restore it from a "
            "copy or minify again"
        )
    return manifest


def _describing_files(path: Path) -> dict[str, str]:
    """Return the SHA-256 of the small metadata files; the others have a checksum per chunk."""
    names = {file.relative_to(path) for file in (path / CELLS).rglob("*") if file.is_file()}
    small = {name for name in names if name.name == "zarr.json" or name.parts[1] == "var" or "categories" in name.parts}
    small.add(Path(MODEL) / FOLDER_MANIFEST)
    return {name.as_posix(): hashlib.sha256((path / name).read_bytes()).hexdigest() for name in sorted(small)}
