"""Checkpoints of a run: written whole or not at all, verified before use, the newest good one wins."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dist_scvi.loaders import CellData, Plan

from .config import RunConfig
from .folder import DamagedFolderError, read_folder, write_folder
from .spec import differing_names, pack_tensors

log = logging.getLogger(__name__)

_FREE_KEYS = {
    "run",
    "data.uri",
    "data.timeout_s",
    "data.memory_mib",
    "data.storage_options",
    "train.max_epochs",
    "train.check_val_every_n_epoch",
    "train.early_stopping",
    "train.early_stopping_min_delta",
    "train.early_stopping_patience",
    "train.early_stopping_warmup_epochs",
    "train.save_every_n_steps",
    "train.keep_checkpoints",
    "train.log_every_n_steps",
    "train.collective_timeout_s",
}
"""Keys that may change when a run is resumed: they change neither the order of cells nor the maths."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    """Position (``epoch`` and ``step`` to do next), configuration, fingerprint of the data, and what else is kept."""


def save_checkpoint(
    folder: Path,
    *,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    step: int,
    steps_per_epoch: int,
    config: RunConfig,
    data: dict[str, Any],
    kept: Mapping[str, Any] | None = None,
) -> Path:
    """Write the state of training before (`epoch`, `step`), then drop all but the newest ``train.keep_checkpoints``.

    `kept` are further plain values that training goes on from.
    """
    path = folder / f"step-{epoch * steps_per_epoch + step:010d}"
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    moments = {
        f"{names[id(parameter)]}/{key}": value
        for parameter, slots in optimizer.state.items()
        for key, value in slots.items()
    }
    state = {**(kept or {}), "epoch": epoch, "step": step, "config": config.model_dump(mode="json"), "data": data}
    write_folder(
        path,
        {
            "model.safetensors": pack_tensors(module.state_dict()),
            "optimizer.safetensors": pack_tensors(moments),
            "state.json": json.dumps(state, indent=1).encode(),
        },
    )
    for old in _newest_first(folder)[config.train.keep_checkpoints :]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint that verifies, or None if there has never been one.

    A damaged one is set aside under a name that begins with ``damaged-``.

    Raises
    ------
    ValueError
        If there are checkpoints and none verifies: starting afresh would silently lose a run.
    """
    damaged = list(folder.glob("damaged-*"))
    for path in _newest_first(folder):
        try:
            files = read_folder(path)
            return Checkpoint(
                path,
                safetensors.torch.load(files["model.safetensors"]),
                safetensors.torch.load(files["optimizer.safetensors"]),
                _state(files["state.json"]),
            )
        except (ValueError, KeyError, RecursionError, safetensors.SafetensorError) as error:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            damaged.append(aside)
            log.warning("set aside %s: %s", aside, error)
    if damaged:
        raise ValueError(
            f"no checkpoint in {folder} verifies ({len(damaged)} damaged): restore one from a copy, or train into a "
            f"new "
            "folder with run=PATH"
        )
    return None


def _state(content: bytes) -> dict[str, Any]:
    state = json.loads(content)
    kinds = {"epoch": int, "step": int, "config": dict, "data": dict}
    if not isinstance(state, dict) or any(not isinstance(state.get(key), kind) for key, kind in kinds.items()):
        raise DamagedFolderError(f"state.json does not hold {', '.join(kinds)}")
    return state


def restore(checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer state back, or change nothing.

    Raises
    ------
    ValueError
        If names or shapes are not those of the model.
    """
    names = differing_names(module, checkpoint.weights)
    if names:
        raise ValueError(f"{checkpoint.path} holds another model: {', '.join(names[:5])} differ in name or shape")
    parameters = dict(module.named_parameters())
    for name, value in checkpoint.optimizer.items():
        owner, _, key = name.rpartition("/")
        if owner not in parameters or (key != "step" and value.shape != parameters[owner].shape):
            raise ValueError(
                f"{checkpoint.path} holds optimizer state {name} of shape {tuple(value.shape)}: no such weight"
            )
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    needed = {name for name, parameter in parameters.items() if id(parameter) in optimized}
    lacking = sorted(needed - {name.rpartition("/")[0] for name in checkpoint.optimizer})
    if lacking and checkpoint.optimizer:
        raise ValueError(f"{checkpoint.path} lacks the optimizer state of {', '.join(lacking[:5])}")
    module.load_state_dict(checkpoint.weights)
    for name, value in checkpoint.optimizer.items():
        owner, _, key = name.rpartition("/")
        # The fused Adam keeps its step beside the parameter.
        optimizer.state[parameters[owner]][key] = value.to(parameters[owner].device)


def fingerprint(data: CellData, plan: Plan | None = None, labelled: Plan | None = None) -> dict[str, Any]:
    """Describe the data of a run in a few values that a checkpoint can be compared by.

    With the plans, these change with the obs columns that say which cells are drawn, and how often.
    """
    described = data.describe()
    names = "\n".join(described.pop("var_names"))
    return {
        **described,
        "n_genes": data.n_genes,
        "var_names_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "drawn": plan.line.digest if plan and plan.line else None,
        "labelled": labelled.line.digest if labelled and labelled.line else None,
    }


def check_same_run(checkpoint: Checkpoint, config: RunConfig, data: dict[str, Any]) -> None:
    """Refuse to resume with a configuration or data that would give another result.

    Raises
    ------
    ValueError
        With every difference, key by key.
    """
    before = _flat({"config": checkpoint.state["config"], "data": checkpoint.state["data"]})
    now = _flat({"config": config.model_dump(mode="json"), "data": data})
    free = {f"config.{key}" for key in _FREE_KEYS}
    if config.train.reduce_lr_on_plateau:
        free.remove("config.train.check_val_every_n_epoch")
    differences = [
        f"{key.removeprefix('config.')} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if key not in free and before.get(key) != now.get(key)
    ]
    if differences:
        raise ValueError(
            f"{checkpoint.path} belongs to another run: {'; '.join(differences[:8])}; undo the change, go on "
            "with 'dist-scvi resume', which keeps what is recorded, or train into a new folder with run=PATH"
        )


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
