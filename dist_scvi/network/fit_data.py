"""Cells in the form that a model needs: its genes in its order, and its codes of categories."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from dist_scvi.loaders import CellData
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.data import ColumnKeys, open_columns, without_category
from dist_scvi.loaders.stores.open import open_store
from dist_scvi.network.model_spec import Covariate, ModelSpec


def open_for(source: Any, spec: ModelSpec) -> CellData:
    """Open an AnnData or a store for a model; the genes of the source may be in any order.

    Raises
    ------
    ValueError
        If genes, columns or categories are missing, or there are categories that the model was not trained on.
    """
    store = source if isinstance(source, CellStore) else open_store(source, layer=spec.layer)
    if tuple(store.var_names) != spec.var_names and set(spec.var_names) <= set(store.var_names):
        store = open_store(source, layer=spec.layer, genes=spec.var_names)
    return fit_to_spec(open_columns(store, keys_in(store, spec)), spec)


def keys_in(store: CellStore, spec: ModelSpec) -> ColumnKeys:
    """Return the columns of the model; a store may lack that of the labels, which SCANVI predicts, but no other."""
    return spec.keys if spec.keys.labels_key in store.obs_columns() else spec.keys.without_labels()


def fit_to_spec(data: CellData, spec: ModelSpec) -> CellData:
    """Return `data` with the codes of categories that the model was trained with.

    Raises
    ------
    ValueError
        If genes differ, or a covariate is missing or has categories that the model was not trained on.
    """
    found = tuple(str(name) for name in data.store.var_names)
    if found != spec.var_names:
        lacking = [name for name in spec.var_names if name not in set(found)]
        what = f"lacks {len(lacking)} of them ({', '.join(lacking[:3])})" if lacking else "has others, or another order"
        raise ValueError(
            f"the model was trained on {len(spec.var_names)} genes, {data.store.uri} {what}: prepare_query_anndata "
            "puts genes into its order, and 0 where they are absent"
        )
    _check_columns(data, spec)
    return replace(
        data,
        batch=recode(data.batch, spec.batch) if data.batch and spec.batch else None,
        label=_labels(data, spec),
        unlabeled_category=spec.unlabeled_category,
        labels_required=spec.model.model_name == "SCVI" and spec.model.dispersion == "gene-label",
        categorical_covariates=tuple(
            recode(column, covariate)
            for column, covariate in zip(data.categorical_covariates, spec.categorical_covariates, strict=True)
        ),
    )


def _check_columns(data: CellData, spec: ModelSpec) -> None:
    """Check that `data` was opened with the columns that the model needs."""
    needs_labels = spec.decodes_labels and spec.model.model_name == "SCVI"
    optional = {"unlabeled_category"} if needs_labels else {"labels_key", "unlabeled_category"}
    found, needed = asdict(data.keys), asdict(spec.keys)
    differ = [
        f"{key}={needed[key]!r} (found {found[key]!r})"
        for key in needed
        if key not in optional and found[key] != needed[key]
    ]
    if differ:
        raise ValueError(f"{data.store.uri} was not opened as the model needs it: open it with {', '.join(differ)}")


def _labels(data: CellData, spec: ModelSpec) -> Categorical | None:
    """Return the labels with the codes of the model; for SCANVI, all cells are unlabelled if `data` has no labels."""
    if spec.label is None or (data.label is None and spec.model.model_name != "SCANVI"):
        return data.label
    if data.label is None:
        # A broadcast scalar stands for the column: no memory for each cell of an atlas without labels.
        nothing = np.broadcast_to(np.int8(0), (data.n_cells,))
        no_code = np.array([-1], dtype=np.int32)
        return Categorical(spec.label.key, spec.label.categories, nothing, no_code, spec.label.dtype)
    column = data.label
    if spec.unlabeled_category is not None:
        column = without_category(column, spec.unlabeled_category)
    return recode(column, spec.label)


def recode(column: Categorical, covariate: Covariate) -> Categorical:
    """Return `column` with the codes that the model has for its categories."""
    unknown = [name for name in column.vocabulary if name not in covariate.categories]
    if unknown:
        raise ValueError(
            f"obs column '{column.key}' has {len(unknown)} categories that the model was not trained on "
            f"({', '.join(unknown[:10])}{', ...' * (len(unknown) > 10)}): extend the model by load_query_data, "
            f"retrain, or leave these cells out; it knows {', '.join(covariate.categories[:10])}"
        )
    lookup = {name: code for code, name in enumerate(covariate.categories)}
    to_model = np.array([*(lookup[name] for name in column.vocabulary), -1], dtype=np.int32)
    return replace(column, vocabulary=covariate.categories, place=to_model[column.place], dtype=covariate.dtype)
