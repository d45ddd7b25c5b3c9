"""Surgery: a model is given the categories that a query brings, and only what belongs to them is trained.

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
    """What of the reference may not move; see `load_query`."""

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
    """Extend a reference to a query, and freeze what is not the query's.

    Parameters
    ----------
    module, spec
        The reference; it is left as it is.
    data
        The query, as `prepare_query_data` opens it.
    seed
        Seed of the weights that are added, and of the run that trains them.
    unfrozen
        Train everything; the other choices do not matter then.
    freeze_dropout
        Train without dropout.
    freeze_expression
        Keep the first layer of the encoder; else it is trained whole.
    freeze_decoder_first_layer
        Keep the first layer of the decoder; else it is trained whole.
    freeze_batchnorm_encoder, freeze_batchnorm_decoder
        Keep scale, shift and running statistics. As in scvi-tools, training still normalises each minibatch by its own
        statistics.
    freeze_classifier
        Keep the classifier of SCANVI.
    freeze_reference_categories
        Keep the columns of the reference's batches and covariates too. scvi-tools trains them where the query has them.

    Returns
    -------
    VAE, ModelSpec, CellData
        The extended network, its specification, and the query with its codes.

    Warns
    -----
    UserWarning
        If nothing is trained on which the latent representation depends.

    Raises
    ------
    ValueError
        If the query lacks genes or columns, or has labels that a SCANVI reference does not know.

    Notes
    -----
    Departures from scvi-tools 1.4.2: what is frozen stays as it is under weight decay; batch embeddings and dispersions
    of new batches are trained (there they stay random); a frozen classifier keeps its batch normalisation too; each
    covariate's columns stay its own (see `extend`). Dropout and batch normalisation are those of training, while with
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
    """Describe the reference `spec` with the categories that `data` adds, sorted, after those it has.

    What the reference was, and what is frozen, is written to ``lineage``.

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
    """Append the categories of `column` that are new; `fit_to_spec` refuses a column that is missing or another."""
    if covariate is None or column is None:
        return covariate
    new = sorted(set(column.vocabulary).difference(covariate.categories))
    dtype = covariate.dtype
    if new and column.dtype != dtype:  # whole numbers beside fractions are numbers, beside texts they are texts
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
    """Make the network of `new_spec` with the weights of the reference `module`.

    What it says of the reference's categories is what the reference said. The weights of new ones are those of the
    untrained network.

    Parameters
    ----------
    prior
        Mean and variance of the log library size of each batch of `new_spec`, two of shape (b,), of which those of new
        batches are taken; without it they are 0 and 1.

    Notes
    -----
    scvi-tools 1.4.2 appends new columns at the end of a weight. With further covariates the columns of a batch are not
    the last: there the columns behind them come to belong to other categories. Here each covariate's stay its own.

    A covariate of which the reference knew one category had no column; that of this category is 0 here, and random in
    scvi-tools.
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
    """Put the weights of each category to the place it has in `extended`."""
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
    """Return first and last + 1 column of each covariate in the weight of a layer."""
    sizes = layers.n_cat_list if layer == 0 or layers.inject_covariates else []
    return list(pairwise(accumulate(sizes, initial=_linear(layers, layer).in_features - sum(sizes))))


def freeze(module: VAE, spec: ModelSpec) -> None:
    """Freeze what ``spec.lineage`` says: a network that is read back is trained on as it was.

    Parameters without a free entry no longer require a gradient. In ``module.frozen`` stands, for those with free and
    frozen entries, which are frozen; the training step puts these back. The network of a model that is no query stays
    as it is.
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
    """Hold the running statistics of some layers, or free scale and shift."""
    for at, norm in layers.named_modules():
        if not isinstance(norm, MicroBatchNorm):
            continue
        if hold:
            norm.momentum = 0.0
        else:
            for name in ("weight", "bias"):
                _free(frozen, f"{path}.{at}.{name}", ...)


def _free_columns(path: str, layers: FCLayers, n_known: Sequence[int], frozen: dict[str, Tensor]) -> None:
    """Free the columns of all categories of each covariate but the first `n_known`."""
    for i in range(len(layers.fc_layers)):
        for (low, high), known in zip(_columns(layers, i), n_known, strict=False):  # a layer may have no columns
            _free(frozen, f"{path}.{_weight_name(i)}", (slice(None), slice(min(low + known, high), high)))


def _open_layers(module: VAE, freezing: Freezing) -> list[str]:
    """Name the layers of which the first is trained whole."""
    parts = {"z_encoder": not freezing.freeze_expression, "decoder": not freezing.freeze_decoder_first_layer}
    return [
        path
        for path, layers in module.named_modules()
        if isinstance(layers, FCLayers) and parts.get(path.split(".", maxsplit=1)[0], False)
    ]


def _free(frozen: dict[str, Tensor], name: str, where: Any) -> None:
    """Let entries of a parameter move, if there is such a parameter and it is trained at all."""
    if name in frozen:
        frozen[name][where] = False


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
