"""Train under torchrun: ``torchrun --nproc-per-node 2 -m dist_scvi.launch.torchrun run.yaml [key=value ...]``.

``--allow`` and ``--allow-fresh`` are those of ``dist-scvi train``.
"""

import argparse
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dist_scvi.config.load import load_config
from dist_scvi.launch.arguments import add_permissions
from dist_scvi.launch.exit_codes import exit_code
from dist_scvi.launch.signals import call_on_signal
from dist_scvi.metrics.reporter import MetricsReporter
from dist_scvi.training.save_requests import SaveRequests
from dist_scvi.training.worker import train_worker
from dist_scvi.world import process_group, worker_device

_LOOK_S = 1.0


def main(arguments: list[str]) -> int:
    """Train as one of the workers that torchrun has started, and return the exit code."""
    return exit_code(partial(_train, arguments))


def _train(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="torchrun -m dist_scvi.launch.torchrun")
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="configuration file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of it")
    add_permissions(parser)
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    device, requests = worker_device(int(os.environ["LOCAL_RANK"])), SaveRequests()
    with (
        process_group(device, timeout_s=config.train.collective_timeout_s) as world,
        call_on_signal(requests.stop),
        _orphaned(requests.stop),
    ):
        train_worker(
            config, world, requests, allow=options.allow, fresh=options.allow_fresh, on_metrics=MetricsReporter()
        )
    return 0


@contextmanager
def _orphaned(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, call `stop` in a thread once the agent that started this process has ended.

    Workers that were started in another way, for instance by a shell that may exit before them, have no agent.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    agent, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            if os.getppid() != agent:
                stop()
                return

    threading.Thread(target=watch, name="orphaned", daemon=True).start()
    try:
        yield
    finally:
        over.set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
