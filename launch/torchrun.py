"""Train under torchrun: ``torchrun --nproc-per-node 2 -m dist_scvi.launch.torchrun run.yaml [key=value ...]``."""

import os
import sys
from pathlib import Path

from dist_scvi.config_file import load_config
from dist_scvi.metrics import Progress
from dist_scvi.run import train_worker
from dist_scvi.world import process_group, worker_device


def main(arguments: list[str]) -> None:
    """Train as one of the workers that torchrun has started."""
    config = load_config(Path(arguments[0]), arguments[1:])
    device = worker_device(int(os.environ["LOCAL_RANK"]))
    with process_group(device, timeout_s=config.train.collective_timeout_s) as world:
        train_worker(config, world, on_metrics=Progress())


if __name__ == "__main__":
    main(sys.argv[1:])
