"""The arrays of a minified atlas with a row for each cell.

Shape letters in this file
    n   cells
    k   latent dimensions
"""

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.store.manifest import Manifest
from dist_scvi.atlas.store.names import (
    CELLS,
    FACTOR,
    LEAF,
    LIBRARY,
    LOG_NORMALIZER,
    LOG_VARIANCE_CODE,
    QZM,
    SOURCE_ROW,
)
from dist_scvi.atlas.store.obs import AtlasObs, Column
from dist_scvi.atlas.store.raw_arrays import CheckedFiles, RawArray, Rows, TextArray
from dist_scvi.loaders.arrays.obs_columns import Numeric, categorical_from_codes


class AtlasCells(Protocol):
    """The arrays of the cells of an atlas, read by rows in any order."""

    n_cells: int
    chunk_rows: int
    """Rows in a file."""
    obs: AtlasObs

    def latent(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and variance of q(z | x), each of shape (n, k)."""

    def mean(self, rows: Rows) -> NDArray[np.float32]:
        """Return the mean alone."""

    def column(self, name: str, rows: Rows) -> NDArray[Any] | None:
        """Return a column that the atlas itself adds, or None if it does not exist."""


class CheckedCells:
    """The cells of an atlas of format 2; see `AtlasCells`."""

    def __init__(self, files: CheckedFiles, manifest: Manifest) -> None:
        self._files, self._arrays = files, manifest.arrays
        self.n_cells = manifest.n_cells
        self._qzm = RawArray(files, f"{CELLS}/obsm/{QZM}", manifest.arrays)
        self._code = RawArray(files, f"{CELLS}/obsm/{LOG_VARIANCE_CODE}", manifest.arrays)
        self.chunk_rows = self._qzm.chunks[0]
        step_k, offset_k = (np.array(values) for values in (manifest.log_variance.step, manifest.log_variance.offset))
        self._variance_ck = np.exp(offset_k + np.arange(256)[:, None] * step_k).astype(np.float32)
        own = [name for name in (LIBRARY, FACTOR, LOG_NORMALIZER, SOURCE_ROW, LEAF) if _own(name) in self._arrays]
        self._own = {name: RawArray(files, _own(name), manifest.arrays) for name in own}
        kinds: dict[str, Literal["categorical", "numeric"]] = {key: info.kind for key, info in manifest.obs.items()}
        names = TextArray(files, f"{CELLS}/obs/_index", manifest.arrays)
        kinds |= dict.fromkeys(own, "numeric")
        self.obs = AtlasObs(self.n_cells, files.objects.uri, kinds, self._open_column, names.take)

    def latent(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and variance; see `AtlasCells`."""
        code_nk = self._code.take(rows)
        variance_nk: NDArray[np.float32] = self._variance_ck[code_nk, np.arange(code_nk.shape[1])]
        return self.mean(rows), variance_nk

    def mean(self, rows: Rows) -> NDArray[np.float32]:
        """Return the mean alone; see `AtlasCells`."""
        return self._qzm.take(rows).astype(np.float32)

    def column(self, name: str, rows: Rows) -> NDArray[Any] | None:
        """Return a column that the atlas adds; see `AtlasCells`."""
        return self._own[name].take(rows) if name in self._own else None

    def _open_column(self, key: str) -> Column:
        place = f"{CELLS}/obs/{key}"
        if f"{place}/codes" not in self._arrays:
            return Numeric(key, RawArray(self._files, place, self._arrays))
        categories = TextArray(self._files, f"{place}/categories", self._arrays)
        return categorical_from_codes(key, list(categories[:]), RawArray(self._files, f"{place}/codes", self._arrays))


def _own(name: str) -> str:
    return f"{CELLS}/obs/{name}"
