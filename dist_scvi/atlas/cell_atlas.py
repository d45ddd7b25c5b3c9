"""Queries of single cells of a minified atlas: latent, labels, expression, and the cells as other objects.

Shape letters in this file
    n   cells
    g   genes requested
    k   latent dimensions
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dist_scvi.atlas import export
from dist_scvi.atlas.annotation.annotate import annotate
from dist_scvi.atlas.annotation.predict import predict
from dist_scvi.atlas.neighbors.neighbors import neighbors
from dist_scvi.atlas.queries.cell_values import latent, sample
from dist_scvi.atlas.queries.where import Cells, choose_cells, where
from dist_scvi.atlas.store.atlas_store import AtlasStore
from dist_scvi.inference.encode_decode import (
    Indices,
    LatentCells,
    expression_query,
    normalized_expression,
    rows_asked,
)
from dist_scvi.inference.posterior import logistic_normal_mean

if TYPE_CHECKING:
    from anndata import AnnData

_PART_CELLS = 4096


class CellAtlas(AtlasStore):
    """The methods of an `Atlas` that return values of single cells, or means of them in one pass."""

    # Queries are functions of an `AtlasReader`, see `queries/reader.py`. Here they become methods.
    where = where
    neighbors = neighbors
    annotate = annotate
    predict = predict
    latent = latent
    sample = sample

    def rows_where(self, where: Mapping[str, str | Sequence[str]]) -> NDArray[np.int64]:
        """Return the rows whose obs columns have the given values, as in ``{"cell_type": ["B", "NK"]}``.

        Raises
        ------
        ValueError
            If a column or a value does not exist.
        """
        chosen_n = np.ones(self.n_cells, dtype=bool)
        for key, values in where.items():
            vocabulary = self.obs.categorical(key).vocabulary
            wanted = [str(value) for value in ([values] if isinstance(values, str) else values)]
            unknown = [value for value in wanted if value not in vocabulary]
            if unknown:
                raise ValueError(f"obs column '{key}' has no value {unknown[0]!r}: it has {', '.join(vocabulary[:20])}")
            codes = [vocabulary.index(value) for value in wanted]
            for rows in self.chunks():
                chosen_n[rows] &= np.isin(self.obs.codes(key, rows), codes)
        return np.flatnonzero(chosen_n)

    def get_latent_representation(
        self, indices: Indices | None = None, *, return_dist: bool = False, mc_samples: int = 5_000, seed: int = 0
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the mean of the posterior of each cell, shape (n, k).

        Parameters
        ----------
        indices
            Cells in the order wanted; all by default.
        return_dist
            Return mean and variance instead, before the softmax of a logistic normal.
        mc_samples, seed
            Draws that estimate the mean of a logistic normal, which has no formula, and their seed.
        """
        k, sampled = self.spec.model.n_latent, self.spec.model.latent_distribution == "ln" and not return_dist
        means, variances = [np.zeros((0, k), np.float32)], [np.zeros((0, k), np.float32)]
        for cells in self._parts(indices):
            means.append(self._mean_of_shares(cells, mc_samples, seed) if sampled else cells.qzm_nk)
            variances.append(cells.qzv_nk)
        order = self._order(indices)
        qzm_nk, qzv_nk = np.concatenate(means)[order], np.concatenate(variances)[order]
        return (qzm_nk, qzv_nk) if return_dist else qzm_nk

    def _mean_of_shares(self, cells: LatentCells, mc_samples: int, seed: int) -> NDArray[np.float32]:
        qzm_nk, qzv_nk = (torch.from_numpy(part).to(self.module.device) for part in (cells.qzm_nk, cells.qzv_nk))
        mean_nk: NDArray[np.float32] = logistic_normal_mean(qzm_nk, qzv_nk, mc_samples, seed=seed).cpu().numpy()
        return mean_nk

    def get_normalized_expression(
        self,
        gene_list: Sequence[str] | None = None,
        *,
        indices: Indices | None = None,
        transform_batch: str | Sequence[str] | None = None,
        library_size: float | str = 1.0,
        n_samples: int | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return the normalized expression of each cell, cells by genes.

        Parameters
        ----------
        gene_list
            Genes; all by default.
        indices
            Cells in the order wanted; all by default.
        transform_batch
            Batch, or batches to average over, that every cell is decoded with; by default its own.
        library_size
            Factor of the shares, or ``"latent"`` for each cell's observed total count.
        n_samples
            Draws of the posterior to average over. By default its mean is decoded, which is deterministic.
        seed
            Seed of the draws; a cell's draws do not depend on which other cells are requested.

        Raises
        ------
        ValueError
            If a gene or batch is not known, or a number is out of range.
        """
        query = expression_query(
            self.spec,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=library_size,
            n_samples=n_samples,
            seed=seed,
        )
        genes = [self.var_names[index] for index in query.gene_index]
        parts = [normalized_expression(self.module, cells, query) for cells in self._parts(indices)]
        value_ng = np.concatenate([np.zeros((0, len(genes)), np.float32), *parts])[self._order(indices)]
        return pd.DataFrame(value_ng, index=self.obs_names(indices), columns=genes)

    def mean_expression(
        self,
        groupby: str,
        gene_list: Sequence[str] | None = None,
        *,
        indices: Indices | None = None,
        transform_batch: str | Sequence[str] | None = None,
        library_size: float | str = 1.0,
        n_samples: int | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return the mean normalized expression over the cells of each category of an obs column, in one pass.

        Returns
        -------
        pandas.DataFrame
            Categories that have cells, by genes. Cells without a category are left out. The arguments are those of
            `get_normalized_expression`.
        """
        query = expression_query(
            self.spec,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=library_size,
            n_samples=n_samples,
            seed=seed,
        )
        column = self.obs.categorical(groupby)
        total = np.zeros((len(column.vocabulary) + 1, len(query.gene_index)))
        for rows in self._rows(indices):
            value_ng = normalized_expression(self.module, self.read_cells(rows), query)
            np.add.at(total, self.obs.codes(groupby, rows), value_ng)  # code -1 indexes the last row
        sizes = self.group_sizes(groupby, indices)
        mean = total[: len(sizes)] / np.maximum(sizes.to_numpy(), 1)[:, None]
        frame = pd.DataFrame(mean, index=sizes.index, columns=[self.var_names[index] for index in query.gene_index])
        return frame[sizes > 0]

    def group_sizes(self, groupby: str, indices: Indices | None = None) -> "pd.Series[int]":
        """Count the cells, or the chosen ones, of each category of an obs column."""
        column = self.obs.categorical(groupby)
        sizes = np.zeros(len(column.vocabulary) + 1, dtype=np.int64)
        for rows in self._rows(indices):
            sizes += np.bincount(self.obs.codes(groupby, rows) + 1, minlength=len(sizes))
        return pd.Series(sizes[1:], index=pd.Index(column.vocabulary, name=groupby), name="n_cells")

    def to_anndata(self, genes: Sequence[str] | None = None, where: Cells = None) -> "AnnData":
        """Return cells as an AnnData in memory, for scanpy.

        Parameters
        ----------
        genes
            Genes whose normalized expression is X, by any column of `var`; without them X is empty.
        where
            Cells: a condition such as ``"tissue == 'lung' and n_counts > 500"``, values of obs columns, rows, or a
            mask; all by default.

        Returns
        -------
        AnnData
            See `dist_scvi.atlas.export.to_anndata`.
        """
        return export.to_anndata(self, genes, None if where is None else choose_cells(self, where).rows(self))

    def to_dask(self, chunk_cells: int = 1 << 16) -> dict[str, Any]:
        """Return lazy arrays of dask over all cells, by name; see `dist_scvi.atlas.export.to_dask`."""
        return export.to_dask(self, chunk_cells)

    def _parts(self, indices: Indices | None) -> Iterator[LatentCells]:
        """Read the requested cells in batches, each cell once and in ascending order of rows."""
        return (self.read_cells(rows) for rows in self._rows(indices))

    def _rows(self, indices: Indices | None) -> Iterator[slice | NDArray[np.int64]]:
        if indices is None:
            yield from self.chunks(_PART_CELLS)
            return
        unique_n, _ = rows_asked(indices, self.n_cells)
        yield from (unique_n[start : start + _PART_CELLS] for start in range(0, len(unique_n), _PART_CELLS))

    def _order(self, indices: Indices | None) -> NDArray[np.int64] | slice:
        """Return the index of each requested cell among those that were read."""
        return slice(None) if indices is None else rows_asked(indices, self.n_cells)[1]
