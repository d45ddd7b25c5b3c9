"""Observed cells together with their posterior, from a model, from an atlas, or from a network and its cells.

Shape letters in this file
    n   cells
    g   genes
    s   draws
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.criticism.dense_counts import dense_counts
from dist_scvi.expression.predictive import predictive_counts
from dist_scvi.inference.cell_selection import select
from dist_scvi.inference.encode_decode import LatentCells, latent_cells
from dist_scvi.loaders.data import CellData
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.network.fit_data import fit_to_spec, open_for
from dist_scvi.network.vae import VAE

_ENTRIES_AT_ONCE = 4_000_000
"""Drawn counts in memory at a time: 32 MB, and as much again while they are drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class ObservedChunk:
    """Some cells, their counts, and counts drawn for them."""

    row_n: NDArray[np.int64]
    observed_ng: NDArray[np.float64]
    drawn_ngs: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class PredictiveSource:
    """The cells of a store with the network that explains them."""

    data: CellData
    module: VAE
    atlas: AtlasReader | None = None
    """Where the posterior is read; by default the cells are encoded."""

    def chunks(
        self, row_n: NDArray[np.int64] | None, n_samples: int, *, seed: int, batch_size: int | None = None
    ) -> Iterator[ObservedChunk]:
        """Draw counts for some rows of the store, all by default, in ascending order; memory does not grow with them.

        The draws of a cell depend neither on the others nor on `batch_size`.
        """
        genes = np.arange(self.data.n_genes)
        fitting = max(1, _ENTRIES_AT_ONCE // (self.data.n_genes * n_samples))
        places = None if self.atlas is None else self._places(row_n)
        at = 0
        for minibatch in select(self.data, row_n).minibatches(chunk_cells=min(batch_size or fitting, fitting, 1024)):
            if places is None:
                cells = latent_cells(self.module, minibatch)
            else:
                cells = self._stored(places[at : at + minibatch.n_cells], minibatch)
                at += minibatch.n_cells
            drawn = predictive_counts(self.module, cells, genes, (None,), n_samples=n_samples, seed=seed)
            yield ObservedChunk(minibatch.row_n, dense_counts(minibatch), drawn)

    def _stored(self, row_n: NDArray[np.int64], minibatch: MiniBatch) -> LatentCells:
        assert self.atlas is not None
        cells: LatentCells = self.atlas.read_cells(row_n)
        if not np.array_equal(cells.row_n, minibatch.row_n):
            raise ValueError(
                f"{self.atlas.uri} is not of the cells of {self.data.store.uri}: give those it was made of"
            )
        return cells

    def _places(self, row_n: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return the rows of the atlas that hold some rows of the store, in one pass over the identities of its cells.

        Raises
        ------
        ValueError
            If the atlas lacks one of them.
        """
        assert self.atlas is not None
        wanted = np.arange(self.data.n_cells) if row_n is None else row_n
        place_n = np.full(len(wanted), -1, dtype=np.int64)
        for rows in self.atlas.chunks():
            source_n = self.atlas.read_source_row(rows)
            at_n = np.searchsorted(wanted, source_n).clip(0, len(wanted) - 1)
            here_n = np.flatnonzero(wanted[at_n] == source_n)
            place_n[at_n[here_n]] = rows.start + here_n
        if (place_n < 0).any():
            raise ValueError(
                f"{self.atlas.uri} has no cell of row {wanted[np.argmax(place_n < 0)]} of {self.data.store.uri}: give "
                "the cells that the atlas was made of"
            )
        return place_n


def source_of(model: Any, adata: Any = None) -> PredictiveSource:
    """Combine a model or an atlas with observed cells.

    Parameters
    ----------
    model
        `dist_scvi.model.SCVI` and its like, or an `Atlas`.
    adata
        The cells: an AnnData, a store, its path, or data from ``dist_scvi.open_data``; by default those of the model.
        An atlas has no counts, so that they must be given.

    Raises
    ------
    ValueError
        If cells are needed, or do not fit the model.
    """
    if hasattr(model, "data_of"):
        return PredictiveSource(model.data_of(adata), model.module)
    if not hasattr(model, "read_source_row"):
        raise ValueError(f"{type(model).__name__}: a model or an atlas is needed")
    if adata is None:
        raise ValueError(f"{model.uri} has no counts: give the cells that it was made of as adata")
    data = fit_to_spec(adata, model.spec) if isinstance(adata, CellData) else open_for(adata, model.spec)
    return PredictiveSource(data, model.module, model)
