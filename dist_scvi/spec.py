"""What a trained model must know besides its weights, as JSON; and the folder that holds both."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from dist_scvi.config import ModelConfig
from dist_scvi.loaders import CellData
from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.columns import Categorical
from dist_scvi.loaders.data import open_data, without_category
from dist_scvi.loaders.open import open_store
from dist_scvi.places import Place, open_place
from dist_scvi.scanvae import SCANVAE
from dist_scvi.vae import LDVAE, VAE

_WEIGHTS, _SPEC, _HISTORY = "weights.safetensors", "spec.json", "history.json"


class Covariate(BaseModel):
    """A categorical obs column and its categories in the order of their codes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    categories: tuple[str, ...]


class ModelSpec(BaseModel):
    """A model without its weights: the network, the genes in their order, the covariates and their categories."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: Literal["dist_scvi.model/1", "dist_scvi.model/2"] = "dist_scvi.model/2"
    model: ModelConfig
    seed: int = Field(ge=0, lt=1 << 63)
    layer: str | None
    var_names: tuple[str, ...]
    batch: Covariate | None
    label: Covariate | None
    """The labels that cells may have; the unlabeled category is none of them."""
    unlabeled_category: str | None = None
    size_factor_key: str | None = None
    categorical_covariates: tuple[Covariate, ...]
    continuous_covariates: tuple[str, ...]
    lineage: dict[str, Any] = {}
    """Where the weights come from: the model they were taken over from, the version that wrote them."""

    @property
    def n_batch(self) -> int:
        """Categories of the batch covariate."""
        return len(self.batch.categories) if self.batch else 1

    @property
    def n_labels(self) -> int:
        """Labels that cells may have."""
        return len(self.label.categories) if self.label else 1

    @property
    def own_library(self) -> bool:
        """Whether shares are multiplied by something else than the total count."""
        return self.size_factor_key is not None or not self.model.use_observed_lib_size

    @property
    def decodes_labels(self) -> bool:
        """Whether decoding takes the label of a cell."""
        return self.label is not None and self.model.dispersion == "gene-label"

    def build(self) -> VAE:
        """Make the network untrained; under one seed its weights are bit for bit those of scvi-tools.

        The prior of a latent library size is yet to be set; see `set_library_prior`.
        """
        kinds: dict[str, type[VAE]] = {"SCVI": VAE, "SCANVI": SCANVAE, "LinearSCVI": LDVAE}
        with torch.random.fork_rng(devices=[]):
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
        If the model does not fit the data: SCANVI without two labels, LinearSCVI with covariates.
    """
    described = data.describe()
    known = {key: value for key, value in described.items() if key in ModelSpec.model_fields}
    spec = ModelSpec(model=model, seed=seed, **known)
    if model.model_name == "SCANVI":
        _check_labels(spec)
    covariates = [*(column.key for column in spec.categorical_covariates), *spec.continuous_covariates]
    if model.model_name == "LinearSCVI" and (covariates or spec.size_factor_key):
        raise ValueError(f"LinearSCVI has no covariate but the batch: leave out {covariates or spec.size_factor_key}")
    return spec


_NO_LABELS = {"unknown", "unlabeled", "unlabelled", "unassigned", "unannotated", "na", "n/a", "nan", "none", ""}


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


def save_model(
    folder: Path | Place,
    module: VAE,
    spec: ModelSpec,
    *,
    history: Mapping[str, Any] | None = None,
    is_trained: bool = True,
) -> None:
    """Write weights, specification and history, as plain values, to a folder, whole or not at all."""
    files = model_files(module, spec)
    files[_HISTORY] = json.dumps({"is_trained": is_trained, "history": history or {}}).encode()
    open_place(folder).write_folder("", files)


def model_files(module: VAE, spec: ModelSpec) -> dict[str, bytes]:
    """Give the files of a model folder."""
    return {_WEIGHTS: pack_tensors(module.state_dict()), _SPEC: spec.model_dump_json(indent=1).encode()}


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Pack tensors of any device as safetensors."""
    return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def differing_names(module: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Name the weights that `module` and `weights` do not share, or hold in different shapes."""
    expected = {name: value.shape for name, value in module.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def load_model(folder: Path | Place) -> tuple[VAE, ModelSpec]:
    """Read a model folder. Its files hold numbers and text; nothing in them is executed.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the folder is damaged, or weights and specification do not belong together.
    """
    place = open_place(folder)
    files, where = place.read_folder(""), place.uri
    if not {_WEIGHTS, _SPEC} <= files.keys():
        raise ValueError(f"{where} is no model folder: {_WEIGHTS} and {_SPEC} are needed, it holds {', '.join(files)}")
    try:
        spec = ModelSpec.model_validate_json(files[_SPEC])
        weights = safetensors.torch.load(files[_WEIGHTS])
    except (ValidationError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise ValueError(f"the model in {where} cannot be read: {error}") from error
    module = spec.build()
    differ = differing_names(module, weights)
    if differ:
        raise ValueError(f"weights and specification in {where} do not fit each other: {', '.join(differ[:5])}")
    module.load_state_dict(weights)
    module.eval()
    return module, spec


def load_history(folder: Path | Place) -> tuple[dict[str, Any], bool]:
    """Read the history in a model folder, as plain values, and whether the model is trained.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the folder is damaged.
    """
    found = json.loads(open_place(folder).read_folder("").get(_HISTORY, b"{}"))
    return found.get("history", {}), found.get("is_trained", True)


def open_for(source: Any, spec: ModelSpec) -> CellData:
    """Open an AnnData or a store as a model needs it, its genes in any order.

    Raises
    ------
    ValueError
        If genes, columns or categories are missing, or there are categories that the model was not trained on.
    """
    store = source if isinstance(source, CellStore) else open_store(source, layer=spec.layer)
    if tuple(store.var_names) != spec.var_names and set(spec.var_names) <= set(store.var_names):
        store = open_store(source, layer=spec.layer, genes=spec.var_names)
    labelled = spec.label is not None and spec.label.key in store.obs_columns()
    data = open_data(
        store,
        batch_key=spec.batch.key if spec.batch else None,
        labels_key=spec.label.key if spec.label and labelled else None,
        unlabeled_category=spec.unlabeled_category if labelled else None,
        size_factor_key=spec.size_factor_key,
        categorical_covariate_keys=[covariate.key for covariate in spec.categorical_covariates],
        continuous_covariate_keys=spec.continuous_covariates,
    )
    return fit_to_spec(data, spec)


def fit_to_spec(data: CellData, spec: ModelSpec) -> CellData:
    """Give the cells of `data` the codes that the model was trained with.

    Raises
    ------
    ValueError
        If genes differ, a covariate is missing, or has categories the model was not trained on.
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
    """Refuse data that was opened without what the model needs."""
    found: dict[str, Any] = {
        "batch_key": data.batch.key if data.batch else None,
        "size_factor_key": data.size_factor.key if data.size_factor else None,
        "categorical_covariate_keys": tuple(column.key for column in data.categorical_covariates),
        "continuous_covariate_keys": tuple(column.key for column in data.continuous_covariates),
    }
    needed: dict[str, Any] = {
        "batch_key": spec.batch.key if spec.batch else None,
        "size_factor_key": spec.size_factor_key,
        "categorical_covariate_keys": tuple(covariate.key for covariate in spec.categorical_covariates),
        "continuous_covariate_keys": spec.continuous_covariates,
    }
    if spec.decodes_labels and spec.model.model_name == "SCVI":
        found["labels_key"], needed["labels_key"] = data.label and data.label.key, spec.label and spec.label.key
    differ = [f"{key}={needed[key]!r} (found {found[key]!r})" for key in needed if found[key] != needed[key]]
    if differ:
        raise ValueError(f"{data.store.uri} was not opened as the model needs it: open it with {', '.join(differ)}")


def _labels(data: CellData, spec: ModelSpec) -> Categorical | None:
    """Give the labels the codes of the model; to SCANVI, cells of which none are known are unlabelled."""
    if spec.label is None or (data.label is None and spec.model.model_name != "SCANVI"):
        return data.label
    if data.label is None:
        nothing = np.broadcast_to(np.int8(0), (data.n_cells,))
        return Categorical(spec.label.key, spec.label.categories, nothing, np.array([-1], dtype=np.int32))
    column = data.label
    if spec.unlabeled_category is not None:
        column = without_category(column, spec.unlabeled_category)
    return recode(column, spec.label)


def recode(column: Categorical, covariate: Covariate) -> Categorical:
    """Give the categories of `column` the codes that the model knows them by."""
    unknown = [name for name in column.vocabulary if name not in covariate.categories]
    if unknown:
        raise ValueError(
            f"obs column '{column.key}' has {len(unknown)} categories that the model was not trained on "
            f"({', '.join(unknown[:10])}{', ...' * (len(unknown) > 10)}): extend the model by load_query_data, "
            f"retrain, or leave these cells out; it knows {', '.join(covariate.categories[:10])}"
        )
    lookup = {name: code for code, name in enumerate(covariate.categories)}
    to_model = np.array([*(lookup[name] for name in column.vocabulary), -1], dtype=np.int32)
    return replace(column, vocabulary=covariate.categories, place=to_model[column.place])
