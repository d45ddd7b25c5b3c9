"""Methods for the expected counts of cells: draws, parameters of the likelihood, correlations.

Shape letters in this file
    n   cells
    g   genes
    s   samples
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, overload

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.expression.correlation import pearson_correlation, spearman_correlation
from dist_scvi.expression.predictive import PARAMETERS, denoised_rates, likelihood_parameters, predictive_counts
from dist_scvi.inference.cell_selection import Cells, Selection
from dist_scvi.inference.encode_decode import Batches, ExpressionQuery, expression_query, latent_cells
from dist_scvi.inference.progress import with_progress
from dist_scvi.inference.zarr_output import RowArrays, check_count, chunk_cells_of
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.model.cell_source import CellSource
from dist_scvi.model.likelihood_model import LikelihoodModel
from dist_scvi.progress_reporter import ProgressReporter

T = TypeVar("T")


class PredictiveModel(LikelihoodModel):
    """Expected counts; `LatentModel` explains the arguments that the methods share.

    `transform_batch` is a batch that every cell is decoded with, or several that are averaged over; by default each
    cell's own. `gene_list` are the genes wanted, in this order; by default all.

    Notes
    -----
    scvi-tools 1.4.2, model/base/_rnamixin.py.
    """

    @overload
    def posterior_predictive_sample(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        transform_batch: Batches = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        silent: bool = True,  # noqa: FBT001, FBT002
        *,
        seed: int = 0,
        out: None = None,
    ) -> sparse.csr_matrix | NDArray[np.float32]: ...
    @overload
    def posterior_predictive_sample(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        transform_batch: Batches = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        silent: bool = True,  # noqa: FBT001, FBT002
        *,
        seed: int = 0,
        out: str | Path,
    ) -> zarr.Group: ...
    def posterior_predictive_sample(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        transform_batch: Batches = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        silent: bool = True,  # noqa: FBT001, FBT002 - the position in scvi-tools
        *,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> sparse.csr_matrix | NDArray[np.float32] | zarr.Group:
        """Draw counts of cells from the posterior predictive distribution.

        Parameters
        ----------
        n_samples
            Draws of each cell.
        silent
            Do not show progress; that of `out` is always shown.
        out
            Holds ``X``, dense; for one draw.

        Returns
        -------
        scipy.sparse.csr_matrix or numpy.ndarray
            Shape (n, g) for one draw, else an array of shape (n, g, s). In scvi-tools: arrays of the package sparse.
        """
        check_count("n_samples", n_samples)
        if out is not None and n_samples > 1:
            raise ValueError(f"out={str(out)!r} holds one draw of each cell, n_samples={n_samples}: give 1, and a seed")
        selection = self.select(adata, indices)
        query = self._query(selection, gene_list, transform_batch, seed)
        genes, batches = query.gene_index, query.transform_batch

        def drawn(minibatch: MiniBatch) -> RowArrays:
            cells = latent_cells(self.module, minibatch)
            counts = predictive_counts(self.module, cells, genes, batches, n_samples=n_samples, seed=seed)
            return {"X": counts[..., 0] if n_samples == 1 else counts}

        answers = self._with_progress(drawn, selection, batch_size, silent=silent or out is not None)
        if out is not None:
            names = [self.spec.var_names[index] for index in genes]
            identity = ("posterior_predictive_sample", asdict(query))
            found = self._answer(selection, answers, batch_size, out, identity=identity, var_names=names)
            assert isinstance(found, zarr.Group)
            return found
        chunk_cells = chunk_cells_of(batch_size)
        if n_samples > 1:
            return selection.answer(lambda cells: (answers(cells)["X"],), self.world, chunk_cells=chunk_cells)[0]
        chunks = selection.minibatches(self.world, chunk_cells=chunk_cells)
        mine = {minibatch.step: sparse.csr_matrix(answers(minibatch)["X"]) for minibatch in chunks}
        parts = {at: part for share in self.world.from_all(mine) for at, part in share.items()}
        whole = sparse.csr_matrix(sparse.vstack([parts[at] for at in sorted(parts)], format="csr"))
        return sparse.csr_matrix(whole[selection.order])

    def get_likelihood_parameters(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        n_samples: int | None = 1,
        give_mean: bool | None = False,  # noqa: FBT001, FBT002 - the position in scvi-tools
        batch_size: int | None = None,
        *,
        seed: int = 0,
    ) -> dict[str, NDArray[np.float32]]:
        """Return the parameters of the likelihood of the counts.

        Parameters
        ----------
        n_samples
            Draws of the posterior; None decodes its mean.
        give_mean
            Average over the draws.

        Returns
        -------
        dict
            ``mean``, the expected count before zero inflation; of zinb ``dropout``, the probability of that; and but
            for Poisson ``dispersions``, the inverse dispersion, or the standard deviation if normal. Each of shape
            (n, g), or (s, n, g) for several draws.
        """
        check_count("n_samples", 1 if n_samples is None else n_samples)
        compute = partial(likelihood_parameters, self.module, n_samples=n_samples, give_mean=bool(give_mean), seed=seed)
        found = self.select(adata, indices).answer(
            lambda minibatch: tuple(compute(latent_cells(self.module, minibatch)).values()),
            self.world,
            chunk_cells=chunk_cells_of(batch_size),
        )
        named = dict(zip(PARAMETERS[self.spec.model.gene_likelihood], found, strict=True))
        return {name: np.moveaxis(values, 1, 0) if values.ndim == 3 else values for name, values in named.items()}

    def get_feature_correlation_matrix(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        n_samples: int = 10,
        batch_size: int | None = 64,
        rna_size_factor: float = 1000,
        transform_batch: Batches = None,
        correlation_type: Literal["spearman", "pearson"] = "spearman",
        silent: bool = True,  # noqa: FBT001, FBT002 - the position in scvi-tools
        *,
        gene_list: Sequence[str] | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return the correlation of genes over draws of the rates that counts are drawn from, genes by genes.

        Parameters
        ----------
        n_samples
            Draws of each cell.
        rna_size_factor
            Library size of all cells.
        transform_batch
            The correlations within several batches are averaged.
        correlation_type
            ``"pearson"`` needs memory for genes x genes, ``"spearman"`` also for draws x cells x genes.
        silent
            Do not show progress.

        Raises
        ------
        ValueError
            If that memory is more than some GiB.
        """
        check_count("n_samples", n_samples)
        if correlation_type not in ("spearman", "pearson"):
            raise ValueError(f"correlation_type={correlation_type!r}: 'spearman' or 'pearson' is needed")
        selection = self.select(adata, indices)
        query = self._query(selection, gene_list, transform_batch, seed)
        genes, chunk_cells = query.gene_index, chunk_cells_of(batch_size)
        correlate = {"spearman": spearman_correlation, "pearson": pearson_correlation}[correlation_type]
        total_gg = np.zeros((len(genes), len(genes)))
        for batch in query.transform_batch:

            def rates(minibatch: MiniBatch, batch: int | None = batch) -> NDArray[np.float32]:
                cells, options = latent_cells(self.module, minibatch), (rna_size_factor, n_samples, seed)
                return denoised_rates(self.module, cells, genes, batch, *options)

            rates_with_progress = self._with_progress(rates, selection, batch_size, silent=silent)
            total_gg += correlate(
                selection, rates_with_progress, len(genes), n_samples, self.world, chunk_cells=chunk_cells
            )
        names = [self.spec.var_names[index] for index in genes]
        return pd.DataFrame(total_gg / len(query.transform_batch), index=names, columns=names)

    def _query(
        self, selection: Selection, gene_list: Sequence[str] | None, transform_batch: Batches, seed: int
    ) -> ExpressionQuery:
        """Read the requested values of single draws."""
        return expression_query(
            self.spec,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=1,
            n_samples=1,
            seed=seed,
            store=selection.data.store,
        )

    def _with_progress(
        self, compute: Callable[[MiniBatch], T], selection: Selection, batch_size: int | None, *, silent: bool
    ) -> Callable[[MiniBatch], T]:
        progress, chunk_cells = None if silent else ProgressReporter("computed"), chunk_cells_of(batch_size)
        return with_progress(compute, selection, progress, world=self.world, chunk_cells=chunk_cells)
