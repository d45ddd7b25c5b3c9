"""Arguments that scvi-tools hands to the Trainer of Lightning: heeded, without meaning here, or refused by name."""

from collections.abc import Mapping
from typing import Any

HEEDED = (
    *("early_stopping_monitor", "early_stopping_min_delta", "early_stopping_patience", "early_stopping_mode"),
    *("early_stopping_warmup_epochs", "gradient_clip_val", "log_every_n_steps"),
)
"""Keys of `TrainConfig`."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "devices": ("auto", 1, -1),
    "shuffle_set_split": (True,),
    "load_sparse_tensor": (False,),
    "datasplitter_kwargs": (None, {}),
    "datamodule": (None,),
    "plan_config": (None,),
    "trainer_config": (None,),
    "adversarial_classifier": (None, False),
    "callbacks": (None, []),
    "logger": (None, False),
    "strategy": ("auto",),
    "precision": (None, 32, "32", "32-true"),
    "enable_checkpointing": (False,),
    "num_sanity_val_steps": (0,),
    "enable_model_summary": (True, False),
    "simple_progress_bar": (True, False),
    "benchmark": (True, False, None),
    "deterministic": (True, False, None),
}
_INSTEAD = {
    "datasplitter_kwargs": "name a column as data_kwargs={'split_key': ...}",
    "shuffle_set_split": "name a column as data_kwargs={'split_key': ...}",
    "devices": "start several processes with torchrun or Ray and give each its world=",
    "strategy": "start several processes with torchrun or Ray and give each its world=",
    "logger": "read model.history, or metrics.jsonl of the folder given as run=",
    "callbacks": "read model.history, or metrics.jsonl of the folder given as run=",
    "enable_checkpointing": "give a folder as run=, and plan_kwargs={'load_best': True}",
    "datamodule": "give the model a store, as dist_scvi.open(path)",
}


def trainer_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Choose what is a setting of training here.

    Raises
    ------
    ValueError
        If an argument is not known, or has a value that would change something in scvi-tools and cannot here.
    """
    for key in given.keys() - set(HEEDED):
        instead = _INSTEAD.get(key, "leave it out")
        if key not in _NEUTRAL:
            raise ValueError(f"train has no argument {key}: {instead}, or see TrainConfig for plan_kwargs")
        if not any(given[key] is value or given[key] == value for value in _NEUTRAL[key]):
            raise ValueError(f"{key}={given[key]!r} is not offered: {instead}")
    return {key: given[key] for key in HEEDED if key in given}
