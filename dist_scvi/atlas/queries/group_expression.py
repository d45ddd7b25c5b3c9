"""Expected expression by group of cells, or of single cells: from the sums of leaves, or decoded cell by cell.

Shape letters in this file
    n   cells
    g   genes
    l   leaves
    q   groups
    b   batches
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.batch_effects import composition_notes
from dist_scvi.atlas.queries.decode import CellBlock, cell_blocks, decode_mean, even_blocks
from dist_scvi.atlas.queries.groups import CellGroups, group_cells
from dist_scvi.atlas.queries.moments import GroupSums
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import Cells, CellSet, choose_cells

ExpressionEngine = Literal["auto", "leaves", "exact"]

MAX_VALUES = 1 << 28
"""Largest number of values of single cells in an answer: 1 GiB."""
_LARGEST = 2.0**17
"""Bound of a value that is multiplied by a total count."""
LEAF_BYTES = 1 << 26
"""Bytes of the tables of leaves that are read together."""


@dataclass(frozen=True, slots=True)
class ExpressionQuery:
    """Arguments by which expression is computed."""

    genes: tuple[str, ...]
    gene_g: NDArray[np.int64]
    batch: str
    """``"own"``, ``"average"`` or the name of a batch."""
    library_size: float | Literal["latent"]
    threshold: float | None

    @property
    def factor(self) -> float:
        """Factor of the shares, if it is the same for all cells."""
        return 1.0 if self.library_size == "latent" else float(self.library_size)


def expression(
    atlas: AtlasReader,
    genes: Sequence[str],
    by: str | Sequence[str] = (),
    *,
    where: Cells = None,
    batch: str = "own",
    library_size: float | Literal["latent"] = 1.0,
    threshold: float | None = None,
    per_cell: bool = False,
    engine: ExpressionEngine = "auto",
) -> Answer:
    """Return the expected expression of genes in groups of cells.

    It is the scale of the decoder at the mean of each cell's posterior, as ``get_normalized_expression`` of scvi-tools
    1.4.2, times `library_size`.

    Parameters
    ----------
    genes
        Names, or values of a column of var such as gene symbols.
    by
        Obs columns whose observed combinations are the groups; by default all cells are one.
    where
        Only these cells: a filter, rows, a mask, or values of obs columns.
    batch
        ``"own"`` decodes each cell with its own batch, a name all cells with this one, ``"average"`` averages over all
        batches.
    library_size
        Factor, or ``"latent"`` for each cell's own total count or size factor.
    threshold
        Report the fraction of cells whose value is above it.
    per_cell
        Return a row for each cell, in the order of the atlas, instead of groups.
    engine
        ``"leaves"`` merges the means of leaves and decodes nothing; the groups must be unions of leaves, with ``"own"``
        batch and without `threshold`. ``"exact"`` decodes every cell. ``"auto"`` takes the first if it can.

    Returns
    -------
    Answer
        For each group and gene `n` cells, `mean`, `sd` over them and the standard error `se` of the mean; `fraction`
        above `threshold`, and if the counts are known the share of cells in which the gene was `detected`.

    Raises
    ------
    ValueError
        If a gene, column, value or batch does not exist (the nearest are named), or no cell is chosen.
    """
    query = read_query(atlas, genes, batch, library_size, threshold)
    cells = choose_cells(atlas, where)
    batches = batch_codes(atlas, batch)
    if engine not in ("auto", "leaves", "exact"):
        raise ValueError(f"engine={engine!r}: 'auto', 'leaves' or 'exact' is needed")
    parameters: dict[str, object] = {
        "genes": list(query.genes),
        "by": [by] if isinstance(by, str) else list(by),
        "where": cells.text,
        "library_size": library_size,
        "threshold": threshold,
    }
    if per_cell:
        return _of_cells(atlas, query, cells, batches, parameters)
    groups = group_cells(atlas, by, cells)
    obstacle = leaves_obstacle(atlas, groups, query)
    if engine == "leaves" and obstacle:
        raise ValueError(f"engine='leaves': {obstacle}; use engine='exact'")
    notes: tuple[str, ...] = ()
    if obstacle is None and engine != "exact":
        table, used = _from_leaves(atlas, groups, query), "leaves"
    else:
        table, used = _decoded(atlas, groups, query, cells, batches), "exact"
        notes = composition_notes(atlas, cells, groups, batches)
    sizes = dict(zip(groups.names, groups.n_cells.tolist(), strict=True))
    return Answer("expression", table, used, batch, sizes, atlas.uri, atlas.digest, 0, parameters, notes)


def read_query(
    atlas: AtlasReader,
    genes: Sequence[str],
    batch: str,
    library_size: float | Literal["latent"],
    threshold: float | None,
) -> ExpressionQuery:
    """Check the arguments of an expression query.

    Raises
    ------
    ValueError
        If a gene does not exist, or a number is out of range.
    """
    if isinstance(genes, str):
        genes = [genes]
    if not genes:
        raise ValueError("genes is empty: name at least one")
    gene_g = atlas.gene_index(genes)
    number = 1.0 if library_size == "latent" else library_size
    if not isinstance(number, int | float) or not (math.isfinite(number) and 0 < number <= _LARGEST * 8):
        raise ValueError(f"library_size={library_size!r}: a number above 0, at most 1e6, is needed, or 'latent'")
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"threshold={threshold}: a finite number is needed")
    return ExpressionQuery(tuple(map(str, genes)), gene_g, batch, library_size, threshold)


def batch_codes(atlas: AtlasReader, batch: str) -> tuple[int | None, ...]:
    """Return the codes of the batches to decode with and average over; None is each cell's own.

    Raises
    ------
    ValueError
        If the model has no such batch.
    """
    if batch == "own":
        return (None,)
    categories = atlas.spec.batch.categories if atlas.spec.batch else ()
    if not categories:
        raise ValueError(f"batch={batch!r}: the model was trained without a batch_key, only 'own' is there")
    if batch == "average":
        return tuple(range(len(categories)))
    if batch not in categories:
        from dist_scvi.atlas.queries.where import near_values

        raise ValueError(
            f"the model has no batch {batch!r} (nor is it 'own' or 'average'): {near_values(batch, categories)}"
        )
    return (categories.index(batch),)


def leaves_obstacle(atlas: AtlasReader, groups: CellGroups, query: ExpressionQuery) -> str | None:
    """Return the reason why the means of leaves cannot answer, if there is one."""
    if atlas.leaves is None:
        return "this atlas has no leaves"
    if groups.group_l is None:
        return f"the groups are no unions of leaves, which are of {', '.join(atlas.leaves.columns)}"
    if query.batch != "own" and atlas.spec.n_batch > 1:
        return f"batch={query.batch!r}: the means of leaves are of each cell's own batch"
    if query.library_size == "latent":
        return "library_size='latent' differs from cell to cell"
    return None if query.threshold is None else "threshold needs the values of single cells"


def _from_leaves(atlas: AtlasReader, groups: CellGroups, query: ExpressionQuery) -> pd.DataFrame:
    """Merge the means and variances of the leaves of each group."""
    leaves, group_l = atlas.leaves, groups.group_l
    assert leaves is not None
    assert group_l is not None
    used_l = np.flatnonzero(group_l >= 0)
    n_q, shape = groups.n_cells, (len(groups.n_cells), len(query.genes))
    mean_qg, square_qg = np.zeros(shape), np.zeros(shape)
    detected_qg = np.zeros(shape) if leaves.has_counts else None
    for part_l in leaf_parts(used_l, len(atlas.var_names)):
        weight_l = (leaves.n_cells[part_l] / n_q[group_l[part_l]])[:, None]
        mean_lg = leaves.scale_mean(part_l)[:, query.gene_g].astype(np.float64)
        square_lg = leaves.scale_var(part_l)[:, query.gene_g] + mean_lg**2
        np.add.at(mean_qg, group_l[part_l], weight_l * mean_lg)
        np.add.at(square_qg, group_l[part_l], weight_l * square_lg)
        if detected_qg is not None:
            share_lg = leaves.detected(part_l)[:, query.gene_g] / n_q[group_l[part_l]][:, None]
            np.add.at(detected_qg, group_l[part_l], share_lg)
    # The difference of two rounded numbers can be slightly below 0 where all values are equal.
    sd_qg = np.sqrt(np.maximum(square_qg - mean_qg**2, 0))
    return _tidy(groups, query, mean_qg * query.factor, sd_qg * query.factor, None, detected_qg)


def leaf_parts(leaf_l: NDArray[np.int64], n_genes: int, *, values: int = 1) -> list[NDArray[np.int64]]:
    """Split leaves into parts whose tables are read together, with `values` numbers per leaf and gene."""
    width = max(1, LEAF_BYTES // (8 * n_genes * values))
    return np.split(leaf_l, range(width, len(leaf_l), width))


def _decoded(
    atlas: AtlasReader, groups: CellGroups, query: ExpressionQuery, cells: CellSet, batches: tuple[int | None, ...]
) -> pd.DataFrame:
    """Decode every cell and add the results by group."""
    largest = query.factor if query.library_size != "latent" and not atlas.spec.size_factor_key else _LARGEST
    # Not sums of floats: their last bits would depend on how the cells are divided into blocks.
    sums = GroupSums.empty(len(groups.names), len(query.genes), largest=max(largest, 1.0))
    threshold = math.inf if query.threshold is None else query.threshold
    for block, n in even_blocks(cell_blocks(atlas, cells, groups.codes)):
        value_ng = decode_mean(atlas, block, query.gene_g, batches) * _factor(query, block)
        sums.add(value_ng[:n], block.group_n[:n], threshold)
    fraction = None if query.threshold is None else sums.fraction()
    return _tidy(groups, query, sums.mean(), np.sqrt(sums.variance()), fraction, _detected(atlas, groups, query))


def _factor(query: ExpressionQuery, block: CellBlock) -> NDArray[np.float32]:
    if query.library_size == "latent":
        return block.cells.library_n[:, None]
    return np.full((1, 1), query.library_size, dtype=np.float32)


def _detected(atlas: AtlasReader, groups: CellGroups, query: ExpressionQuery) -> NDArray[np.float64] | None:
    """Return the share of cells with counts of each gene, if the groups are unions of leaves."""
    leaves, group_l = atlas.leaves, groups.group_l
    if leaves is None or group_l is None or not leaves.has_counts:
        return None
    detected_qg, used_l = np.zeros((len(groups.names), len(query.genes))), np.flatnonzero(group_l >= 0)
    for part_l in leaf_parts(used_l, len(atlas.var_names)):
        np.add.at(detected_qg, group_l[part_l], leaves.detected(part_l)[:, query.gene_g])
    return np.asarray(detected_qg / groups.n_cells[:, None])


def _of_cells(
    atlas: AtlasReader,
    query: ExpressionQuery,
    cells: CellSet,
    batches: tuple[int | None, ...],
    parameters: dict[str, object],
) -> Answer:
    n_values = cells.n_cells * len(query.genes)
    if n_values > MAX_VALUES:
        raise ValueError(
            f"{cells.n_cells:,} cells x {len(query.genes)} genes are {n_values:,} values: at most {MAX_VALUES:,} are "
            "returned, choose fewer cells by where, fewer genes, or groups"
        )
    values, rows = [], []
    for block, n in even_blocks(cell_blocks(atlas, cells, lambda rows: np.zeros(rows.stop - rows.start, np.int32))):
        values.append((decode_mean(atlas, block, query.gene_g, batches) * _factor(query, block))[:n])
        rows.append(block.row_n[:n])
    row_n = np.concatenate(rows)
    table = pd.DataFrame(np.concatenate(values), index=pd.Index(atlas.obs_names(row_n)), columns=list(query.genes))
    sizes = {"all": cells.n_cells}
    return Answer("cells", table, "exact", query.batch, sizes, atlas.uri, atlas.digest, 0, parameters)


def _tidy(
    groups: CellGroups,
    query: ExpressionQuery,
    mean_qg: NDArray[np.float64],
    sd_qg: NDArray[np.float64],
    fraction_qg: NDArray[np.float64] | None,
    detected_qg: NDArray[np.float64] | None,
) -> pd.DataFrame:
    """Return the table with a row for each group and, within it, each gene."""
    n_groups, n_genes = mean_qg.shape
    table = groups.table.loc[np.repeat(np.arange(n_groups), n_genes)].reset_index(drop=True)
    table.insert(len(table.columns), "group", np.repeat(np.array(groups.names, dtype=object), n_genes))
    table["gene"] = list(query.genes) * n_groups
    n_n = np.repeat(groups.n_cells, n_genes)
    sd_n = sd_qg.ravel()
    table = table.assign(n=n_n, mean=mean_qg.ravel(), sd=sd_n, se=sd_n / np.sqrt(n_n))
    for name, values in (("fraction", fraction_qg), ("detected", detected_qg)):
        if values is not None:
            table[name] = values.ravel()
    return table
