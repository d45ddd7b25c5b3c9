"""All comparisons of observed with drawn counts for some cells, in one pass over them.

Shape letters in this file
    n   cells
    s   draws
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.criticism.agreement import Agreement, agreement
from dist_scvi.criticism.count_moments import CountMoments, count_moments
from dist_scvi.criticism.de_agreement import compare_groups
from dist_scvi.criticism.predictive_source import ObservedChunk, PredictiveSource

LEAST_R2 = 0.4
"""Squared Pearson correlation of the variation of cells below which scvi-hub advises against drawn counts."""
_SCALE, _P_VALUE, _TOP_GENES = 1e4, 0.001, 100
_LEAST_CELLS = 5
"""Cells of a donor from which it is compared with others."""


@dataclass(frozen=True, slots=True, eq=False)
class CountCheck:
    """Results for some cells."""

    moments: CountMoments
    n_samples: int
    cv_cell: Agreement
    cv_gene: Agreement
    zero_gene: Agreement
    """Of the share of zeros of each gene."""
    library: Agreement
    """Of the logarithm of total counts, the mean over draws for the drawn one."""
    library_coverage: tuple[float, float]
    """Share of the cells whose total count is within the range of those drawn, and the share expected."""
    groups: pd.DataFrame | None
    """Agreement of differential expression by label (Wilcoxon); None if it was not requested."""
    donors: pd.DataFrame | None
    """A row for each donor, the worst first."""

    @property
    def generated_counts_are_usable(self) -> bool:
        """Whether the variation of cells reaches what scvi-hub asks for."""
        return self.cv_cell.pearson**2 >= LEAST_R2

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        found, expected = self.library_coverage
        return {
            "n_cells": len(self.moments.row_n),
            "n_samples": self.n_samples,
            "cv_cell": self.cv_cell.to_dict(),
            "cv_gene": self.cv_gene.to_dict(),
            "zero_fraction": self.zero_gene.to_dict(),
            "library": {**self.library.to_dict(), "coverage": found, "expected_coverage": expected},
            "diff_exp": None if self.groups is None else self.groups.to_dict(orient="records"),
            "donors": None if self.donors is None else self.donors.to_dict(orient="records"),
            "generated_counts_are_usable": self.generated_counts_are_usable,
        }


def check_counts(
    source: PredictiveSource,
    row_n: NDArray[np.int64] | None,
    *,
    n_samples: int = 5,
    label_key: str | None = None,
    donor_key: str | None = None,
    seed: int = 0,
) -> CountCheck:
    """Compare observed counts with drawn ones.

    Parameters
    ----------
    row_n
        Rows of the store, ascending; all by default.
    label_key
        obs column of the groups whose differential expression is compared. The counts of the cells and one draw of
        them are then held in memory, sparse.
    donor_key
        obs column of donors.
    """
    kept: list[tuple[Any, Any]] = []
    chunks: Iterable[ObservedChunk] = source.chunks(row_n, n_samples, seed=seed)
    if label_key is not None:
        chunks = _keeping(chunks, kept)
    moments = count_moments(chunks)
    groups = None
    if label_key is not None:
        names, code_n = _codes(source, label_key, moments.row_n)
        observed, drawn = (sparse.vstack(part, format="csr") for part in zip(*kept, strict=True))
        groups, _ = compare_groups(
            observed,
            [drawn],
            code_n,
            names,
            method="wilcoxon",
            scale=_SCALE,
            p_val_thresh=_P_VALUE,
            n_top_genes=_TOP_GENES,
        )
    donors = None if donor_key is None else _by_donor(moments, *_codes(source, donor_key, moments.row_n))
    library_drawn_n = moments.library_drawn_ns.mean(axis=1)
    return CountCheck(
        moments,
        n_samples,
        agreement(moments.cv_cell_n, moments.cv_cell_drawn_n),
        agreement(moments.cv_gene_g, moments.cv_gene_drawn_g),
        agreement(moments.zero_gene_g, moments.zero_gene_drawn_g),
        agreement(np.log1p(moments.library_n), np.log1p(library_drawn_n)),
        library_coverage(moments),
        groups,
        donors,
    )


def library_coverage(moments: CountMoments) -> tuple[float, float]:
    """Return how many total counts lie within the range of the draws, and how many are expected to.

    Among the observed and the s drawn values, each is equally likely to be the smallest or the largest.
    """
    n_samples = moments.library_drawn_ns.shape[1]
    low_n, high_n = moments.library_drawn_ns.min(axis=1), moments.library_drawn_ns.max(axis=1)
    inside_n = (moments.library_n >= low_n) & (moments.library_n <= high_n)
    return float(inside_n.mean()), (n_samples - 1) / (n_samples + 1)


def _keeping(chunks: Iterable[ObservedChunk], kept: list[tuple[Any, Any]]) -> Iterator[ObservedChunk]:
    """Pass chunks on, and keep their counts and the first draw."""
    for chunk in chunks:
        kept.append((sparse.csr_matrix(chunk.observed_ng), sparse.csr_matrix(chunk.drawn_ngs[..., 0])))
        yield chunk


def _codes(source: PredictiveSource, key: str, row_n: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    column = source.data.store.categorical(key)
    return column.vocabulary, column.codes_of([(int(row), int(row) + 1) for row in row_n])


def _by_donor(moments: CountMoments, names: Sequence[str], code_n: NDArray[np.int32]) -> pd.DataFrame:
    """Compare the cells of each donor, the worst agreement of the variation of cells first."""
    rows = []
    for code in np.unique(code_n[code_n >= 0]).tolist():
        mine = code_n == code
        if mine.sum() < _LEAST_CELLS:
            continue
        variation = agreement(moments.cv_cell_n[mine], moments.cv_cell_drawn_n[mine])
        drawn_n, observed_n = moments.library_drawn_ns[mine].mean(axis=1), moments.library_n[mine]
        rows.append(
            {
                "donor": names[code],
                "n_cells": int(mine.sum()),
                "cv_cell_pearson": variation.pearson,
                "cv_cell_mae": variation.mae,
                "library_ratio": float(drawn_n.sum() / max(observed_n.sum(), 1)),
                "zero_difference": float((moments.zero_cell_drawn_n[mine] - moments.zero_cell_n[mine]).mean()),
            }
        )
    columns = ["donor", "n_cells", "cv_cell_pearson", "cv_cell_mae", "library_ratio", "zero_difference"]
    return pd.DataFrame(rows, columns=columns).sort_values("cv_cell_mae", ascending=False, ignore_index=True)
