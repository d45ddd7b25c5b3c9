"""What a session sets once, under the name of scvi-tools: ``dist_scvi.settings.seed = 1``."""

from dataclasses import dataclass


@dataclass(slots=True)
class Settings:
    """Defaults of the models of a notebook; files and the command line do not see them."""

    seed: int = 0
    """Seed of weights, split, order and noise where a model is not given one."""
    batch_size: int = 128
    """Cells of a training step where ``train`` is not given it."""


settings = Settings()
