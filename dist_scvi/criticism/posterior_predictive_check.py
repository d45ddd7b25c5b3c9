"""Posterior predictive checks under the names of scvi-tools, in memory that does not grow with the number of cells.

Shape letters in this file
    n   cells
    g   genes
    s   draws
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.criticism.count_moments import CountMoments, count_moments
from dist_scvi.criticism.de_agreement import compare_groups
from dist_scvi.criticism.predictive_source import PredictiveSource, source_of
from dist_scvi.criticism.rank_genes import Method
from dist_scvi.inference.encode_decode import Indices, rows_asked

RAW = "Raw"
_QUANTILES = (0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.825, 0.85, 0.875, 0.9, 0.925, 0.95, 0.975)


class PosteriorPredictiveCheck:
    """Compare the counts that several models draw with those that were observed.

    Results are in `metrics`: ``cv_cell``, ``cv_gene``, ``zero_fraction``, ``calibration`` and ``diff_exp``, tables with
    a column for each model and ``Raw``.

    Parameters
    ----------
    adata
        The cells with their counts: an AnnData, a store or its path; None for the cells of the first model.
    models_dict
        Models or atlases by name. An atlas needs `adata`.
    count_layer_key
        Layer of the counts; by default, and only, the one that the models were trained on.
    n_samples
        Draws of the counts of each cell.
    indices
        Rows to check, or a mask; all by default.
    seed
        Seed of the draws. Those of a cell depend neither on the other cells nor on `batch_size`.
    batch_size
        Cells in memory at a time, at most; by default as many as fit into some ten MB.

    Raises
    ------
    ValueError
        If there is no model, a name is ``Raw``, or the cells do not fit.

    Notes
    -----
    scvi-tools 1.4.2, criticism/_ppc.py. There all draws are in memory, `calibration_error` uses the model named
    ``model1`` whatever models were given, and ``zero_fraction`` holds the share of counts that are not zero.
    """

    def __init__(
        self,
        adata: Any,
        models_dict: Mapping[str, Any],
        count_layer_key: str | None = None,
        n_samples: int = 10,
        indices: Indices | None = None,
        *,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        if not models_dict or RAW in models_dict:
            raise ValueError(
                f"models_dict names {list(models_dict)}: one model or several are needed, none named {RAW}"
            )
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples}: at least 1 is needed")
        for name, model in models_dict.items():
            if count_layer_key is not None and count_layer_key != model.spec.layer:
                raise ValueError(
                    f"count_layer_key={count_layer_key!r}: model {name!r} was trained on {model.spec.layer or 'X'}, "
                    "and "
                    "its draws compare with these counts alone; leave it out"
                )
        self.n_samples, self._seed, self._batch_size = n_samples, seed, batch_size
        self._sources: dict[str, PredictiveSource] = {
            name: source_of(model, adata) for name, model in models_dict.items()
        }
        self.models = dict(models_dict)
        first = next(iter(self._sources.values())).data
        self._row_n = None if indices is None else rows_asked(indices, first.n_cells)[0]
        self._moments: dict[str, CountMoments] = {}
        self.metrics: dict[str, Any] = {}

    def __repr__(self) -> str:
        return (
            f"--- Posterior Predictive Checks ---\nn_samples = {self.n_samples}\nmodels: {list(self.models)}\n"
            f"metrics: {list(self.metrics)}"
        )

    def coefficient_of_variation(self, dim: Literal["cells", "features"] = "cells") -> None:
        """Compute the standard deviation over the mean, averaged over draws.

        Parameters
        ----------
        dim
            Dimension over which it is computed: over ``"cells"`` it is that of each gene, ``metrics["cv_gene"]``; over
            ``"features"`` that of each cell, ``metrics["cv_cell"]``.

        Raises
        ------
        ValueError
            If `dim` is another.
        """
        if dim not in ("cells", "features"):
            raise ValueError(f"dim={dim!r}: 'cells' or 'features' is needed")
        if dim == "features":
            self.metrics["cv_cell"] = self._table("cv_cell_drawn_n", "cv_cell_n", self._cell_names())
        else:
            self.metrics["cv_gene"] = self._table("cv_gene_drawn_g", "cv_gene_g", self._gene_names())

    def zero_fraction(self) -> None:
        """Compute the share of zeros of each gene, averaged over draws, into ``metrics["zero_fraction"]``."""
        self.metrics["zero_fraction"] = self._table("zero_gene_drawn_g", "zero_gene_g", self._gene_names())

    def calibration_error(self, confidence_intervals: Sequence[float] | None = None) -> None:
        """Compare the widths of intervals of the draws with the shares of counts in them.

        ``metrics["calibration"]`` is the sum over intervals of the squared difference; lower is better.

        Parameters
        ----------
        confidence_intervals
            Quantiles in ascending order: the first and the last are an interval, and so on.

        Raises
        ------
        ValueError
            If their number is odd.
        """
        levels = np.array(_QUANTILES if confidence_intervals is None else confidence_intervals, dtype=np.float64)
        if len(levels) % 2:
            raise ValueError(f"confidence_intervals has {len(levels)} quantiles: an even number is needed")
        half = len(levels) // 2
        errors = {}
        for name, source in self._sources.items():
            inside, n_counts = np.zeros(half), 0
            for chunk in source.chunks(self._row_n, self.n_samples, seed=self._seed, batch_size=self._batch_size):
                bounds = np.quantile(chunk.drawn_ngs, levels, axis=2)
                for at in range(half):
                    low_ng, high_ng = bounds[at], bounds[-at - 1]
                    inside[at] += ((chunk.observed_ng >= low_ng) & (chunk.observed_ng <= high_ng)).sum()
                n_counts += chunk.observed_ng.size
            widths = (levels[::-1] - levels)[:half]
            errors[name] = {"features": float(((inside / n_counts - widths) ** 2).sum())}
        self.metrics["calibration"] = pd.DataFrame.from_dict(errors)

    def differential_expression(
        self,
        de_groupby: str | None = None,
        de_method: Method = "wilcoxon",
        n_samples: int = 1,
        cell_scale_factor: float = 1e4,
        p_val_thresh: float = 0.001,
        n_top_genes_fallback: int = 100,
    ) -> None:
        """Compare the differential expression of each group in drawn and in observed counts.

        ``metrics["diff_exp"]`` has the ``summary``, a row for each group and model, and ``lfc_per_model_per_group``.
        The counts of all chosen cells are in memory, sparse.

        Parameters
        ----------
        de_groupby
            obs column of the groups; by default the labels of the model.
        de_method
            ``"wilcoxon"`` or ``"t-test"``, which is the default of scvi-tools.
        n_samples
            Draws over which the results are averaged.
        cell_scale_factor
            Total count to which each cell is scaled.
        p_val_thresh
            Adjusted p-value below which a gene differs.
        n_top_genes_fallback
            Number of top genes that are compared.

        Raises
        ------
        ValueError
            If there are no labels, or fewer draws than `n_samples`.
        """
        if de_method not in ("wilcoxon", "t-test"):
            raise ValueError(f"de_method={de_method!r}: 'wilcoxon' or 't-test' is needed")
        if not 1 <= n_samples <= self.n_samples:
            raise ValueError(f"n_samples={n_samples}: from 1 to the {self.n_samples} draws of this check are needed")
        folds: dict[str, dict[str, pd.DataFrame]] = {}
        tables = []
        for name, source in self._sources.items():
            observed, drawn, row_n = self._sparse_counts(source, n_samples)
            names, code_n = self._groups(source, de_groupby, row_n)
            table, folds[name] = compare_groups(
                observed,
                drawn,
                code_n,
                names,
                method=de_method,
                scale=cell_scale_factor,
                p_val_thresh=p_val_thresh,
                n_top_genes=n_top_genes_fallback,
            )
            for frame in folds[name].values():
                frame.index = pd.Index(self._gene_names())
            table.insert(len(table.columns) - 1, "model", name)
            tables.append(table)
        summary = pd.concat(tables, ignore_index=True)
        self.metrics["diff_exp"] = {"summary": summary, "lfc_per_model_per_group": folds}

    def moments(self, name: str) -> CountMoments:
        """Return what one pass over the cells gives for the model `name`; it is made once."""
        if name not in self._moments:
            source = self._sources[name]
            chunks = source.chunks(self._row_n, self.n_samples, seed=self._seed, batch_size=self._batch_size)
            self._moments[name] = count_moments(chunks)
        return self._moments[name]

    def _table(self, drawn: str, observed: str, index: NDArray[np.object_]) -> pd.DataFrame:
        columns = {name: getattr(self.moments(name), drawn) for name in self._sources}
        raw = getattr(self.moments(next(iter(self._sources))), observed)
        return pd.DataFrame({**columns, RAW: raw}, index=pd.Index(index))

    def _sparse_counts(self, source: PredictiveSource, n_samples: int) -> tuple[Any, list[Any], NDArray[np.int64]]:
        """Return the observed counts, draws of them, and the rows."""
        parts: list[tuple[Any, ...]] = []
        for chunk in source.chunks(self._row_n, n_samples, seed=self._seed, batch_size=self._batch_size):
            draws = [sparse.csr_matrix(chunk.drawn_ngs[..., draw]) for draw in range(n_samples)]
            parts.append((chunk.row_n, sparse.csr_matrix(chunk.observed_ng), *draws))
        row_n, *counts = zip(*parts, strict=True)
        observed, *drawn = (sparse.vstack(part, format="csr") for part in counts)
        return observed, drawn, np.concatenate(row_n)

    def _groups(
        self, source: PredictiveSource, key: str | None, row_n: NDArray[np.int64]
    ) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        known = source.data.label.key if source.data.label else None
        if key is None and known is None:
            raise ValueError("de_groupby is needed: the model has no labels; name an obs column of groups")
        column = source.data.store.categorical(key or str(known))
        return column.vocabulary, column.codes_of([(int(row), int(row) + 1) for row in row_n])

    def _cell_names(self) -> NDArray[np.object_]:
        from dist_scvi.inference.cell_selection import select

        return select(next(iter(self._sources.values())).data, self._row_n).obs_names()

    def _gene_names(self) -> NDArray[np.object_]:
        return np.array(next(iter(self.models.values())).spec.var_names, dtype=object)
