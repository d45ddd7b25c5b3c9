"""Initialization of a SCANVI model from a SCVI model.

Shape letters in this file
    g   genes
    l   labels
"""

from collections.abc import Set as AbstractSet
from dataclasses import replace

import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders import CellData
from dist_scvi.loaders.data import without_category
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_spec import ModelSpec, spec_of
from dist_scvi.network.vae import VAE

OF_SCANVI = frozenset({"model_name", "linear_classifier", "classifier_parameters", "y_prior", "objective"})
"""Options that a SCVI model does not have or that have another meaning for SCANVI."""
FROM_SCVI = "from_scvi"
"""Key in the lineage of a model made by `scanvi_from`."""


def labelled_data(source: CellData, *, labels_key: str | None = None, unlabeled_category: str | None) -> CellData:
    """Return open cells with another column of labels, or the same column with another unlabeled category.

    Raises
    ------
    ValueError
        If neither `labels_key` nor `source` names a column, or the column does not exist.
    """
    key = labels_key or (source.label.key if source.label else None)
    if key is None:
        raise ValueError("no column of labels is known: name it as labels_key")
    column = source.store.categorical(key)
    label = column if unlabeled_category is None else without_category(column, unlabeled_category)
    return replace(source, label=label, unlabeled_category=unlabeled_category, labels_required=False)


def scanvi_from(
    module: VAE, spec: ModelSpec, data: CellData, config: ModelConfig, *, seed: int
) -> tuple[VAE, ModelSpec]:
    """Build a SCANVI model that is initialized with the weights of a SCVI model.

    Parameters
    ----------
    module, spec
        The SCVI model.
    data
        Cells with labels; they may differ from the cells that SCVI was trained on.
    config
        Options of SCANVI: those of `spec`, and the ones that SCVI does not have.
    seed
        Seed of the weights that SCVI does not have.

    Raises
    ------
    ValueError
        If `spec` is not of SCVI, `config` differs from its options, the genes differ, or there are batches that SCVI
        was not trained on, fewer than two labels, or, with a dispersion by label, a label that SCVI does not know.

    Notes
    -----
    scvi-tools 1.4.2, model/_scanvi.py: from_scvi_model. Weights of a dispersion by label are copied by label name.
    """
    if spec.model.model_name != "SCVI":
        raise ValueError(f"SCANVI can begin with a model of SCVI, this is one of {spec.model.model_name}")
    check_options(spec, config, config.model_fields_set - OF_SCANVI)
    described = spec_of(config, seed, data)
    new_spec = spec.model_copy(
        update={
            "model": config,
            "seed": seed,
            "layer": described.layer,
            "label": described.label,
            "unlabeled_category": described.unlabeled_category,
            "lineage": {FROM_SCVI: {"seed": spec.seed, "lineage": spec.lineage}},
        }
    )
    fit_to_spec(data, new_spec)
    weights = dict(module.state_dict())
    if config.dispersion == "gene-label":
        weights["px_r"] = weights["px_r"][:, _label_columns(spec, new_spec)]
    made = new_spec.build()
    # strict=False: the weights of SCVI do not include the classifier and the networks between z1 and z2.
    made.load_state_dict(weights, strict=False)
    return made, new_spec


def check_options(spec: ModelSpec, asked: ModelConfig, keys: AbstractSet[str]) -> None:
    """Check that options of a network agree with those of the model that it is initialized from.

    Raises
    ------
    ValueError
        If `asked` differs in any of `keys`; the message lists them all.
    """
    differ = [
        f"{key}={getattr(asked, key)!r} (it has {getattr(spec.model, key)!r})"
        for key in sorted(keys)
        if getattr(asked, key) != getattr(spec.model, key)
    ]
    if differ:
        raise ValueError(f"the model to begin with has other options: leave out {', '.join(differ)}")


def _label_columns(spec: ModelSpec, new_spec: ModelSpec) -> torch.Tensor:
    """Return the column of SCVI's dispersion for each label of SCANVI."""
    known = spec.label.categories if spec.label else ()
    asked = new_spec.label.categories if new_spec.label else ()
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(
            f"SCVI has no dispersion for the labels {', '.join(unknown[:10])}: with dispersion='gene-label' the labels "
            f"must be among its own, {', '.join(known[:10]) or 'of which it has none'}"
        )
    return torch.tensor([known.index(name) for name in asked])
