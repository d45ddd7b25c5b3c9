"""Protocols of the cells and models that differential expression works on.

Shape letters in this file
    n   cells
    g   genes
    k   latent dimensions
    m   some cells
    s   samples
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dist_scvi.expression.de_groups import RawMoments


class ExpressionSource(Protocol):
    """Cells and a model of their expression. Noise depends only on row, draw and the source's own seed."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""

    @property
    def var_names(self) -> Sequence[str]:
        """Genes, in the order of the model."""

    @property
    def batch_categories(self) -> Sequence[str]:
        """Batches in the order of their codes; none if the model knows no batches."""

    def scale(self, row_s: NDArray[np.int64], draw_s: NDArray[np.int64], batch: int | None) -> NDArray[np.float32]:
        """Return the scale of cells, shape (s, g), each at its draw of the posterior.

        Parameters
        ----------
        row_s
            Sorted rows of the cells; a row may occur several times.
        draw_s
            Number of the draw of each, from 0.
        batch
            Code of the batch to decode with; None is the cell's own batch.
        """

    def group_codes(self, groupby: str) -> tuple[NDArray[np.int32], Sequence[str]]:
        """Return the category of each cell in an obs column, -1 where there is none, and the categories."""

    def latent_mean(self, row_m: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the mean of the posterior of cells, shape (m, k); rows are sorted."""


@runtime_checkable
class CountSource(Protocol):
    """A source that also has the counts."""

    def raw_moments(self, group_n: NDArray[np.int32], n_groups: int) -> RawMoments:
        """Sum the counts of each group in one pass; cells of group -1 are left out."""


@runtime_checkable
class ObsSource(Protocol):
    """A source whose obs can be queried."""

    def obs_query(self, text: str) -> NDArray[np.bool_]:
        """Return a mask of the cells for which the pandas expression `text` is true."""
