"""Types of cells that a model accepts, and how they are opened."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from anndata import AnnData

from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.data import CellData, StoredPosterior, open_data
from dist_scvi.model.setup_anndata import data_of_setup
from dist_scvi.network.fit_data import fit_to_spec, open_for
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.scvi_tools.minified_h5ad import MINIFY_TYPE, WITH_COUNTS, minified_cells

CellSource: TypeAlias = AnnData | str | Path | Sequence[AnnData | str | Path] | CellStore | CellData
"""An AnnData, the path or URL of a store, several of these as one, an open store, or ``dist_scvi.open_data(...)``."""


def open_new(adata: CellSource | None, *, model_name: str) -> tuple[CellData, AnnData | None]:
    """Open the cells for which a model is made, and return the AnnData if they are one.

    Raises
    ------
    ValueError
        If they are of another type, or an AnnData that was not set up.
    """
    if adata is None:
        raise ValueError(
            f"{model_name} needs cells: an AnnData after setup_anndata, a store, or dist_scvi.open_data(...)"
        )
    if isinstance(adata, CellData):
        return adata, None
    in_memory = anndata_of(adata)
    if in_memory is not None:
        if in_memory.uns.get(MINIFY_TYPE, WITH_COUNTS) != WITH_COUNTS:
            raise ValueError(f"the AnnData is minified and has no counts: {model_name}.load opens it with its model")
        return data_of_setup(in_memory, model_name=model_name), in_memory
    if not isinstance(adata, str | Path | list | tuple | CellStore):
        raise ValueError(  # noqa: TRY004
            f"{model_name} needs an AnnData, a store, or dist_scvi.open_data(...): found {type(adata).__name__}"
        )
    return open_data(adata), None


def open_fitting(adata: CellSource, spec: ModelSpec) -> CellData:
    """Open cells with the genes, columns and codes of an existing model.

    Raises
    ------
    ValueError
        If genes or columns are missing, or there are categories that the model was not trained on.
    """
    if isinstance(adata, CellData):
        return fit_to_spec(adata, spec)
    data, in_memory = open_for(adata, spec), anndata_of(adata)
    if in_memory is None or MINIFY_TYPE not in in_memory.uns:
        return data
    cells = minified_cells(in_memory, "the AnnData", spec)
    has_counts = in_memory.uns[MINIFY_TYPE] == WITH_COUNTS
    return replace(data, posterior=StoredPosterior(cells.qzm_nk, cells.qzv_nk, cells.library_n, has_counts))


def anndata_of(adata: Any) -> AnnData | None:
    """Return `adata` if it is an AnnData."""
    return adata if isinstance(adata, AnnData) else None
