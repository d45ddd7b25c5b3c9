"""``setup_anndata``: record in an AnnData which of its obs columns a model uses."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd

from dist_scvi.loaders.arrays.bounded_json import parse_json_object
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.loaders.data import COLUMN_KEYS, CellData, ColumnKeys, open_columns, open_data
from dist_scvi.loaders.name_lookup import check_list
from dist_scvi.loaders.stores.open import open_store

if TYPE_CHECKING:
    from anndata import AnnData

SETUP_KEY = "_dist_scvi_setup"


def setup_anndata(
    adata: "AnnData",
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    unlabeled_category: str | float | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
) -> None:
    """Check an AnnData and record in it which columns a model uses.

    Parameters
    ----------
    layer, batch_key, labels_key, unlabeled_category, size_factor_key
        As of `dist_scvi.open`.
    categorical_covariate_keys, continuous_covariate_keys
        Further obs columns to correct for.

    Raises
    ------
    ValueError
        If a column is missing, or the values are not raw counts.

    Notes
    -----
    The arguments are kept in ``adata.uns`` and so survive copies and files; the codes are written to ``_scvi_batch``
    and ``_scvi_labels`` of obs, as scvi-tools 1.4.2 does (model/_scvi.py).
    """
    check_list("categorical_covariate_keys", categorical_covariate_keys)
    check_list("continuous_covariate_keys", continuous_covariate_keys)
    keys = ColumnKeys(
        batch_key,
        labels_key,
        None if unlabeled_category is None else str(unlabeled_category),
        size_factor_key,
        tuple(categorical_covariate_keys or ()),
        tuple(continuous_covariate_keys or ()),
    )
    data = open_columns(open_store(adata, layer=layer), keys)
    everyone = [(0, data.n_cells)]
    columns = data.columns_of(everyone)
    n_labels = len(data.label.vocabulary) if data.label else 0
    label_n = columns.label_n
    adata.obs["_scvi_batch"] = pd.Series(columns.batch_n, adata.obs.index)
    adata.obs["_scvi_labels"] = pd.Series(label_n, adata.obs.index).where(label_n >= 0, n_labels)
    adata.uns[SETUP_KEY] = json.dumps({"layer": layer, **asdict(keys)})


def data_of_setup(adata: "AnnData", *, model_name: str) -> CellData:
    """Open an AnnData as recorded by ``setup_anndata``.

    Raises
    ------
    ValueError
        If it was not set up.
    """
    if SETUP_KEY not in adata.uns:
        raise ValueError(f"the AnnData is not set up: call {model_name}.setup_anndata(adata, ...) first")
    where = f"uns['{SETUP_KEY}'] of the AnnData"
    arguments = parse_json_object(str(adata.uns[SETUP_KEY]), where)
    unknown = sorted(arguments.keys() - {"layer", *COLUMN_KEYS})
    if unknown:
        raise ValueError(f"{where} holds {printable(', '.join(unknown))}: call {model_name}.setup_anndata again")
    return open_data(adata, **arguments)
