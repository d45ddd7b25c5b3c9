"""What scripts hand to the trainer of scvi-tools: done, harmless, or refused with what to do instead."""

import pytest

from dist_scvi.config.schema import TrainConfig
from dist_scvi.model.trainer_arguments import HEEDED, trainer_options


def test_what_is_heeded_is_a_key_of_training() -> None:
    assert set(HEEDED) <= set(TrainConfig.model_fields)
    given = {"early_stopping_patience": 3, "gradient_clip_val": 1.0, "log_every_n_steps": 5}
    assert trainer_options(given) == given


def test_what_changes_nothing_is_taken() -> None:
    neutral = {"devices": 1, "shuffle_set_split": True, "callbacks": [], "precision": "32-true", "logger": None}
    assert trainer_options(neutral) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"devices": 4}, r"^devices=4 is not offered: start several processes with torchrun or Ray"),
        ({"shuffle_set_split": False}, r"^shuffle_set_split=False is not offered: name a column as data_kwargs"),
        ({"callbacks": [print]}, r"^callbacks=\[.*\] is not offered: read model\.history"),
        ({"precision": "bf16"}, r"^precision='bf16' is not offered: leave it out$"),
        ({"max_step": 3}, r"^train has no argument max_step: leave it out, or see TrainConfig"),
    ],
)
def test_what_would_change_something_and_cannot_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_options(given)
