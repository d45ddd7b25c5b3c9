"""Arguments that scvi-tools passes to the Trainer of Lightning: used, without effect here, or refused by name."""

from collections.abc import Mapping
from typing import Any

from dist_scvi.config.load import shorten

USED = (
    *("early_stopping_monitor", "early_stopping_min_delta", "early_stopping_patience", "early_stopping_mode"),
    *("early_stopping_warmup_epochs", "gradient_clip_val", "log_every_n_steps", "precision"),
)
"""Keys of `TrainConfig`."""
_PRECISIONS: dict[int | str | None, str] = {
    **dict.fromkeys((None, 32, "32", "32-true"), "32-true"),
    **dict.fromkeys(("bf16-mixed", "bf16"), "bf16-mixed"),
}
"""The precisions of Lightning that `TrainConfig` has, and their older names."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "shuffle_set_split": (True,),
    "load_sparse_tensor": (False, True),  # counts are always sparse on their way to the device
    "datasplitter_kwargs": (None, {}),
    "datamodule": (None,),
    "plan_config": (None, {}),
    "trainer_config": (None, {}),
    "adversarial_classifier": (None, False),
    "callbacks": (None, []),
    "logger": (None, False),
    "enable_checkpointing": (False, None),
    "num_sanity_val_steps": (0, None),
    "enable_model_summary": (True, False, None),
    "simple_progress_bar": (True, False),
    "benchmark": (True, False, None),
    "deterministic": (True, False, None),
    "inference_mode": (True, False),
    "max_steps": (-1, None),
    "min_steps": (None,),
    "min_epochs": (None,),
    "max_time": (None,),
    "limit_train_batches": (1.0, None),
    "limit_val_batches": (1.0, None),
    "limit_test_batches": (1.0, None),
    "overfit_batches": (0.0, 0),
    "accumulate_grad_batches": (1,),
    "gradient_clip_algorithm": (None, "norm"),
    "fast_dev_run": (False,),
    "num_nodes": (1,),
    "sync_batchnorm": (False,),
    "profiler": (None,),
    "plugins": (None, []),
    "detect_anomaly": (False,),
    "use_distributed_sampler": (True, False),
    "reload_dataloaders_every_n_epochs": (0,),
}
"""Arguments of scvi-tools and of Lightning 2.6, with the values that would change nothing."""
_PROCESSES = "start several processes with torchrun or Ray and give each its world="
_SPLIT = "name a column as data_kwargs={'split_key': ...}"
_METRICS = "read model.history, or metrics.jsonl of the folder given as run="
_EPOCHS = "a run is counted in epochs, give max_epochs"
_INSTEAD = {
    "datasplitter_kwargs": _SPLIT,
    "shuffle_set_split": _SPLIT,
    "devices": _PROCESSES,
    "num_nodes": _PROCESSES,
    "strategy": f"'auto' and the ddp strategies are; {_PROCESSES}",
    "precision": "32-true and bf16-mixed are",
    "logger": _METRICS,
    "callbacks": _METRICS,
    "enable_checkpointing": "give a folder as run=, where checkpoints are written, and plan_kwargs={'load_best': True}",
    "datamodule": "give the model a store, as dist_scvi.open_data(path)",
    "plan_config": "give plan_kwargs",
    "trainer_config": "give its keys as arguments",
    "max_steps": _EPOCHS,
    "min_steps": _EPOCHS,
    "min_epochs": "give early_stopping_warmup_epochs",
    "max_time": f"{_EPOCHS}; with run= a training that is stopped goes on later",
    "limit_train_batches": "give train_size and validation_size, or a column as data_kwargs={'split_key': ...}",
    "limit_val_batches": "give validation_size, or a column as data_kwargs={'split_key': ...}",
    "accumulate_grad_batches": "give a larger batch_size, and plan_kwargs={'gradient_accumulation_steps': ...}",
    "sync_batchnorm": "give plan_kwargs={'batch_norm': 'global'}",
    "gradient_clip_algorithm": "'norm' is",
}


def trainer_options(given: Mapping[str, Any], *, has_run: bool = False) -> dict[str, Any]:
    """Select the arguments that are settings of training here.

    Parameters
    ----------
    has_run
        Whether the training has a folder, where checkpoints are written.

    Raises
    ------
    ValueError
        If an argument is not known, or has a value that has an effect in scvi-tools but not here.
    """
    options = {key: given[key] for key in USED if key in given}
    if "precision" in options:
        if not _is_in(options["precision"], tuple(_PRECISIONS)):
            raise _refuse("precision", options["precision"])
        options["precision"] = _PRECISIONS[options["precision"]]
    for key in given.keys() - set(USED):
        value = given[key]
        if key == "strategy":
            # Several processes average their gradients as DDP does, and one process is DDP of one.
            accepted = isinstance(value, str) and (value == "auto" or value.startswith("ddp"))
        elif key in _NEUTRAL:
            accepted = _is_in(value, _NEUTRAL[key]) or (key == "enable_checkpointing" and value is True and has_run)
        else:
            instead = _INSTEAD.get(key, "leave it out")
            raise ValueError(f"train has no argument {key}: {instead}, or see TrainConfig for plan_kwargs")
        if not accepted:
            raise _refuse(key, value)
    return options


def device_number(accelerator: str, devices: object, n_gpus: int) -> int | str:
    """Choose the one device of this process: the number of a GPU, or ``"auto"``.

    Parameters
    ----------
    accelerator, devices
        Of scvi-tools: ``"auto"``, the number of devices, -1 for all, or a list with the number of one.
    n_gpus
        GPUs that torch finds.

    Raises
    ------
    ValueError
        If several devices are requested, or a GPU that does not exist.
    """
    if accelerator == "mps":
        raise ValueError("accelerator='mps' is not offered: give 'cpu', 'gpu' or 'auto'")
    on_cpu = accelerator == "cpu" or n_gpus == 0
    number = devices[0] if isinstance(devices, list | tuple) and len(devices) == 1 else None
    one_of_all = _is_in(devices, (-1, "-1")) and (on_cpu or n_gpus == 1)
    if _is_in(devices, ("auto", 1, "1")) or one_of_all or (on_cpu and number == 0):
        return "auto"
    if type(number) is not int:
        raise _refuse("devices", devices)
    if on_cpu or not 0 <= number < n_gpus:
        found = "the CPU is one device" if on_cpu else f"torch finds {n_gpus} GPUs, numbered from 0"
        raise ValueError(f"devices={devices!r}: {found}; give devices='auto'")
    return number


def _is_in(value: object, accepted: tuple[Any, ...]) -> bool:
    # By type too: limit_train_batches=1 is a single minibatch and 1.0 is all of them, but 1 == 1.0 == True.
    return any(value is one or (type(value) is type(one) and value == one) for one in accepted)


def _refuse(key: str, value: object) -> ValueError:
    return ValueError(f"{key}={shorten(value)} is not offered: {_INSTEAD.get(key, 'leave it out')}")
