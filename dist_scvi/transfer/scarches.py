"""Surgery: a model is extended by the new categories of a query, and only their weights are trained.

scArches, Lotfollahi et al. 2022, doi:10.1038/s41587-021-01001-7; scvi-tools 1.4.2, model/base/_archesmixin.py.

Shape letters in this file
    b   batches
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders import CellData
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.library_prior import library_prior
from dist_scvi.network.batch_norm import MicroBatchNorm
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.layers import FCLayers
from dist_scvi.network.model_spec import Covariate, ModelSpec
from dist_scvi.network.vae import VAE

_EMBEDDING = "_embeddings_dict.batch.weight"


@dataclass(frozen=True, slots=True)
class Freezing:
    """Parts of the reference that training must not change; see `load_query`."""

    unfrozen: bool = False
    freeze_dropout: bool = False
    freeze_expression: bool = True
    freeze_decoder_first_layer: bool = True
    freeze_batchnorm_encoder: bool = True
    freeze_batchnorm_decoder: bool = False
    freeze_classifier: bool = True
    freeze_reference_categories: bool = True


_DEFAULT = Freezing()


def load_query(
    module: VAE,
    spec: ModelSpec,
    data: CellData,
    *,
    seed: int,
    unfrozen: bool = False,
    freeze_dropout: bool = False,
    freeze_expression: bool = True,
    freeze_decoder_first_layer: bool = True,
    freeze_batchnorm_encoder: bool = True,
    freeze_batchnorm_decoder: bool = False,
    freeze_classifier: bool = True,
    freeze_reference_categories: bool = True,
) -> tuple[VAE, ModelSpec, CellData]:
    """Extend a reference to a query, and freeze the weights of the reference.

    Parameters
    ----------
    module, spec
        The reference; it is not changed.
    data
        The query, opened by `prepare_query_data`.
    seed
        Seed of the added weights, and of the run that trains them.
    unfrozen
        Train everything; the other options then have no effect.
    freeze_dropout
        Train without dropout.
    freeze_expression
        Freeze the first layer of the encoder; otherwise all of it is trained.
    freeze_decoder_first_layer
        Freeze the first layer of the decoder; otherwise all of it is trained.
    freeze_batchnorm_encoder, freeze_batchnorm_decoder
        Freeze scale, shift and running statistics, and normalise by the latter in training too. scvi-tools normalises
        each minibatch by its own statistics.
    freeze_classifier
        Freeze the classifier of SCANVI.
    freeze_reference_categories
        Freeze the columns of the reference's batches and covariates too. scvi-tools trains those that the query has.

    Returns
    -------
    VAE, ModelSpec, CellData
        The extended network, its specification, and the query with its codes.

    Warns
    -----
    UserWarning
        If the latent representation does not depend on anything that is trained.

    Raises
    ------
    ValueError
        If the query lacks genes or columns, or has labels that a SCANVI reference does not know.

    Notes
    -----
    Differences from scvi-tools 1.4.2: weight decay does not change frozen weights; batch embeddings and dispersions of
    new batches are trained (there they stay random); a frozen classifier includes its batch normalisation; columns of a
    weight keep their covariate (see `extend`). Dropout and batch normalisation are in training mode, while with
    Lightning 2.6 scvi-tools trains a query in evaluation mode.
    """
    freezing = Freezing(
        unfrozen,
        freeze_dropout,
        freeze_expression,
        freeze_decoder_first_layer,
        freeze_batchnorm_encoder,
        freeze_batchnorm_decoder,
        freeze_classifier,
        freeze_reference_categories,
    )
    new_spec = query_spec(spec, data, seed=seed, freezing=freezing)
    fitted = fit_to_spec(data, new_spec)
    prior = library_prior(fitted) if module.latent_library and new_spec.n_batch > spec.n_batch else None
    extended = extend(module, new_spec, prior=prior)
    freeze(extended, new_spec)
    if not _trains_latent(extended):
        _warn_latent_stays(new_spec)
    return extended, new_spec, fitted


def query_spec(spec: ModelSpec, data: CellData, *, seed: int, freezing: Freezing = _DEFAULT) -> ModelSpec:
    """Return the specification of the reference with the new categories of `data`, sorted, after its own.

    The sizes of the reference and the frozen parts are recorded in ``lineage``.

    Raises
    ------
    ValueError
        If SCANVI does not know a label of the query: its classifier cannot be extended.
    """
    columns = {column.key: column for column in data.categorical_covariates}
    reference = {
        "model_name": spec.model.model_name,
        "seed": spec.seed,
        "n_batch": spec.n_batch,
        "n_labels": spec.n_labels,
        "n_cats_per_cov": [len(covariate.categories) for covariate in spec.categorical_covariates],
        "lineage": spec.lineage,
    }
    if spec.model.model_name == "SCANVI":
        _check_labels(spec, data.label)
    return spec.model_copy(
        update={
            "seed": seed,
            "batch": _with_new(spec.batch, data.batch),
            "label": spec.label if spec.model.model_name == "SCANVI" else _with_new(spec.label, data.label),
            "categorical_covariates": tuple(
                _with_new(covariate, columns.get(covariate.key)) for covariate in spec.categorical_covariates
            ),
            "lineage": {"reference": reference, "freezing": asdict(freezing)},
        }
    )


def _with_new(covariate: Covariate | None, column: Categorical | None) -> Covariate | None:
    """Append the new categories of `column`; `fit_to_spec` raises if a column is missing or has another name."""
    if covariate is None or column is None:
        return covariate
    new = sorted(set(column.vocabulary).difference(covariate.categories))
    dtype = covariate.dtype
    if new and column.dtype != dtype:  # numbers take a common type; with text or booleans, all are text
        dtype = "str" if {column.dtype, dtype} & {"str", "bool"} else np.result_type(column.dtype, dtype).name
    return covariate.model_copy(update={"categories": (*covariate.categories, *new), "dtype": dtype})


def _check_labels(spec: ModelSpec, column: Categorical | None) -> None:
    assert spec.label is not None
    known = {*spec.label.categories, spec.unlabeled_category}
    unknown = [name for name in column.vocabulary if name not in known] if column else []
    if unknown:
        blank = "a missing value" if spec.unlabeled_category is None else repr(spec.unlabeled_category)
        raise ValueError(
            f"obs column '{spec.label.key}' has {len(unknown)} labels that the reference does not know "
            f"({', '.join(unknown[:10])}{', ...' * (len(unknown) > 10)}): its classifier tells only "
            f"{', '.join(spec.label.categories[:10])}; correct them, set them to {blank}, or train SCANVI on both"
        )


@torch.no_grad()
def extend(
    module: VAE, new_spec: ModelSpec, *, prior: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
) -> VAE:
    """Build the network of `new_spec` with the weights of the reference `module`.

    For categories of the reference, its results are those of the reference. New categories have untrained weights.

    Parameters
    ----------
    prior
        Mean and variance of the log library size of each batch of `new_spec`, two arrays of shape (b,), of which the
        values of new batches are used; without it they are 0 and 1.

    Notes
    -----
    scvi-tools 1.4.2 appends new columns at the end of a weight. With further covariates the columns of the batch are
    not the last, and the columns after them are then used for other categories. Here columns keep their covariate.

    A covariate with one category in the reference has no column there; the new column of this category is 0, while it
    is random in scvi-tools.
    """
    extended = new_spec.build()
    weights = extended.state_dict()
    if prior is not None:
        for name, values_b in zip(("library_log_means", "library_log_vars"), prior, strict=True):
            weights[name].copy_(torch.from_numpy(values_b))
    layers = {path: part for path, part in module.named_modules() if isinstance(part, FCLayers)}
    with_columns = {f"{path}.{_weight_name(i)}" for path, part in layers.items() for i in range(len(part.fc_layers))}
    for name, value in module.state_dict().items():
        if name not in with_columns:
            weights[name][tuple(slice(n) for n in value.shape)] = value
    for path, part in layers.items():
        _copy_columns(part, extended.get_submodule(path))
    return extended.to(module.device).eval()


def _copy_columns(known: FCLayers, extended: nn.Module) -> None:
    """Copy the weights of each category to its column in `extended`."""
    assert isinstance(extended, FCLayers)
    for i in range(len(known.fc_layers)):
        old, new = _linear(known, i).weight, _linear(extended, i).weight
        n_x = old.shape[1] - known.n_covariate_columns(i)
        new[:, :n_x] = old[:, :n_x]
        for (low, high), (new_low, new_high) in zip(_columns(known, i), _columns(extended, i), strict=True):
            new[:, new_low : new_low + high - low] = old[:, low:high]
            if low == high and new_low < new_high:
                new[:, new_low] = 0


def _weight_name(layer: int) -> str:
    return f"fc_layers.Layer {layer}.0.weight"


def _linear(layers: FCLayers, layer: int) -> nn.Linear:
    linear = layers.get_submodule(f"fc_layers.Layer {layer}.0")
    assert isinstance(linear, nn.Linear)
    return linear


def _columns(layers: FCLayers, layer: int) -> list[tuple[int, int]]:
    """Return the column range ``[first, stop)`` of each covariate in the weight of a layer."""
    sizes = layers.n_cat_list if layer == 0 or layers.inject_covariates else []
    return list(pairwise(accumulate(sizes, initial=_linear(layers, layer).in_features - sum(sizes))))


def freeze(module: VAE, spec: ModelSpec) -> None:
    """Freeze the parts recorded in ``spec.lineage``, so that training of a saved query continues with the same ones.

    Parameters without a free entry no longer require a gradient. For parameters with both free and frozen entries,
    ``module.frozen`` has the mask of frozen ones, whose values the training step restores: a gradient of 0 would not
    protect them from weight decay. The network of a model that is not a query is not changed.
    """
    if "freezing" not in spec.lineage or spec.lineage["freezing"]["unfrozen"]:
        return
    freezing, reference = Freezing(**spec.lineage["freezing"]), spec.lineage["reference"]
    whole = {"l_encoder"} if freezing.freeze_classifier else {"l_encoder", "classifier"}
    frozen = {
        name: torch.ones_like(parameter, dtype=torch.bool)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and name.split(".")[0] not in whole
    }
    keep = int(freezing.freeze_reference_categories)
    n_batch = keep * reference["n_batch"]
    n_known = [keep * n for n in reference["n_cats_per_cov"]]
    if module.config.batch_representation == "one-hot":
        n_known.insert(0, n_batch)
    for path, layers in module.named_modules():
        part = path.split(".", maxsplit=1)[0]
        if isinstance(layers, FCLayers) and part not in whole:
            layers.dropout_rate = 0.0 if freezing.freeze_dropout else layers.dropout_rate
            _freeze_norms(path, layers, frozen, hold=_holds_norms(part, freezing))
            if part in ("z_encoder", "decoder"):
                _free_columns(path, layers, n_known, frozen)
    for path in _open_layers(module, freezing):
        for name in ("weight", "bias"):
            _free(frozen, f"{path}.fc_layers.Layer 0.0.{name}", ...)
    _free(frozen, _EMBEDDING, slice(n_batch, None))
    if module.config.dispersion in ("gene-batch", "gene-label"):
        known = n_batch if module.config.dispersion == "gene-batch" else reference["n_labels"]
        _free(frozen, "px_r", (slice(None), slice(known, None)))
    for name, mask in frozen.items():
        module.get_parameter(name).requires_grad_(not mask.all())
    module.frozen = {name: mask for name, mask in frozen.items() if mask.any() and not mask.all()}


def _holds_norms(part: str, freezing: Freezing) -> bool:
    """Return whether batch normalisations stay as they are in a part of the network."""
    if "encoder" in part:
        return freezing.freeze_batchnorm_encoder
    return freezing.freeze_batchnorm_decoder if "decoder" in part else freezing.freeze_classifier


def _freeze_norms(path: str, layers: FCLayers, frozen: dict[str, Tensor], *, hold: bool) -> None:
    """Freeze the running statistics of some layers, or free scale and shift."""
    for at, norm in layers.named_modules():
        if not isinstance(norm, MicroBatchNorm):
            continue
        if hold:
            norm.momentum = 0.0
        else:
            for name in ("weight", "bias"):
                _free(frozen, f"{path}.{at}.{name}", ...)


def _free_columns(path: str, layers: FCLayers, n_known: Sequence[int], frozen: dict[str, Tensor]) -> None:
    """Free the columns of each covariate's categories, except for its first `n_known`."""
    for i in range(len(layers.fc_layers)):
        for (low, high), known in zip(_columns(layers, i), n_known, strict=False):  # only some layers have columns
            _free(frozen, f"{path}.{_weight_name(i)}", (slice(None), slice(min(low + known, high), high)))


def _open_layers(module: VAE, freezing: Freezing) -> list[str]:
    """Return the paths of the parts whose first layer is trained as a whole."""
    parts = {"z_encoder": not freezing.freeze_expression, "decoder": not freezing.freeze_decoder_first_layer}
    return [
        path
        for path, layers in module.named_modules()
        if isinstance(layers, FCLayers) and parts.get(path.split(".", maxsplit=1)[0], False)
    ]


def _free(frozen: dict[str, Tensor], name: str, where: Any) -> None:
    """Mark entries of a parameter as free, if the parameter exists and is trained at all."""
    if name in frozen:
        frozen[name][where] = False


def reference_obstacle(config: ModelConfig) -> str | None:
    """Return the reason why a model with these options is unfit as a reference for later batches, if there is one."""
    if config.model_name == "LinearSCVI":
        return "LinearSCVI does not pass the batch to its encoder"
    if not config.encode_covariates:
        return "encode_covariates=False: training on a query could not change its latent representation"
    return None


def _trains_latent(module: VAE) -> bool:
    """Return whether the latent representation depends on anything that is trained."""
    reaches = {"z_encoder": True, "_embeddings_dict": module.config.encode_covariates}
    return any(
        parameter.requires_grad and reaches.get(name.split(".")[0], False)
        for name, parameter in module.named_parameters()
    )


def _warn_latent_stays(spec: ModelSpec) -> None:
    if spec.model.encode_covariates:
        why = "the query has no batch or covariate that is new: give freeze_reference_categories=False"
    else:
        why = "the reference was trained with encode_covariates=False: train it with True"
    warnings.warn(
        "training on the query will not change its latent representation, which is what the reference makes of it; "
        f"{why}, or give freeze_expression=False",
        stacklevel=3,
    )
