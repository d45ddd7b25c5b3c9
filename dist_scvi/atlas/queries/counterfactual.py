"""Expected expression of cells if they were decoded as of another batch or condition.

Shape letters in this file
    n   cells
    g   genes
    q   groups
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.batch_effects import shift_notes, with_batch
from dist_scvi.atlas.queries.decode import cell_blocks, decode_mean, even_blocks
from dist_scvi.atlas.queries.group_expression import read_query
from dist_scvi.atlas.queries.groups import CellGroups, group_cells
from dist_scvi.atlas.queries.moments import GroupSums
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import Cells, CellSet, choose_cells, near_values
from dist_scvi.inference.encode_decode import LatentCells

_LARGEST = 2.0**17
"""Bound of the scale of a model with size factors."""


@dataclass(frozen=True, slots=True)
class Change:
    """A covariate of the model, and the value that it is changed to."""

    key: str
    to: str
    apply: Callable[[LatentCells], LatentCells]


def counterfactual(
    atlas: AtlasReader,
    from_: str | Sequence[str],
    to: str,
    genes: Sequence[str],
    *,
    key: str | None = None,
    by: str | Sequence[str] = (),
    where: Cells = None,
    level: float = 0.95,
) -> Answer:
    """Return the expected expression of the cells of one batch or condition if they were decoded as another.

    Each cell keeps its place in the latent space; only the covariate that the decoder sees is changed.

    Parameters
    ----------
    from_
        Category, or categories, of `key` whose cells are decoded.
    to
        Category of `key` to decode them as.
    genes
        Names, or values of a column of var such as gene symbols.
    key
        Obs column of a covariate that the model was trained with: its batch, the default, or a categorical covariate.
    by
        Obs columns whose observed combinations are groups of these cells; by default they are one.
    where
        Only these cells: a filter, rows, a mask, or values of obs columns.
    level
        Confidence level of the intervals.

    Returns
    -------
    Answer
        For each group and gene `n` cells, the mean scale `mean_from` as the cells are and `mean_to` after the change,
        with its `se`, `low` and `high`; and `lfc`, the log2 ratio of both, with `lfc_se`, `lfc_low` and `lfc_high`. The
        intervals cover the choice of cells, which are the same on both sides; they do not cover the uncertainty of the
        weights of the model. Notes name changes of composition, and groups that have no cell in `to`.

    Raises
    ------
    ValueError
        If a gene, column or value does not exist (the nearest are named), the model was not trained with `key`, or no
        cell is chosen.

    Notes
    -----
    ``get_normalized_expression(transform_batch=to)`` of scvi-tools 1.4.2, model/base/_rnamixin.py, at the mean of the
    posterior; there it exists for batches only.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: a share between 0 and 1 is needed")
    query, within = read_query(atlas, genes, "own", 1.0, None), choose_cells(atlas, where)
    change, cells = changed_cells(atlas, from_, to, key, within)
    groups = group_cells(atlas, by, cells)
    sums = _decoded(atlas, cells, groups, query.gene_g, change)
    notes = shift_notes(atlas, cells, change.apply, f"{change.key} {to!r}")
    absent = _absent(atlas, by, groups, change, within)
    if absent:
        notes.append(
            f"{len(absent)} groups have no cell with {change.key} {to!r} ({', '.join(absent[:3])}): the decoder "
            "extrapolates there"
        )
    parameters = {
        "from": [from_] if isinstance(from_, str) else list(from_),
        "to": to,
        "key": change.key,
        "genes": list(query.genes),
        "by": [by] if isinstance(by, str) else list(by),
        "where": within.text,
        "level": level,
    }
    sizes = dict(zip(groups.names, groups.n_cells.tolist(), strict=True))
    table = _table(groups, query.genes, sums, level)
    return Answer("counterfactual", table, "exact", to, sizes, atlas.uri, atlas.digest, 0, parameters, tuple(notes))


def changed_cells(
    atlas: AtlasReader, from_: str | Sequence[str], to: str, key: str | None, where: Cells
) -> tuple[Change, CellSet]:
    """Read the arguments of `counterfactual`, with its errors: the change, and the cells to decode."""
    change, origin = _read_change(atlas, key, to), [from_] if isinstance(from_, str) else list(from_)
    if to in origin:
        raise ValueError(f"from_ and to are both {to!r}: name two values of '{change.key}'")
    return change, choose_cells(atlas, {change.key: origin}, within=choose_cells(atlas, where))


def _read_change(atlas: AtlasReader, key: str | None, to: str) -> Change:
    """Find the covariate of the model and the code of its new value."""
    spec = atlas.spec
    known = {covariate.key: covariate for covariate in (spec.batch, *spec.categorical_covariates) if covariate}
    if key is None and spec.batch is None:
        raise ValueError(f"key=None: the model was trained without a batch_key; name one of {', '.join(known) or '-'}")
    name = spec.batch.key if key is None and spec.batch else str(key)
    if name not in known:
        raise ValueError(
            f"key={name!r} is no covariate of the model, which was trained with {', '.join(known) or 'none'}: only "
            "these can be changed in the decoder"
        )
    categories = known[name].categories
    if to not in categories:
        raise ValueError(f"'{name}' of the model has no value {to!r}: {near_values(str(to), categories)}")
    code = categories.index(to)
    if spec.batch is not None and name == spec.batch.key:
        return Change(name, to, with_batch(code))
    column = [covariate.key for covariate in spec.categorical_covariates].index(name)

    def apply(cells: LatentCells) -> LatentCells:
        categorical_nc = cells.categorical_nc.copy()
        categorical_nc[:, column] = code
        return replace(cells, categorical_nc=categorical_nc)

    return Change(name, to, apply)


def _decoded(
    atlas: AtlasReader, cells: CellSet, groups: CellGroups, gene_g: NDArray[np.int64], change: Change
) -> list[GroupSums]:
    """Sum the scale by group: as the cells are, after the change, and the increases and decreases of each cell."""
    largest = _LARGEST if atlas.spec.size_factor_key else 1.0
    sums = [GroupSums.empty(len(groups.names), len(gene_g), largest=largest) for _ in range(4)]
    for block, n in even_blocks(cell_blocks(atlas, cells, groups.codes)):
        own_ng = decode_mean(atlas, block, gene_g, (None,))
        # The stored normalizer is that of the cell's own covariates.
        changed = replace(block, cells=change.apply(block.cells), normalizer_n=None)
        other_ng = decode_mean(atlas, changed, gene_g, (None,))
        parts = (own_ng, other_ng, np.maximum(other_ng - own_ng, 0), np.maximum(own_ng - other_ng, 0))
        for total, value_ng in zip(sums, parts, strict=True):
            total.add(np.ascontiguousarray(value_ng[:n]), block.group_n[:n], np.inf)
    return sums


def _table(groups: CellGroups, genes: tuple[str, ...], sums: list[GroupSums], level: float) -> pd.DataFrame:
    """Return the table with a row for each group and, within it, each gene."""
    own, other, rise, fall = sums
    from_qg, to_qg, n_q1 = own.mean(), other.mean(), groups.n_cells[:, None]
    # E[d^2] of the difference of each cell is that of its increases plus that of its decreases.
    square_qg = rise.variance() + rise.mean() ** 2 + fall.variance() + fall.mean() ** 2
    difference_qg = np.maximum(square_qg - (rise.mean() - fall.mean()) ** 2, 0)
    covariance_qg = (own.variance() + other.variance() - difference_qg) / 2
    # A scale that float32 rounds to 0 has no logarithm: its change is infinite or not a number.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_qg = to_qg / from_qg
        lfc_qg = np.log2(ratio_qg)
    # Ratio of two means over the same cells (Cochran 1977, Sampling Techniques, chapter 6).
    residual_qg = np.maximum(other.variance() + ratio_qg**2 * own.variance() - 2 * ratio_qg * covariance_qg, 0)
    se_qg, z = np.sqrt(other.variance() / n_q1), ndtri((1 + level) / 2)
    lfc_se_qg = np.sqrt(residual_qg / n_q1) / np.maximum(to_qg, np.finfo(np.float32).tiny) / np.log(2)
    found = {
        "mean_from": from_qg,
        "mean_to": to_qg,
        "se": se_qg,
        "low": np.maximum(to_qg - z * se_qg, 0),
        "high": to_qg + z * se_qg,
        "lfc": lfc_qg,
        "lfc_se": lfc_se_qg,
        "lfc_low": lfc_qg - z * lfc_se_qg,
        "lfc_high": lfc_qg + z * lfc_se_qg,
    }
    n_groups, n_genes = from_qg.shape
    table = groups.table.loc[np.repeat(np.arange(n_groups), n_genes)].reset_index(drop=True)
    table["group"] = np.repeat(np.array(groups.names, dtype=object), n_genes)
    table["gene"] = list(genes) * n_groups
    table["n"] = np.repeat(groups.n_cells, n_genes)
    return table.assign(**{name: values.ravel() for name, values in found.items()})


def _absent(
    atlas: AtlasReader, by: str | Sequence[str], groups: CellGroups, change: Change, within: CellSet
) -> list[str]:
    """Return the groups that have no cell with the new value of the covariate."""
    if change.to not in atlas.obs.categorical(change.key).vocabulary:
        return list(groups.names)
    try:
        target = choose_cells(atlas, {change.key: [change.to]}, within=within)
        present = set(group_cells(atlas, by, target).names)
    except ValueError:  # no cell at all
        present = set()
    return [name for name in groups.names if name not in present]
