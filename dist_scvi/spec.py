"""What a trained model must know besides its weights, as JSON; and the folder that holds both."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from dist_scvi.loaders import CellData
from dist_scvi.loaders.columns import Categorical

from .config import ModelConfig
from .folder import read_folder, write_folder
from .vae import VAE

_WEIGHTS, _SPEC = "weights.safetensors", "spec.json"


class Covariate(BaseModel):
    """A categorical obs column and its categories in the order of their codes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    categories: tuple[str, ...]


class ModelSpec(BaseModel):
    """A model without its weights: the network, the genes in their order, the covariates and their categories."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: Literal["dist_scvi.model/1"] = "dist_scvi.model/1"
    model: ModelConfig
    seed: int = Field(ge=0, lt=1 << 63)
    layer: str | None
    var_names: tuple[str, ...]
    batch: Covariate | None
    label: Covariate | None
    categorical_covariates: tuple[Covariate, ...]
    continuous_covariates: tuple[str, ...]

    def build(self) -> VAE:
        """Make the network untrained; under one seed its weights are bit for bit those of scvi-tools."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return VAE(
                len(self.var_names),
                n_batch=len(self.batch.categories) if self.batch else 1,
                n_cats_per_cov=[len(covariate.categories) for covariate in self.categorical_covariates],
                n_continuous_cov=len(self.continuous_covariates),
                config=self.model,
            )


def spec_of(model: ModelConfig, seed: int, data: CellData) -> ModelSpec:
    """Describe the model `model` over the genes and covariates of `data`."""
    described = data.describe()
    known = {key: value for key, value in described.items() if key in ModelSpec.model_fields}
    return ModelSpec(model=model, seed=seed, **known)


def save_model(path: Path, module: VAE, spec: ModelSpec) -> None:
    """Write weights and specification to the folder `path`, whole or not at all."""
    write_folder(path, model_files(module, spec))


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


def load_model(path: Path) -> tuple[VAE, ModelSpec]:
    """Read a model folder. Its files hold numbers and text; nothing in them is executed.

    Raises
    ------
    ValueError
        If the folder is damaged, or weights and specification do not belong together.
    """
    files = read_folder(path)
    if not {_WEIGHTS, _SPEC} <= files.keys():
        raise ValueError(f"{path} is no model folder: {_WEIGHTS} and {_SPEC} are needed, it holds {', '.join(files)}")
    try:
        spec = ModelSpec.model_validate_json(files[_SPEC])
        weights = safetensors.torch.load(files[_WEIGHTS])
    except (ValidationError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise ValueError(f"the model in {path} cannot be read: {error}") from error
    module = spec.build()
    differ = differing_names(module, weights)
    if differ:
        raise ValueError(f"weights and specification in {path} do not fit each other: {', '.join(differ[:5])}")
    module.load_state_dict(weights)
    module.eval()
    return module, spec


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
        raise ValueError(f"the model was trained on {len(spec.var_names)} genes, {data.store.uri} {what}")
    keys = (
        tuple(column.key for column in data.categorical_covariates),
        tuple(c.key for c in data.continuous_covariates),
    )
    needed = (tuple(covariate.key for covariate in spec.categorical_covariates), spec.continuous_covariates)
    if keys != needed or (data.batch is None) != (spec.batch is None):
        raise ValueError(
            f"the model needs batch_key={spec.batch and spec.batch.key!r}, covariates {needed}; {data.store.uri} "
            f"was opened "
            f"with batch_key={data.batch and data.batch.key!r}, covariates {keys}"
        )
    return replace(
        data,
        batch=_recode(data.batch, spec.batch) if data.batch and spec.batch else None,
        categorical_covariates=tuple(
            _recode(column, covariate)
            for column, covariate in zip(data.categorical_covariates, spec.categorical_covariates, strict=True)
        ),
    )


def _recode(column: Categorical, covariate: Covariate) -> Categorical:
    unknown = [name for name in column.vocabulary if name not in covariate.categories]
    if unknown:
        raise ValueError(
            f"obs column '{column.key}' has {len(unknown)} categories the model was not trained on "
            f"({', '.join(unknown[:3])}): retrain, or leave these cells out"
        )
    lookup = {name: code for code, name in enumerate(covariate.categories)}
    to_model = np.array([lookup[name] for name in column.vocabulary], dtype=np.int32)
    return replace(column, vocabulary=covariate.categories, place=to_model[column.place])
