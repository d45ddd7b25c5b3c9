"""The specification of a model: everything but its weights, as JSON."""

from typing import Any, Literal, Self

import torch
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders import CellData
from dist_scvi.loaders.arrays.obs_columns import Categorical, typed_categories
from dist_scvi.loaders.data import ColumnKeys
from dist_scvi.network.ldvae import LDVAE
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.network.vae import VAE


class Covariate(BaseModel):
    """A categorical obs column and its categories in the order of their codes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    categories: tuple[str, ...]
    dtype: str = Field("str", pattern=r"^(str|bool|u?int(8|16|32|64)|float(16|32|64))$")
    """NumPy type that the categories have in obs. `categories` holds their names as text for every type."""

    def values(self) -> NDArray[Any]:
        """Return the categories in the type that they have in obs, in the order of their codes."""
        return typed_categories(self.categories, self.dtype)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.dtype != "str":
            self.values()  # raises a ValueError if a category is not a number of this type
        return self

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a type of text: files of models without numeric categories stay readable by earlier versions."""
        written: dict[str, Any] = serialize(self)
        return {key: value for key, value in written.items() if (key, value) != ("dtype", "str")}


class ModelSpec(BaseModel):
    """A model without its weights: the network, the genes in order, the covariates and their categories."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: Literal["dist_scvi.model/1", "dist_scvi.model/2"] = "dist_scvi.model/2"
    model: ModelConfig
    seed: int = Field(ge=0, lt=1 << 63)
    layer: str | None
    var_names: tuple[str, ...]
    batch: Covariate | None
    label: Covariate | None
    """The labels that cells may have, without the unlabeled category."""
    unlabeled_category: str | None = None
    size_factor_key: str | None = None
    categorical_covariates: tuple[Covariate, ...]
    continuous_covariates: tuple[str, ...]
    lineage: dict[str, Any] = {}
    """Origin of the weights: the model that they were initialized from, the version that wrote them."""

    @property
    def keys(self) -> ColumnKeys:
        """The obs columns that the model was set up with."""
        return ColumnKeys(
            self.batch.key if self.batch else None,
            self.label.key if self.label else None,
            self.unlabeled_category,
            self.size_factor_key,
            tuple(covariate.key for covariate in self.categorical_covariates),
            self.continuous_covariates,
        )

    @property
    def n_batch(self) -> int:
        """Number of categories of the batch covariate."""
        return len(self.batch.categories) if self.batch else 1

    @property
    def n_labels(self) -> int:
        """Number of labels that cells may have."""
        return len(self.label.categories) if self.label else 1

    @property
    def own_library(self) -> bool:
        """Whether shares are multiplied by a factor other than the total count."""
        return self.size_factor_key is not None or not self.model.use_observed_lib_size

    @property
    def decodes_labels(self) -> bool:
        """Whether decoding depends on the label of a cell."""
        return self.label is not None and self.model.dispersion == "gene-label"

    def build(self) -> VAE:
        """Build the untrained network; with the same seed, its weights are bit for bit those of scvi-tools.

        The prior of a latent library size is not set; see `set_library_prior`.
        """
        kinds: dict[str, type[VAE]] = {"SCVI": VAE, "SCANVI": SCANVAE, "LinearSCVI": LDVAE}
        with torch.random.fork_rng(devices=[]):  # the caller's generator is not changed
            torch.manual_seed(self.seed)
            return kinds[self.model.model_name](
                len(self.var_names),
                n_batch=self.n_batch,
                n_labels=self.n_labels,
                n_cats_per_cov=[len(covariate.categories) for covariate in self.categorical_covariates],
                n_continuous_cov=len(self.continuous_covariates),
                use_size_factor=self.size_factor_key is not None,
                config=self.model,
            )


def spec_of(model: ModelConfig, seed: int, data: CellData) -> ModelSpec:
    """Describe the model `model` over the genes and covariates of `data`.

    Raises
    ------
    ValueError
        If the model does not fit the data: SCANVI with fewer than two labels, LinearSCVI with covariates.
    """
    described = data.describe()
    known = {key: value for key, value in described.items() if key in ModelSpec.model_fields} | {
        "batch": _covariate_of(data.batch),
        "label": _covariate_of(data.label),
        "categorical_covariates": tuple(map(_covariate_of, data.categorical_covariates)),
    }
    spec = ModelSpec(model=model, seed=seed, **known)
    if model.model_name == "SCANVI":
        _check_labels(spec)
    covariates = [*spec.keys.categorical_covariate_keys, *spec.continuous_covariates]
    if model.model_name == "LinearSCVI" and (covariates or spec.size_factor_key):
        raise ValueError(f"LinearSCVI has no covariate but the batch: leave out {covariates or spec.size_factor_key}")
    return spec


def _covariate_of(column: Categorical | None) -> Covariate | None:
    return None if column is None else Covariate(key=column.key, categories=column.vocabulary, dtype=column.dtype)


_NO_LABELS = {"unknown", "unlabeled", "unlabelled", "unassigned", "unannotated", "na", "n/a", "nan", "none", ""}
"""Names that usually mark cells without a label. Without an unlabeled category, SCANVI would learn them as a label."""


def _check_labels(spec: ModelSpec) -> None:
    if spec.label is None:
        raise ValueError("SCANVI learns labels: name their obs column as labels_key")
    key, found = spec.label.key, spec.label.categories
    if len(found) < 2:
        raise ValueError(
            f"obs column '{key}' has {len(found)} label{'s' * (len(found) != 1)} besides {spec.unlabeled_category!r} "
            f"({', '.join(found) or 'all cells are unlabelled'}): SCANVI needs two or more, choose another labels_key"
        )
    suspect = [name for name in found if name.casefold() in _NO_LABELS]
    if spec.unlabeled_category is None and suspect:
        raise ValueError(
            f"obs column '{key}' has a label {suspect[0]!r}: name it as unlabeled_category if it stands for none; if "
            "it is one to be learnt, give another unlabeled_category, such as 'none at all'"
        )
    if spec.model.y_prior is not None and len(spec.model.y_prior) != len(found):
        raise ValueError(f"y_prior has {len(spec.model.y_prior)} probabilities: {len(found)} labels are in '{key}'")
