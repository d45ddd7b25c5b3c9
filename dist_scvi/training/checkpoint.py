"""Checkpoints of a run: written completely or not at all, and verified before use. The newest valid one is used."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dist_scvi.config.load import shorten
from dist_scvi.config.schema import RunConfig
from dist_scvi.loaders import CellData, Plan
from dist_scvi.loaders.arrays.bounded_json import parse_json_object
from dist_scvi.loaders.fingerprint import content_digest
from dist_scvi.metrics.run_record import DAMAGED, INCOMPLETE, STEP, newest_first
from dist_scvi.network.model_files import differing_names, pack_tensors
from dist_scvi.storage.folder_manifest import DamagedFolderError, IncompleteFolderError
from dist_scvi.storage.run_storage import RunStorage

log = logging.getLogger(__name__)

_FILES = {"model.safetensors", "optimizer.safetensors", "state.json"}
_EXPLAINED = {"data.content": " (digest of counts, obs columns and names of cells)"}
_PACKAGES, _TOLERATED = ("dist_scvi", "numpy", "torch"), ("numpy", "torch")
_FREE_KEYS = {
    "run",
    "storage_options",
    "logger",
    "logger_options",
    "data.uri",
    "data.timeout_s",
    "data.memory_mib",
    "data.storage_options",
    "train.max_epochs",
    "train.max_steps",
    "train.strict_versions",
    "train.check_val_every_n_epoch",
    "train.early_stopping",
    "train.early_stopping_min_delta",
    "train.early_stopping_patience",
    "train.early_stopping_warmup_epochs",
    "train.save_every_n_steps",
    "train.save_every_n_minutes",
    "train.keep_checkpoints",
    "train.log_every_n_steps",
    "train.collective_timeout_s",
}
"""Keys that may change on resume: they affect neither the order of cells nor the maths."""


_MAY_BE_ALLOWED = (
    *("config.train.lr", "config.train.eps", "config.train.weight_decay", "config.train.optimizer"),
    *("config.train.gradient_clip_val", "config.train.gradient_accumulation_steps"),
    *("config.train.gradient_compression", "config.train.precision", "config.train.batch_norm"),
    "config.train.classification_ratio",
    *("config.train.n_steps_kl_warmup", "config.train.n_epochs_kl_warmup"),
    *("config.train.max_kl_weight", "config.train.min_kl_weight"),
    *("config.train.reduce_lr_on_plateau", "config.train.lr_factor", "config.train.lr_patience"),
    *("config.train.lr_threshold", "config.train.lr_scheduler_metric", "config.train.lr_min"),
    *("config.train.early_stopping_monitor", "config.train.early_stopping_mode", "config.train.load_best"),
    *("config.data.layer", "data.n_entries", "data.layer", "data.content"),
    *("versions.dist_scvi", "versions.numpy", "versions.torch"),
)
"""What ``--allow`` accepts on resume: it changes the result, but neither the order of cells nor the network."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    name: str
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    """Position (next ``epoch`` and ``step``), configuration, fingerprint of the data, versions of packages, and all
    else that `RunState` and the meter keep."""


def checkpoint_files(module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, bytes]:
    """Return a copy of the state of training, so that training continues while it is written.

    Parameters
    ----------
    state
        Plain values: next ``epoch`` and ``step``, ``config``, the ``data`` as `fingerprint` describes them, and the
        rest of the state from which training resumes.
    """
    # By name and not by position, as in the state_dict of torch: `restore` can then check each entry.
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    moments = {
        f"{names[id(parameter)]}/{key}": value
        for parameter, slots in optimizer.state.items()
        for key, value in slots.items()
    }
    versions = {name: version(name) for name in _PACKAGES}
    return {
        "model.safetensors": pack_tensors(module.state_dict()),
        "optimizer.safetensors": pack_tensors(moments),
        "state.json": json.dumps({**state, "versions": versions}, indent=1).encode(),
    }


def write_checkpoint(place: RunStorage, done: int, files: Mapping[str, bytes], *, keep: int) -> None:
    """Write the result of `checkpoint_files` after `done` steps, then remove all but the newest `keep`."""
    # In this order: if writing fails or the process is killed, the older checkpoints are still there.
    place.write_folder(f"{STEP}{done:010d}", files)
    for old in newest_first(place)[keep:]:
        place.remove(old)


def newest_checkpoint(place: RunStorage, *, mend: bool = True) -> Checkpoint | None:
    """Return the newest valid checkpoint, or None if there is none and no damaged one either.

    Parameters
    ----------
    mend
        Rename invalid ones to a name that begins with ``damaged-`` or ``incomplete-``. Only the writer of a run may do
        this: to another process, a checkpoint that is being written looks incomplete.

    Raises
    ------
    ValueError
        If there are checkpoints and none is valid: starting from the beginning would silently lose a run.
    """
    damaged = [name for name in place.names() if name.startswith(DAMAGED)]
    for name in newest_first(place):
        try:
            files = place.read_folder(name)
            lacking = sorted(_FILES - files.keys())
            if lacking:
                raise DamagedFolderError(f"{place.uri}/{name} does not hold {', '.join(lacking)}")
            return Checkpoint(
                name,
                safetensors.torch.load(files["model.safetensors"]),
                safetensors.torch.load(files["optimizer.safetensors"]),
                _parse_state(files["state.json"]),
            )
        # An OSError is not caught: where storage fails for a moment, a good checkpoint must not be set aside.
        except IncompleteFolderError as error:  # a save to object storage that was killed: no checkpoint is lost
            _set_aside(place, name, INCOMPLETE, error, mend=mend)
        except (ValueError, safetensors.SafetensorError) as error:
            damaged.append(name)
            _set_aside(place, name, DAMAGED, error, mend=mend)
    if damaged:
        raise ValueError(
            f"no checkpoint in {place.uri} verifies ({len(damaged)} damaged): restore one from a copy, train into a "
            "new folder with run=PATH, or start from the beginning with --allow-fresh"
        )
    return None


def _set_aside(place: RunStorage, name: str, mark: str, error: Exception, *, mend: bool) -> None:
    if mend:
        place.rename(name, f"{mark}{name}")
        log.warning("set aside %s/%s%s: %s", place.uri, mark, name, error)


def _parse_state(content: bytes) -> dict[str, Any]:
    state = parse_json_object(content, "state.json")
    kinds = {"epoch": int, "step": int, "config": dict, "data": dict}
    if any(not isinstance(state.get(key), kind) for key, kind in kinds.items()):
        raise DamagedFolderError(f"state.json does not hold {', '.join(kinds)}")
    return state


def restore(checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimizer state, or change nothing.

    Raises
    ------
    ValueError
        If names or shapes are not those of the model.
    """
    # All checks precede the first change.
    names = differing_names(module, checkpoint.weights)
    if names:
        raise ValueError(f"{checkpoint.name} holds another model: {', '.join(names[:5])} differ in name or shape")
    parameters = dict(module.named_parameters())
    for name, value in checkpoint.optimizer.items():
        owner, _, key = name.rpartition("/")
        if owner not in parameters or (key != "step" and value.shape != parameters[owner].shape):
            raise ValueError(
                f"{checkpoint.name} holds optimizer state {name} of shape {tuple(value.shape)}: no such weight"
            )
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    needed = {name for name, parameter in parameters.items() if id(parameter) in optimized}
    lacking = sorted(needed - {name.rpartition("/")[0] for name in checkpoint.optimizer})
    if lacking and checkpoint.optimizer:
        raise ValueError(f"{checkpoint.name} lacks the optimizer state of {', '.join(lacking[:5])}")
    module.load_state_dict(checkpoint.weights)
    for name, value in checkpoint.optimizer.items():
        owner, _, key = name.rpartition("/")
        # The fused Adam has its step count on the device of the parameter, unlike the other implementations.
        optimizer.state[parameters[owner]][key] = value.to(parameters[owner].device)


def fingerprint(data: CellData, plan: Plan | None = None, labelled: Plan | None = None) -> dict[str, Any]:
    """Return values by which a checkpoint is compared with the data.

    With plans given, they include digests of the obs columns that decide which cells are drawn, and how often.
    """
    described = data.describe()
    names = "\n".join(described.pop("var_names"))
    return {
        **described,
        "n_genes": data.n_genes,
        "content": content_digest(data),
        "var_names_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "drawn": plan.line.digest if plan and plan.line else None,
        "labelled": labelled.line.digest if labelled and labelled.line else None,
    }


def check_same_run(
    checkpoint: Checkpoint, config: RunConfig, data: dict[str, Any], *, allowed: Sequence[str] = ()
) -> None:
    """Refuse to resume with a configuration, data or packages that would give another result.

    Parameters
    ----------
    allowed
        Intended differences, by their names in the error message.

    Raises
    ------
    ValueError
        If there are differences; the message lists the keys, and which of them may be allowed. Other versions of torch
        and numpy with the same major number only log a warning, unless ``train.strict_versions`` is set.
    """
    versions = {name: version(name) for name in checkpoint.state.get("versions", {})}
    before = _flat({key: checkpoint.state.get(key, {}) for key in ("config", "data", "versions")})
    if "content" not in checkpoint.state.get("data", {}):  # saved by a version without a digest of the content
        data = {key: value for key, value in data.items() if key != "content"}
    now = _flat({"config": config.model_dump(mode="json"), "data": data, "versions": versions})
    for key in now.keys() - before.keys():
        if key.startswith("config."):  # a key that was added after the version that saved the checkpoint
            before[key] = now[key]
    if not config.train.strict_versions:
        _accept_versions(checkpoint.name, before, now)
    free = {f"config.{key}" for key in _FREE_KEYS}
    # The schedule counts validations, so that their frequency then changes the learning rate.
    if config.train.reduce_lr_on_plateau:
        free.remove("config.train.check_val_every_n_epoch")
    _check_allowed(allowed)
    free |= {key for key in _MAY_BE_ALLOWED if key.removeprefix("config.") in allowed}
    differing = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not any(f"{key}.".startswith(f"{name}.") for name in free)
    )
    if not differing:
        return
    names = [key.removeprefix("config.") + _EXPLAINED.get(key, "") for key in differing[:8]]
    differences = "; ".join(
        f"{name} was {shorten(before.get(key))}, is {shorten(now.get(key))}"
        for name, key in zip(names, differing, strict=False)
    )
    named = [key.removeprefix("config.") for key in differing if key in _MAY_BE_ALLOWED]
    allow = f", allow it with --allow {','.join(named)}" if len(named) == len(differing) else ""
    raise ValueError(
        f"{checkpoint.name} belongs to another run: {differences}; undo the change, use 'dist-scvi resume', which "
        f"keeps what is recorded{allow}, or train into a new folder with run=PATH"
    )


def _accept_versions(name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Treat versions of the same major number as equal, with a warning: at most, their results differ in rounding."""
    for key in (f"versions.{package}" for package in _TOLERATED):
        saved, found = str(before.get(key)), str(now.get(key))
        if saved != found and saved.partition(".")[0] == found.partition(".")[0]:
            log.warning(
                "%s was written with %s %s, this is %s: the run goes on, but may differ in rounding from one that was "
                "never interrupted; train.strict_versions=true refuses this",
                *(name, key.removeprefix("versions."), saved, found),
            )
            before[key] = now[key]


def _check_allowed(allowed: Sequence[str]) -> None:
    known = [key.removeprefix("config.") for key in _MAY_BE_ALLOWED]
    strange = [key for key in allowed if key not in known]
    if strange:
        raise ValueError(f"{', '.join(strange)} cannot be allowed to change in a run: {', '.join(known)} can")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
