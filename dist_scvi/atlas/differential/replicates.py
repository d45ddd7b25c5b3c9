"""A test between independent samples, such as donors: cells of one donor are not independent evidence.

Shape letters in this file
    g   genes
    l   leaves
    r   replicates
"""

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.queries.group_expression import leaf_parts
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import CellSet, check_column


def replicate_columns(
    atlas: AtlasReader, sides: tuple[CellSet, CellSet], replicate: str
) -> dict[str, NDArray[np.float64]]:
    """Test each gene between the replicates of two groups, on the sums of their counts.

    Notes
    -----
    Welch's t-test on log2((count + 0.5) / (total + 1) * 1e6), the transformation of voom (Law et al. 2014,
    doi:10.1186/gb-2014-15-2-r29); false discovery rates of Benjamini and Hochberg.

    Raises
    ------
    ValueError
        If the groups are not unions of leaves, the replicates are not a column of the leaves, a group has fewer than
        two of them, or the atlas has no counts.
    """
    from scipy import stats  # takes two seconds to import

    check_column(atlas.obs, replicate, atlas.uri)
    leaves = atlas.leaves
    if leaves is None or replicate not in leaves.columns or any(side.leaf_l is None for side in sides):
        columns = "none" if leaves is None else ", ".join(leaves.columns)
        raise ValueError(
            f"replicate={replicate!r}: sums of counts are kept by leaf, of the columns {columns}; the replicate must "
            "be one of them (minify with leaf columns that name it) and both groups unions of leaves"
        )
    if not leaves.has_counts:
        raise ValueError(f"replicate={replicate!r}: this atlas was made without counts")
    values = [_replicate_values(atlas, side, replicate) for side in sides]
    for name, value_rg in zip(("group1", "group2"), values, strict=True):
        if len(value_rg) < 2:
            raise ValueError(f"{name} has {len(value_rg)} values of '{replicate}': a test between them needs two")
    first_rg, second_rg = values
    variance_g = first_rg.var(axis=0, ddof=1) / len(first_rg) + second_rg.var(axis=0, ddof=1) / len(second_rg)
    with np.errstate(invalid="ignore", divide="ignore"):
        tested = stats.ttest_ind(first_rg, second_rg, axis=0, equal_var=False)
    pvalue_g = np.nan_to_num(np.asarray(tested.pvalue), nan=1.0)
    return {
        "replicate_lfc": first_rg.mean(axis=0) - second_rg.mean(axis=0),
        "replicate_se": np.sqrt(variance_g),
        "replicate_pvalue": pvalue_g,
        "replicate_fdr": stats.false_discovery_control(pvalue_g),
        "n_replicates1": np.full(len(pvalue_g), len(first_rg)),
        "n_replicates2": np.full(len(pvalue_g), len(second_rg)),
    }


def _replicate_values(atlas: AtlasReader, side: CellSet, replicate: str) -> NDArray[np.float64]:
    """Return the log2 counts per million of each replicate that has cells in a group."""
    leaves, leaf_l = atlas.leaves, side.leaf_l
    assert leaves is not None
    assert leaf_l is not None
    code_l = leaves.codes[leaf_l, leaves.columns.index(replicate)]
    present_l = leaf_l[code_l >= 0]
    codes, number_l = np.unique(code_l[code_l >= 0], return_inverse=True)
    sum_rg = np.zeros((len(codes), len(atlas.var_names)))
    at = 0
    for part_l in leaf_parts(present_l, len(atlas.var_names)):
        np.add.at(sum_rg, number_l[at : at + len(part_l)], leaves.count_sum(part_l))
        at += len(part_l)
    value_rg: NDArray[np.float64] = np.log2((sum_rg + 0.5) / (sum_rg.sum(axis=1, keepdims=True) + 1) * 1e6)
    return value_rg
