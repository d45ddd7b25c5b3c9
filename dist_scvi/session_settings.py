"""What a session sets once, under the names of scvi-tools: ``dist_scvi.settings.seed = 1``."""

import logging
import warnings
from typing import Any

_WITHOUT_EFFECT = (
    *("dl_num_workers", "dl_persistent_workers", "progress_bar_style", "logging_dir", "warnings_stacklevel"),
    *("jax_preallocate_gpu_memory", "jax_fix_no_kernels"),
)


class Settings:
    """Defaults of the models of a notebook; files and the command line do not see them.

    What scvi-tools 1.4.2 has besides (_settings.py) and has no meaning here is taken with a warning.
    """

    seed: int | None = 0
    """Seed of weights, split, order and noise where a model is not given one."""
    batch_size: int = 128
    """Cells of a training step where ``train`` is not given it."""

    @property
    def num_threads(self) -> int:
        """Threads of torch."""
        import torch

        return torch.get_num_threads()

    @num_threads.setter
    def num_threads(self, number: int) -> None:
        import torch

        torch.set_num_threads(number)

    @property
    def verbosity(self) -> int:
        """Level of the log of this package, as of ``logging``."""
        return logging.getLogger("dist_scvi").level

    @verbosity.setter
    def verbosity(self, level: int) -> None:
        logging.getLogger("dist_scvi").setLevel(level)

    def reset_logging_handler(self) -> None:
        """Log to stderr as plain lines, in place of the handlers that the log of this package has."""
        logger = logging.getLogger("dist_scvi")
        for handler in [*logger.handlers]:
            logger.removeHandler(handler)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False  # else the handlers of the root logger would print each line again

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what there is, and refuse what there is not."""
        if name in _WITHOUT_EFFECT:
            warnings.warn(f"settings.{name} has no effect in dist_scvi", stacklevel=2)
        elif hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            raise AttributeError(f"settings has no {name!r}: it has seed, batch_size, num_threads, verbosity")


settings = Settings()
