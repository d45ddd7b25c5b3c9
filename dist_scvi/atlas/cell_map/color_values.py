"""Values by which cells on the map are coloured: an obs column, or the expression of a gene with its uncertainty.

Shape letters in this file
    n   cells
    s   cells, each at a draw of its posterior
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.queries.decode import decode_draws, decode_mean, even_blocks, read_block
from dist_scvi.atlas.store.atlas_store import AtlasStore

MISSING = 65_535
"""The whole number of a missing value."""
MOST_CATEGORIES = 1_000
PER_COUNTS = 10_000
"""Expression is log(1 + scale * this), natural, as scanpy's ``log1p`` of counts normalised to 10,000."""
_PART_CELLS = 1 << 16
_DRAWN_CELLS = 256


@dataclass(frozen=True, slots=True, eq=False)
class ColorValues:
    """A value for each of some cells, as whole numbers."""

    kind: Literal["categorical", "numeric"]
    value_n: NDArray[np.uint16]
    """Codes of categories; or 0 for `low` to 65,534 for `high`. `MISSING` where there is none."""
    label: str
    categories: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0

    def numbers(self) -> NDArray[np.float64]:
        """Return the numbers, NaN where missing."""
        number_n = self.low + self.value_n * ((self.high - self.low) / (MISSING - 1))
        return np.where(self.value_n == MISSING, np.nan, number_n)


def column_values(atlas: AtlasStore, key: str, row_n: NDArray[np.int64]) -> ColorValues:
    """Return the values of an obs column.

    Raises
    ------
    ValueError
        If there is no such column, or it has more categories than can be told apart.
    """
    if atlas.obs.kind(key) == "numeric":
        return _scaled(atlas.obs.values(key, row_n), key)
    vocabulary = atlas.obs.categorical(key).vocabulary
    if len(vocabulary) > MOST_CATEGORIES:
        raise ValueError(
            f"obs column '{key}' has {len(vocabulary):,} categories: at most {MOST_CATEGORIES:,} are coloured"
        )
    code_n = atlas.obs.codes(key, row_n)
    return ColorValues("categorical", np.where(code_n < 0, MISSING, code_n).astype(np.uint16), key, vocabulary)


def gene_values(atlas: AtlasStore, gene: str, row_n: NDArray[np.int64]) -> ColorValues:
    """Return the expression of a gene: the scale at the mean of the posterior, with each cell's own batch.

    Raises
    ------
    ValueError
        If there is no such gene.
    """
    gene_g = atlas.gene_index([gene])
    order_n = np.argsort(row_n, kind="stable")
    scale_n = np.empty(len(row_n), dtype=np.float32)
    at = 0
    for block, n in even_blocks(_blocks(atlas, row_n[order_n])):
        scale_n[order_n[at : at + n]] = decode_mean(atlas, block, gene_g, (None,))[:n, 0]
        at += n
    return _scaled(np.log1p(PER_COUNTS * scale_n.astype(np.float64)), gene, low=0.0)


def gene_uncertainty(
    atlas: AtlasStore, gene: str, row_n: NDArray[np.int64], *, n_draws: int = 16, seed: int = 0
) -> ColorValues:
    """Return the standard deviation, over draws of each cell's posterior, of what `gene_values` returns."""
    gene_g = atlas.gene_index([gene])
    order_n = np.argsort(row_n, kind="stable")
    sorted_n, found_n = row_n[order_n], np.empty(len(row_n))
    for start in range(0, len(row_n), _DRAWN_CELLS):
        place_n = order_n[start : start + _DRAWN_CELLS]
        cells = atlas.read_cells(sorted_n[start : start + _DRAWN_CELLS])
        cell_s = np.repeat(np.arange(len(place_n)), n_draws)
        draw_s = np.tile(np.arange(n_draws), len(place_n))
        scale_s = decode_draws(atlas, cells.take(cell_s), draw_s, seed=seed, batch=None)[:, gene_g[0]]
        found_n[place_n] = np.log1p(PER_COUNTS * scale_s.astype(np.float64)).reshape(-1, n_draws).std(axis=1, ddof=1)
    return _scaled(found_n, gene, low=0.0)


def _blocks(atlas: AtlasStore, row_n: NDArray[np.int64]) -> Iterator[Any]:
    for start in range(0, len(row_n), _PART_CELLS):
        part_n = row_n[start : start + _PART_CELLS]
        yield read_block(atlas, part_n, np.zeros(len(part_n), np.int32))


def _scaled(values: NDArray[Any], label: str, low: float | None = None) -> ColorValues:
    number_n = values.astype(np.float64)
    known_n = np.isfinite(number_n)
    known = number_n[known_n]
    low = (float(known.min()) if len(known) else 0.0) if low is None else low
    high = float(known.max()) if len(known) else low
    width = high - low or 1.0
    value_n = np.full(len(number_n), MISSING, dtype=np.uint16)
    value_n[known_n] = np.rint((known - low) * ((MISSING - 1) / width)).clip(0, MISSING - 1).astype(np.uint16)
    return ColorValues("numeric", value_n, label, (), low, low + width)
