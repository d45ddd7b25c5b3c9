"""A model on disk: its specification in JSON, its weights in safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from dist_scvi.config.load import shorten
from dist_scvi.loaders.arrays.bounded_json import parse_json, parse_json_object
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.storage import atomic_files
from dist_scvi.storage.run_storage import RunStorage, open_run_storage

_WEIGHTS, _SPEC, _HISTORY, _SPLIT = "weights.safetensors", "spec.json", "history.json", "split.safetensors"


def save_model(
    folder: Path | RunStorage,
    module: VAE,
    spec: ModelSpec,
    *,
    history: Mapping[str, Any] | None = None,
    is_trained: bool = True,
    split: Mapping[str, NDArray[np.bool_]] | None = None,
    prefix: str = "",
) -> None:
    """Write weights, specification and history to a folder; after a failure, no partial model is left.

    Parameters
    ----------
    split
        Cells in ``train``, ``validation`` and ``test``, as masks over all cells.
    prefix
        Prefix of all file names; only for a folder on a disk.
    """
    files = model_files(module, spec)
    files[_HISTORY] = json.dumps({"is_trained": is_trained, "history": history or {}}).encode()
    if split:
        # A bit for each cell: row numbers of 10^8 cells would need 800 MB.
        packed = {name: np.packbits(mask_n) for name, mask_n in split.items()}
        n_cells = np.array([len(mask_n) for mask_n in split.values()][:1], dtype=np.int64)
        files[_SPLIT] = safetensors.numpy.save({**packed, "n_cells": n_cells})
    if prefix:
        atomic_files.write_folder(_on_disk(folder), files, prefix=prefix)
    else:
        open_run_storage(folder).write_folder("", files)


def has_model(folder: Path, prefix: str = "") -> bool:
    """Return whether `save_model` wrote a model with this prefix to the folder."""
    return {_SPEC, _WEIGHTS} <= atomic_files.written_names(folder, prefix=prefix)


def check_no_foreign_model_files(folder: Path, prefix: str = "") -> None:
    """Check that a folder has no files under the names of a model's files that `save_model` did not write.

    Raises
    ------
    FileExistsError
        If there is such a file.
    """
    atomic_files.check_no_foreign_files(folder, (_SPEC, _WEIGHTS, _HISTORY, _SPLIT), prefix=prefix)


def model_files(module: VAE, spec: ModelSpec) -> dict[str, bytes]:
    """Return the files of a model folder."""
    return {_WEIGHTS: pack_tensors(module.state_dict()), _SPEC: spec.model_dump_json(indent=1).encode()}


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Pack tensors of any device as safetensors."""
    return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def differing_names(module: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of weights that only one of `module` and `weights` has, or that differ in shape."""
    expected = {name: value.shape for name, value in module.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def load_model(folder: Path | RunStorage, *, prefix: str = "") -> tuple[VAE, ModelSpec]:
    """Read a model folder. Its files contain numbers and text; nothing in them is executed.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the folder is damaged, or weights and specification do not match.
    """
    files, where = _read_files(folder, prefix), _where(folder)
    if not {_WEIGHTS, _SPEC} <= files.keys():
        found = printable(", ".join(files))
        raise ValueError(f"{where} is no model folder: {_WEIGHTS} and {_SPEC} are needed, it holds {found}")
    try:
        spec = ModelSpec.model_validate(parse_json(files[_SPEC], _SPEC))
        weights = safetensors.torch.load(files[_WEIGHTS])
    except ValidationError as error:
        raise ValueError(f"the model in {where} cannot be read: {_first_error(error)}") from error
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"the model in {where} cannot be read: {printable(error)}") from error
    # Compared on the meta device, which allocates nothing: a damaged file may describe a network of a terabyte.
    with torch.device("meta"):
        differ = differing_names(spec.build(), weights)
    if differ:
        named = printable(", ".join(differ[:5]))
        raise ValueError(f"weights and specification in {where} do not fit each other: {named}")
    module = spec.build()
    module.load_state_dict(weights)
    module.eval()
    return module, spec


def load_history(folder: Path | RunStorage, *, prefix: str = "") -> tuple[dict[str, Any], bool]:
    """Read the history in a model folder, as plain values, and whether the model is trained.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the folder is damaged.
    """
    where = f"{_HISTORY} of {_where(folder)}"
    found = parse_json_object(_read_files(folder, prefix).get(_HISTORY, b"{}"), where)
    history, is_trained = found.get("history", {}), found.get("is_trained", True)
    if not isinstance(history, dict) or not isinstance(is_trained, bool):
        raise ValueError(f"{where} lacks history or is_trained: it is damaged, restore it from a copy")  # noqa: TRY004
    return history, is_trained


def load_split(folder: Path | RunStorage, *, prefix: str = "") -> dict[str, NDArray[np.bool_]]:
    """Read the masks of cells in ``train``, ``validation`` and ``test``; empty if no split was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the folder is damaged.
    """
    content, where = _read_files(folder, prefix).get(_SPLIT), f"{_SPLIT} of {_where(folder)}"
    if content is None:
        return {}
    try:
        packed = safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{where} cannot be read: {printable(error)}") from error
    n_cells = int(packed.pop("n_cells", np.zeros(1, np.int64)).ravel()[:1].sum())
    for bits_n in packed.values():
        if bits_n.dtype != np.uint8 or bits_n.shape != (-(-n_cells // 8),):
            raise ValueError(f"{where} holds {bits_n.shape} {bits_n.dtype} for {n_cells} cells: it is damaged")
    return {name: np.unpackbits(bits_n, count=n_cells).astype(bool) for name, bits_n in packed.items()}


def _first_error(error: ValidationError) -> str:
    """Describe the first error in one line; the message of pydantic has several."""
    first = error.errors()[0]
    return f"{_SPEC} at {printable('.'.join(map(str, first['loc'])))}: {first['msg']}, found {shorten(first['input'])}"


def _read_files(folder: Path | RunStorage, prefix: str) -> dict[str, bytes]:
    """Read the files of a model; keys are names without the prefix."""
    if not prefix:
        return open_run_storage(folder).read_folder("")
    return atomic_files.read_folder(_on_disk(folder), prefix=prefix)


def _where(folder: Path | RunStorage) -> str:
    return open_run_storage(folder).uri


def _on_disk(folder: Path | RunStorage) -> Path:
    if not isinstance(folder, Path):
        raise ValueError(f"prefix= is for a folder on a disk: {folder.uri} has none")  # noqa: TRY004
    return folder
