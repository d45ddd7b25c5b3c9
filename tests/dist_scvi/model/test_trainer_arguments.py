"""What scripts hand to the trainer of scvi-tools: done, harmless, or refused with what to do instead."""

import pytest

from dist_scvi.config.schema import TrainConfig
from dist_scvi.model.trainer_arguments import USED, device_number, trainer_options


def test_what_is_used_is_a_key_of_training() -> None:
    assert set(USED) <= set(TrainConfig.model_fields)
    given = {"early_stopping_patience": 3, "gradient_clip_val": 1.0, "log_every_n_steps": 5}
    assert trainer_options(given) == given


def test_what_changes_nothing_is_accepted() -> None:
    neutral = {"shuffle_set_split": True, "callbacks": [], "logger": None, "max_steps": -1, "limit_train_batches": 1.0}
    neutral |= {"strategy": "ddp_find_unused_parameters_true", "load_sparse_tensor": True, "num_nodes": 1}
    assert trainer_options(neutral) == {}
    assert trainer_options({"enable_checkpointing": True}, has_run=True) == {}


@pytest.mark.parametrize(
    ("given", "used"),
    [(32, "32-true"), ("32", "32-true"), (None, "32-true"), ("bf16-mixed", "bf16-mixed"), ("bf16", "bf16-mixed")],
)
def test_a_precision_that_training_has_is_used(given: object, used: str) -> None:
    assert trainer_options({"precision": given}) == {"precision": used}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shuffle_set_split": False}, r"^shuffle_set_split=False is not offered: name a column as data_kwargs"),
        ({"callbacks": [print]}, r"^callbacks=\[.*\] is not offered: read model\.history"),
        ({"precision": "16-mixed"}, r"^precision='16-mixed' is not offered: 32-true and bf16-mixed are$"),
        ({"precision": [32]}, r"^precision=\[32\] is not offered"),
        ({"strategy": "fsdp"}, r"^strategy='fsdp' is not offered: 'auto' and the ddp strategies are"),
        ({"max_steps": 10}, r"^max_steps=10 is not offered: a run is counted in epochs, give max_epochs$"),
        ({"limit_train_batches": 1}, r"^limit_train_batches=1 is not offered: give train_size"),
        ({"fast_dev_run": True}, r"^fast_dev_run=True is not offered: leave it out$"),
        ({"enable_checkpointing": True}, r"^enable_checkpointing=True is not offered: give a folder as run="),
        ({"max_step": 3}, r"^train has no argument max_step: leave it out, or see TrainConfig"),
    ],
)
def test_what_would_change_something_and_cannot_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_options(given)


@pytest.mark.parametrize(
    ("accelerator", "devices", "n_gpus", "number"),
    [
        ("auto", "auto", 0, "auto"),
        ("cpu", 1, 4, "auto"),
        ("cpu", [0], 4, "auto"),
        ("auto", -1, 0, "auto"),
        ("gpu", "-1", 1, "auto"),
        ("gpu", [0], 2, 0),
        ("auto", (1,), 2, 1),
    ],
)
def test_one_device_is_chosen(accelerator: str, devices: object, n_gpus: int, number: object) -> None:
    assert device_number(accelerator, devices, n_gpus) == number


@pytest.mark.parametrize(
    ("accelerator", "devices", "n_gpus", "message"),
    [
        ("mps", 1, 0, r"^accelerator='mps' is not offered: give 'cpu', 'gpu' or 'auto'$"),
        ("auto", 4, 4, r"^devices=4 is not offered: start several processes with torchrun or Ray"),
        ("gpu", -1, 2, r"^devices=-1 is not offered: start several processes"),
        ("gpu", [0, 1], 2, r"^devices=\[0, 1\] is not offered: start several processes"),
        ("gpu", True, 2, r"^devices=True is not offered"),
        ("gpu", [2], 2, r"^devices=\[2\]: torch finds 2 GPUs, numbered from 0; give devices='auto'$"),
        ("cpu", [1], 2, r"^devices=\[1\]: the CPU is one device; give devices='auto'$"),
    ],
)
def test_several_devices_or_one_that_is_not_there_are_refused(
    accelerator: str, devices: object, n_gpus: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        device_number(accelerator, devices, n_gpus)
