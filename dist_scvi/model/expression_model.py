"""Methods that use the decoder of a model: expected expression, and differences of groups.

Shape letters in this file
    n   cells
    g   genes
    s   samples
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from dist_scvi.expression import differential
from dist_scvi.expression.de_groups import CellChoice
from dist_scvi.expression.de_scores import Change, Domain
from dist_scvi.expression.model_source import ModelSource
from dist_scvi.expression.subsample import Weights, checked_importance, sampled_expression
from dist_scvi.inference.cell_selection import Cells, Selection, select
from dist_scvi.inference.encode_decode import (
    Batches,
    expression_query,
    expression_samples,
    latent_cells,
    normalized_expression,
)
from dist_scvi.inference.importance import ImportanceSampling
from dist_scvi.inference.zarr_output import RowArrays, check_count, chunk_cells_of
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.model.cell_source import CellSource, anndata_of
from dist_scvi.model.predictive_model import PredictiveModel
from dist_scvi.progress_reporter import ProgressReporter


class ExpressionModel(PredictiveModel):
    """Methods of the decoder; `LatentModel` explains the arguments that they share.

    `transform_batch` is a batch that every cell is decoded with, or several that are averaged over; by default each
    cell's own. `gene_list` are the genes wanted, in this order; by default all.

    Notes
    -----
    scvi-tools 1.4.2, model/base/_rnamixin.py.
    """

    # Without return_numpy, or with None: an array for draws that are not averaged, else a table.
    @overload
    def get_normalized_expression(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int | None = 1,
        n_samples_overall: int | None = None,
        weights: Weights | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,  # noqa: FBT001, FBT002
        return_numpy: Literal[False] = False,  # noqa: FBT002
        silent: bool = True,  # noqa: FBT001, FBT002
        *,
        max_cells: int = 1024,
        truncation: bool = False,
        n_mc_samples: int = 500,
        n_mc_samples_per_pass: int = 250,
        seed: int = 0,
        out: None = None,
    ) -> pd.DataFrame: ...
    @overload
    def get_normalized_expression(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int | None = 1,
        n_samples_overall: int | None = None,
        weights: Weights | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,  # noqa: FBT001, FBT002
        *,
        return_numpy: Literal[True],
        silent: bool = True,
        max_cells: int = 1024,
        truncation: bool = False,
        n_mc_samples: int = 500,
        n_mc_samples_per_pass: int = 250,
        seed: int = 0,
        out: None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def get_normalized_expression(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int | None = 1,
        n_samples_overall: int | None = None,
        weights: Weights | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,  # noqa: FBT001, FBT002
        return_numpy: bool | None = None,  # noqa: FBT001
        silent: bool = True,  # noqa: FBT001, FBT002
        *,
        max_cells: int = 1024,
        truncation: bool = False,
        n_mc_samples: int = 500,
        n_mc_samples_per_pass: int = 250,
        seed: int = 0,
        out: None = None,
    ) -> pd.DataFrame | NDArray[np.float32]: ...
    @overload
    def get_normalized_expression(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int | None = 1,
        n_samples_overall: int | None = None,
        weights: Weights | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,  # noqa: FBT001, FBT002
        return_numpy: bool | None = None,  # noqa: FBT001
        silent: bool = True,  # noqa: FBT001, FBT002
        *,
        max_cells: int = 1024,
        truncation: bool = False,
        n_mc_samples: int = 500,
        n_mc_samples_per_pass: int = 250,
        seed: int = 0,
        out: str | Path,
    ) -> zarr.Group: ...
    def get_normalized_expression(  # noqa: PLR0913 - the arguments of scvi-tools
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int | None = 1,
        n_samples_overall: int | None = None,
        weights: Weights | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,  # noqa: FBT001, FBT002 - the position in scvi-tools
        return_numpy: bool | None = None,  # noqa: FBT001
        silent: bool = True,  # noqa: FBT001, FBT002
        *,
        max_cells: int = 1024,
        truncation: bool = False,
        n_mc_samples: int = 500,
        n_mc_samples_per_pass: int = 250,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> pd.DataFrame | NDArray[np.float32] | zarr.Group:
        """Return the normalized expression of cells, cells by genes.

        Parameters
        ----------
        library_size
            Factor of the shares, or ``"latent"`` for each cell's own total count, size factor or latent library size.
        n_samples
            Draws of the posterior to average over; None decodes its mean, which is deterministic.
        n_samples_overall
            Choose this many cells with replacement, and return one draw of each: only these are decoded.
        weights
            ``"importance"`` chooses the draws of `n_samples_overall` that explain all cells requested.
        return_mean
            Average over `n_samples`, if these are more than one; else return an array of shape (s, n, g).
        return_numpy
            Return an array rather than a DataFrame.
        silent
            Do not show progress; that of `out` is always shown.
        max_cells, truncation, n_mc_samples, n_mc_samples_per_pass
            Of ``weights="importance"``; see `ImportanceSampling`.
        out
            Holds ``X``.
        """
        selection = self.select(adata, indices)
        query = expression_query(
            self.spec,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=library_size,
            n_samples=n_samples,
            seed=seed,
            store=selection.data.store,
        )
        genes = [self.spec.var_names[index] for index in query.gene_index]
        apart = not return_mean and n_samples is not None and n_samples > 1
        if apart and return_numpy is False:
            raise ValueError("return_numpy=False: a table cannot hold samples x cells x genes; give return_mean=True")
        if out is not None and (apart or n_samples_overall is not None):
            raise ValueError(f"out={str(out)!r} is for a row of each cell: leave out n_samples_overall and return_mean")
        sampling = ImportanceSampling(max_cells, truncation, n_mc_samples, n_mc_samples_per_pass)
        source = self._source(selection, seed, batch_size)
        importance = checked_importance(source, weights, sampling)
        if n_samples_overall is not None:
            check_count("n_samples_overall", n_samples_overall)
            if n_samples != 1:
                raise ValueError(f"n_samples={n_samples} and n_samples_overall={n_samples_overall}: give one of them")
            found_sg, row_s = sampled_expression(source, selection, query, n_samples_overall, importance)
            names = select(selection.data, row_s).obs_names()
            return found_sg if return_numpy else pd.DataFrame(found_sg, index=names, columns=genes)
        if importance is not None:
            raise ValueError("weights='importance' chooses among n_samples_overall: give their number")
        compute = expression_samples if apart else normalized_expression

        def expression(minibatch: MiniBatch) -> RowArrays:
            return {"X": compute(self.module, latent_cells(self.module, minibatch), query)}

        answers = self._with_progress(expression, selection, batch_size, silent=silent or out is not None)
        identity = ("get_normalized_expression", asdict(query))
        found = self._answer(selection, answers, batch_size, out, identity=identity, var_names=genes)
        if isinstance(found, zarr.Group):
            return found
        if apart:
            return found[0].transpose(1, 0, 2)
        return found[0] if return_numpy else pd.DataFrame(found[0], index=selection.obs_names(), columns=genes)

    def differential_expression(  # noqa: PLR0913, PLR0917 - the arguments of scvi-tools
        self,
        adata: CellSource | None = None,
        groupby: str | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        idx1: CellChoice | None = None,
        idx2: CellChoice | None = None,
        mode: Literal["vanilla", "change"] = "vanilla",
        delta: float | None = 0.25,
        batch_size: int | None = None,
        all_stats: bool = True,  # noqa: FBT001, FBT002 - the position in scvi-tools
        batch_correction: bool = False,  # noqa: FBT001, FBT002
        batchid1: str | Sequence[str] | None = None,
        batchid2: str | Sequence[str] | None = None,
        fdr_target: float = 0.05,
        silent: bool = False,  # noqa: FBT001, FBT002
        weights: Weights | None = "uniform",
        filter_outlier_cells: bool = False,  # noqa: FBT001, FBT002
        importance_weighting_kwargs: dict[str, Any] | None = None,
        *,
        n_samples_overall: int = 5000,
        use_permutation: bool = False,
        m_permutation: int = 10_000,
        change_fn: Change | Literal["log-fold"] | None = None,
        m1_domain_fn: Domain | None = None,
        pseudocounts: float | None = None,
        threshold_counts: float = 0.01,
        test_mode: Literal["two", "three"] = "three",
        cred_interval_lvls: Sequence[float] | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Compare the expression of groups of cells, gene by gene; only the cells sampled are decoded.

        The arguments are those of `dist_scvi.expression.differential.differential_expression`. A query as `idx1` or
        `idx2` is evaluated on the obs of an AnnData, or of the obs columns of a store that it names.

        Parameters
        ----------
        silent
            Do not show the progress of the pass over the counts and of the comparisons.
        """
        source = self._source(self.select(adata), seed, batch_size, adata)
        if not silent and self.world.rank == 0:
            source = replace(source, on_progress=ProgressReporter("computed"))
        return differential.differential_expression(
            source,
            groupby,
            group1,
            group2,
            idx1,
            idx2,
            mode,
            delta,
            all_stats=all_stats,
            batch_correction=batch_correction,
            batchid1=batchid1,
            batchid2=batchid2,
            fdr_target=fdr_target,
            weights=weights,
            filter_outlier_cells=filter_outlier_cells,
            importance_weighting_kwargs=importance_weighting_kwargs,
            n_samples_overall=n_samples_overall,
            use_permutation=use_permutation,
            m_permutation=m_permutation,
            change_fn=change_fn,
            m1_domain_fn=m1_domain_fn,
            pseudocounts=pseudocounts,
            threshold_counts=threshold_counts,
            test_mode=test_mode,
            cred_interval_lvls=cred_interval_lvls,
            seed=seed,
            on_progress=None if silent or self.world.rank else ProgressReporter("compared", "groups"),
        )

    def _source(
        self, selection: Selection, seed: int, batch_size: int | None, adata: CellSource | None = None
    ) -> ModelSource:
        in_memory = self.adata if adata is None else anndata_of(adata)
        obs = None if in_memory is None else in_memory.obs
        return ModelSource(
            self.module,
            self.spec,
            selection.data,
            seed,
            chunk_cells_of(batch_size),
            self.world,
            obs,
        )
