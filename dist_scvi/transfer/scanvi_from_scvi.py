"""From a model of SCVI to one of SCANVI.

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
"""Options that a model of SCVI does not have, or not so."""
FROM_SCVI = "from_scvi"
"""Key of the lineage of a model that `scanvi_from` made."""


def labelled_data(source: CellData, *, labels_key: str | None = None, unlabeled_category: str | None) -> CellData:
    """Open another column of labels of cells that are open, or the same one with another category for those without.

    Raises
    ------
    ValueError
        If neither `labels_key` nor `source` names a column, or there is none of this name.
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
    """Make a SCANVI model that begins with the weights of a SCVI model.

    Parameters
    ----------
    module, spec
        Of SCVI.
    data
        Cells with labels, which may be others than SCVI was given.
    config
        Of SCANVI: that of `spec`, and what SCVI does not have.
    seed
        Of the weights that SCVI does not have.

    Raises
    ------
    ValueError
        If `spec` is not of SCVI or `config` differs from its own, the genes are others, there are batches that SCVI was
        not trained on, fewer than two labels, or, where the dispersion is by label, one that SCVI does not know.

    Notes
    -----
    scvi-tools 1.4.2, model/_scanvi.py: from_scvi_model. The weights of a dispersion by label are taken over by label.
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
    made.load_state_dict(weights, strict=False)
    return made, new_spec


def check_options(spec: ModelSpec, asked: ModelConfig, keys: AbstractSet[str]) -> None:
    """Refuse options of the network that are not those of the model it begins with.

    Raises
    ------
    ValueError
        With each of `keys` in which `asked` differs.
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
