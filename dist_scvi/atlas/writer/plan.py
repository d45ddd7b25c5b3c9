"""The plan that all workers of a minification share, with parts of cells that do not depend on the workers.

Shape letters in this file
    n   cells
    c   centroids
    k   latent dimensions
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.store.names import FACTOR, LIBRARY, LOG_NORMALIZER
from dist_scvi.atlas.writer.columns import KeptColumn, LeafTable
from dist_scvi.loaders.arrays.csr_rows import CsrRows
from dist_scvi.loaders.arrays.obs_columns import Ranges
from dist_scvi.loaders.data import CellData
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE

N_QUANTILES, SKETCH_CELLS = 32, 4096
LEAF_GENE_BYTES = 40 + 2 * N_QUANTILES
"""Bytes per gene of a leaf: four sums of counts, mean, variance and maximum of the scale, and the quantiles."""

_CHUNK_ROWS, _NAME_ROWS = 1 << 18, 1 << 16
_PIECES, _SMALLEST_PIECE, _LARGEST_PIECE = 64, 1 << 16, 1 << 21
"""As many pieces as there are likely to be workers, if cells suffice: a killed worker loses at most one piece, and
each piece needs space on the disk for its sums of leaves."""
_LEAF_CHUNK_BYTES = 1 << 23
_BATCH_VALUES, _BATCH_CELLS = 1 << 23, (256, 4096)


@dataclass(frozen=True, slots=True)
class Minified:
    """Data of some cells that an atlas keeps, and their counts if there are any."""

    qzm_nk: NDArray[np.float32]
    """Mean of q(z | x)."""
    qzv_nk: NDArray[np.float32]
    """Variance of q(z | x)."""
    library_n: NDArray[np.float32]
    """Total count."""
    factor_n: NDArray[np.float32]
    """Factor of the shares: total count, size factor, or the exponential of the mean of a latent library."""
    counts: CsrRows | None = None


CellSource = Callable[[Ranges], Iterable[Minified]]
"""Function that receives ascending ranges of rows, and returns the kept data of the cells of each."""


@dataclass(frozen=True, slots=True)
class AtlasPlan:
    """An atlas that is being written."""

    module: VAE
    spec: ModelSpec
    data: CellData
    source: CellSource
    has_counts: bool
    kept: tuple[KeptColumn, ...]
    leaves: LeafTable
    centroids_ck: NDArray[np.float32]
    seed: int

    @property
    def n_cells(self) -> int:
        """Cells of the atlas."""
        return self.data.n_cells

    @property
    def n_genes(self) -> int:
        """Genes of the model."""
        return len(self.spec.var_names)

    @property
    def has_normalizer(self) -> bool:
        """Whether the scales of a cell add up to 1, and thus have a normalizer."""
        return self.spec.size_factor_key is None

    @property
    def piece_cells(self) -> int:
        """Rows of the source that one worker encodes before it writes."""
        wanted = -(-self.n_cells // _PIECES)
        return min(max(wanted, _SMALLEST_PIECE), _LARGEST_PIECE)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """The rows of each piece."""
        size = self.piece_cells
        return [(start, min(start + size, self.n_cells)) for start in range(0, self.n_cells, size)]

    @property
    def chunk_rows(self) -> int:
        """Rows of the atlas in a file."""
        return min(_CHUNK_ROWS, self.n_cells)

    @property
    def name_rows(self) -> int:
        """Names of cells in a file; a divisor of `chunk_rows`, or all."""
        return min(_NAME_ROWS, self.chunk_rows)

    @property
    def leaf_rows(self) -> int:
        """Leaves in a file."""
        return min(self.leaves.n_leaves, max(1, _LEAF_CHUNK_BYTES // (2 * N_QUANTILES * self.n_genes)))

    @property
    def batch_cells(self) -> int:
        """Cells that are encoded or decoded together."""
        fewest, most = _BATCH_CELLS
        return min(max(_BATCH_VALUES // self.n_genes, fewest), most)

    @property
    def record(self) -> np.dtype[Any]:
        """All kept data of a cell except its name, as stored in a piece."""
        k, n_categorical = self.spec.model.n_latent, len(self.spec.categorical_covariates)
        fields: list[Any] = [
            ("qzm", "<f2", (k,)),
            ("qzv", "<f4", (k,)),
            *((name, "<f4") for name in (LIBRARY, FACTOR, LOG_NORMALIZER)),
            ("row", "<i8"),
            ("neighbourhood", "<i4"),
            ("leaf", "<i4"),
            ("name_bytes", "<i4"),
            ("batch", "<i4"),
            ("label", "<i4"),
            ("categorical", "<i4", (n_categorical,)),
            ("continuous", "<f4", (len(self.spec.continuous_covariates),)),
            *((f"obs/{column.key}", column.dtype) for column in self.kept),
        ]
        return np.dtype(fields)
