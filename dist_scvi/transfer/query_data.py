"""Query cells for a trained reference model: with its genes in its order, and the obs columns that it needs.

Shape letters in this file
    n   cells of the query
    q   genes of the query
    g   genes of the reference
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.loaders import CellData, CellStore, open_store
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.cell_store import check_var_names
from dist_scvi.loaders.data import open_columns
from dist_scvi.loaders.stores.collection import Collection, open_collection
from dist_scvi.network.fit_data import keys_in
from dist_scvi.network.model_spec import Covariate, ModelSpec

if TYPE_CHECKING:
    from anndata import AnnData

_LOW_OVERLAP = 0.8
"""Share of the reference's genes below which scvi-tools warns."""
_CODES_AT_ONCE = 1 << 20
_NAMED = 5


def prepare_query_data(
    source: "str | Path | AnnData | Sequence[str | Path | AnnData] | CellStore | CellData",
    spec: ModelSpec,
    *,
    min_overlap: float = 0.5,
    source_key: str | None = "source",
) -> CellData:
    """Open a query with the genes and obs columns that a reference was trained with.

    Genes of the reference that the query lacks count as 0; other genes of the query are left out. The store of
    the result names both in ``unmatched``. The query may have new categories; `scarches.query_spec` adds them.

    Parameters
    ----------
    source
        A source for `open_store`, an open store, or data opened with the reference's column names. Files are not
        loaded into memory.
    spec
        The reference.
    min_overlap
        Least share of the reference's genes, from 0 to 1, that each store must have.
    source_key
        For a list of stores, the name of an obs column with the store that a cell is from; None for no column.

    Warns
    -----
    UserWarning
        If a store has less than 80 % of the genes, or the reference learned labels and the query has no such column.

    Raises
    ------
    FileNotFoundError
        If `source` does not exist.
    ValueError
        If genes or columns are missing, or the counts are not raw counts.

    Notes
    -----
    scvi-tools 1.4.2, model/base/_archesmixin.py, warns below 80 % and raises only for a query without any of the genes.
    As there, categories that no cell has do not count as new.
    """
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap={min_overlap}: a share of the reference's genes from 0 to 1 is needed")
    store = _aligned(source.store if isinstance(source, CellData) else source, spec, min_overlap, source_key)
    data = replace(source, store=store) if isinstance(source, CellData) else _open_columns(store, spec)
    _check_labels(data, spec)
    known = {covariate.key: covariate for covariate in spec.categorical_covariates}
    return replace(
        data,
        batch=data.batch and _without_unused(data.batch, spec.batch, data.n_cells),
        label=data.label and _without_unused(data.label, spec.label, data.n_cells),
        categorical_covariates=tuple(
            _without_unused(column, known.get(column.key), data.n_cells) for column in data.categorical_covariates
        ),
    )


def _aligned(source: Any, spec: ModelSpec, min_overlap: float, source_key: str | None) -> Collection:
    """Open the stores of a query as one with the genes of the reference."""
    several = isinstance(source, (list, tuple))
    if isinstance(source, CellStore):
        stores: list[CellStore] = [source]
    else:
        stores = [open_store(one, layer=spec.layer) for one in (source if several else [source])]
    uri = open_collection(stores, join="outer").uri  # raises if a store is given twice
    for store in stores:
        _check_overlap(store.uri, store.var_names, spec.var_names, min_overlap)
    return Collection(stores, spec.var_names, source_key=source_key if several else None, uri=uri)


def _check_overlap(where: str, found: Iterable[str], reference: Sequence[str], min_overlap: float) -> None:
    """Raise, or warn, if a query has too few genes of the reference."""
    present = list(found)
    lacking = set(reference).difference(present)
    share = 1 - len(lacking) / len(reference)
    first = [name for name in reference if name in lacking][:_NAMED]
    found = (
        f"{where} has {len(reference) - len(lacking)} of the {len(reference)} genes of the reference ({share:.0%}): it "
        f"lacks {', '.join(first)}{', ...' * (len(lacking) > _NAMED)}, and begins {', '.join(present[:_NAMED])}"
    )
    if share == 0:
        raise ValueError(f"{found}; name genes as the reference does (adata.var_names)")
    if share < min_overlap:
        raise ValueError(
            f"{found}; min_overlap={min_overlap} needs more: name genes as the reference does (adata.var_names), or "
            "lower min_overlap to count those that are absent as 0"
        )
    if share < _LOW_OVERLAP:
        warnings.warn(f"{found}; those count as 0, and results may be poor", stacklevel=4)


def _open_columns(store: CellStore, spec: ModelSpec) -> CellData:
    """Open the obs columns that the reference was trained with, and the labels if the query has them."""
    present, lacking = store.obs_columns(), []
    for argument, found in asdict(spec.keys.without_labels()).items():
        keys = [found] if isinstance(found, str) else found or ()
        lacking += [f"'{key}' ({argument})" for key in keys if key not in present]
    if lacking:
        raise ValueError(
            f"{store.uri} lacks obs columns that the reference was trained with: {', '.join(lacking)}; add them under "
            f"these names, as adata.obs[...]; present are {', '.join(present) or 'none'}"
        )
    return open_columns(store, keys_in(store, spec))


def _check_labels(data: CellData, spec: ModelSpec) -> None:
    """Raise, or warn, if a query lacks the column of labels."""
    if spec.label is None or data.label is not None:
        return
    if spec.model.model_name == "SCANVI":
        warnings.warn(
            f"{data.store.uri} has no labels (obs column '{spec.label.key}', the labels_key of the reference): all its "
            "cells are unlabelled",
            stacklevel=3,
        )
    elif spec.decodes_labels:
        raise ValueError(
            f"{data.store.uri} has no labels: with dispersion='gene-label' each cell needs one; add the obs column "
            f"'{spec.label.key}', the labels_key of the reference"
        )


def _without_unused(column: Categorical, known: Covariate | None, n_cells: int) -> Categorical:
    """Remove categories that are not in the reference and that no cell has.

    pandas keeps all categories of a table in its subsets. Each would otherwise become a new category of the model, with
    weights that no cell trains.
    """
    if known is None or set(column.vocabulary) <= set(known.categories):
        return column
    occurs = np.zeros(len(column.vocabulary) + 1, dtype=bool)
    for start in range(0, n_cells, _CODES_AT_ONCE):
        occurs[column.codes(start, min(start + _CODES_AT_ONCE, n_cells))] = True
    kept = [code for code, name in enumerate(column.vocabulary) if occurs[code] or name in known.categories]
    place = np.full(len(occurs), -1, dtype=np.int32)
    place[kept] = np.arange(len(kept))
    return replace(column, vocabulary=tuple(column.vocabulary[code] for code in kept), place=place[column.place])


def prepare_query_anndata(
    adata: "AnnData", reference: ModelSpec, *, return_reference_var_names: bool = False, inplace: bool = True
) -> "AnnData | pd.Index[str] | None":
    """Reorder an AnnData in memory to the genes of a reference; missing genes are 0 in X and layers.

    A query that is opened by `prepare_query_data` does not need it.

    Parameters
    ----------
    adata
        The query.
    reference
        Specification of the reference.
    return_reference_var_names
        Only return the names of the reference's genes.
    inplace
        Change `adata` instead of returning a new AnnData.

    Warns
    -----
    UserWarning
        If the query has less than 80 % of the genes.

    Raises
    ------
    ValueError
        If the query has none of the genes, has a gene name twice, or is backed by a file, or if the reference was
        trained on ``raw/X``.

    Notes
    -----
    scvi-tools 1.4.2, model/base/_archesmixin.py: prepare_query_anndata. There ``uns`` is lost where genes are added.
    """
    names = pd.Index(reference.var_names)
    if return_reference_var_names:
        return names
    if reference.layer == "raw/X":
        raise ValueError(
            "the reference was trained on raw/X, which this leaves as it is: use prepare_query_data instead"
        )
    if adata.isbacked:
        raise ValueError(
            f"the query is backed by {adata.filename}: give that path to prepare_query_data, or adata.to_memory()"
        )
    present = check_var_names(adata.var_names, "the query")
    _check_overlap("the query", present, reference.var_names, 0)
    prepared = adata[:, names].copy() if names.isin(present).all() else _padded(adata, names)
    if not inplace:
        return prepared
    _replace(adata, prepared)
    return None


def _padded(adata: "AnnData", names: "pd.Index[str]") -> "AnnData":
    """Return an AnnData with the genes `names`, of which some are missing in `adata`; data of cells is kept."""
    from anndata import AnnData

    place_g = adata.var_names.get_indexer(names)
    padded = AnnData(
        None if adata.X is None else _columns(adata.X, place_g),
        obs=adata.obs.copy(),
        var=adata.var.reindex(names),
        uns=dict(adata.uns),
        obsm=dict(adata.obsm),
        obsp=dict(adata.obsp),
        layers={name: _columns(values, place_g) for name, values in adata.layers.items()},
        shape=(adata.n_obs, len(names)) if adata.X is None else None,
    )
    padded.raw = adata.raw.to_adata() if adata.raw is not None else None
    return padded


def _columns(values_nq: Any, place_g: NDArray[np.intp]) -> Any:
    """Return the columns `place_g` of a matrix, dense or sparse; an index of -1 stands for a column of 0."""
    # A product with a selection matrix, because indexing cannot insert columns of 0, and it works for both kinds.
    chosen_e = np.flatnonzero(place_g >= 0)
    one_e = np.ones(len(chosen_e), dtype=values_nq.dtype)
    shape = (values_nq.shape[1], len(place_g))
    return values_nq @ sparse.csr_matrix((one_e, (place_g[chosen_e], chosen_e)), shape=shape)


def _replace(adata: "AnnData", other: "AnnData") -> None:
    """Replace the content of `adata` by that of `other`: anndata has no public method to add genes to an object."""
    adata._init_as_actual(other)  # noqa: SLF001
