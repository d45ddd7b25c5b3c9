"""A model on disk: the record of its options in JSON, its weights in safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor, nn

from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.storage.run_storage import RunStorage, open_run_storage

_WEIGHTS, _SPEC, _HISTORY = "weights.safetensors", "spec.json", "history.json"


def save_model(
    folder: Path | RunStorage,
    module: VAE,
    spec: ModelSpec,
    *,
    history: Mapping[str, Any] | None = None,
    is_trained: bool = True,
) -> None:
    """Write weights, specification and history, as plain values, to a folder, whole or not at all."""
    files = model_files(module, spec)
    files[_HISTORY] = json.dumps({"is_trained": is_trained, "history": history or {}}).encode()
    open_run_storage(folder).write_folder("", files)


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


def load_model(folder: Path | RunStorage) -> tuple[VAE, ModelSpec]:
    """Read a model folder. Its files hold numbers and text; nothing in them is executed.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the folder is damaged, or weights and specification do not belong together.
    """
    place = open_run_storage(folder)
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


def load_history(folder: Path | RunStorage) -> tuple[dict[str, Any], bool]:
    """Read the history in a model folder, as plain values, and whether the model is trained.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the folder is damaged.
    """
    found = json.loads(open_run_storage(folder).read_folder("").get(_HISTORY, b"{}"))
    return found.get("history", {}), found.get("is_trained", True)
