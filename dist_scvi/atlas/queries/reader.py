"""Protocols of the parts of an atlas that queries read. `dist_scvi.atlas.Atlas` implements them and imports this file.

Shape letters in this file
    n   cells
    k   latent dimensions
    l   leaves, the observed combinations of some obs columns
    g   genes
    q   quantiles
    c   neighbourhoods
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.inference.encode_decode import LatentCells
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE

Rows = slice | NDArray[np.int64] | None
"""A range of rows, or rows in any order; None means all."""


class ObsReader(Protocol):
    """Obs columns, read by rows."""

    def columns(self) -> list[str]:
        """Names of the columns."""

    def kind(self, key: str) -> str:
        """Whether a column is ``"categorical"`` or ``"numeric"``."""

    def categorical(self, key: str) -> Categorical:
        """Open a column of categories."""

    def codes(self, key: str, rows: Rows = None) -> NDArray[np.int32]:
        """Read the codes of a column of categories."""

    def values(self, key: str, rows: Rows = None) -> NDArray[Any]:
        """Read a column as it is stored."""


class LeafReader(Protocol):
    """Summaries of the leaves; `leaves` are rows of the table, all by default."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Obs columns whose combinations define the leaves."""

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""

    @property
    def n_cells(self) -> NDArray[np.int64]:
        """Cells of each leaf."""

    @property
    def n_sketch(self) -> NDArray[np.int64]:
        """Number of cells of each leaf from whose draws the quantiles are computed."""

    @property
    def codes(self) -> NDArray[np.int32]:
        """Code of each leaf in each column, shape (l, columns); -1 is a missing value."""

    @property
    def has_counts(self) -> bool:
        """Whether the atlas has sums of the counts."""

    @property
    def levels(self) -> NDArray[np.float64]:
        """Levels of the quantiles."""

    def count_sum(self, leaves: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Read the sums of the counts, shape (l, g)."""

    def detected(self, leaves: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Read the numbers of cells with a count above 0."""

    def normalized_sum(self, leaves: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Read the sums of counts / total count * 1e4."""

    def scale_mean(self, leaves: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Read the means of the scale at the mean of the posterior."""

    def scale_var(self, leaves: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Read the population variances of the same."""

    def scale_max(self, leaves: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Read the largest scales among the draws of the sketch."""

    def quantiles(
        self, leaves: NDArray[np.int64] | None = None, genes: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Read the quantiles of the binary logarithm of the scale, shape (l, g, q)."""


class NeighbourhoodReader(Protocol):
    """Neighbourhoods of the latent space, each a range of rows."""

    @property
    def centroids(self) -> NDArray[np.float32]:
        """Centroid of each, shape (c, k)."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where the rows of each begin, and where the last ends, shape (c + 1,)."""

    @property
    def radius(self) -> NDArray[np.float32]:
        """Largest distance of a member from the centroid, shape (c,)."""


class AtlasReader(Protocol):
    """A minified atlas."""

    @property
    def uri(self) -> str:
        """Path or URL."""

    @property
    def digest(self) -> str:
        """SHA-256 of its manifest."""

    @property
    def spec(self) -> ModelSpec:
        """Description of the model."""

    @property
    def module(self) -> VAE:
        """The network."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""

    @property
    def var_names(self) -> tuple[str, ...]:
        """Genes, in the order of the model."""

    @property
    def obs(self) -> ObsReader:
        """Obs columns."""

    @property
    def leaves(self) -> LeafReader | None:
        """Summaries by leaf, if there are any."""

    @property
    def neighbourhoods(self) -> NeighbourhoodReader | None:
        """Neighbourhoods, if there are any."""

    def gene_index(self, genes: Sequence[str]) -> NDArray[np.int64]:
        """Return the indices of genes, by name or by a column of var."""

    def read_latent(self, rows: Rows = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read mean and variance of the posterior, each of shape (n, k)."""

    def read_mean(self, rows: Rows = None) -> NDArray[np.float32]:
        """Read the mean alone."""

    def read_cells(self, rows: Rows = None) -> LatentCells:
        """Read all data for decoding; identities of cells are rows of the source."""

    def read_log_normalizer(self, rows: Rows = None) -> NDArray[np.float32] | None:
        """Read the logarithm of the sum over genes that scales are divided by, if it is stored."""

    def read_source_row(self, rows: Rows = None) -> NDArray[np.int64]:
        """Read the identities of cells."""

    def read_leaf(self, rows: Rows = None) -> NDArray[np.int32] | None:
        """Read the leaves of cells."""

    def read_library(self, rows: Rows = None) -> NDArray[np.float32]:
        """Read total counts."""

    def chunks(self, size: int = 65536) -> Iterator[slice]:
        """Iterate over ranges of rows, in order."""

    def rows_named(self, obs_names: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of cells by name."""

    def obs_names(self, rows: Rows = None) -> NDArray[np.object_]:
        """Read names of cells."""

    @property
    def var(self) -> pd.DataFrame:
        """Columns of var."""
