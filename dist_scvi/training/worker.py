"""Train as one worker of a run, however it was started, and read the record of a run.

A run is a folder, on a disk or in object storage: ``config.yaml`` (resolved), ``metrics.jsonl``, ``checkpoints/``,
``lease/``, ``workers/`` and, when it has ended, ``model/`` and ``RESULT.json``.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dist_scvi.config.schema import RunConfig, SomaConfig
from dist_scvi.loaders.stores.soma_store import is_soma
from dist_scvi.metrics.metrics_file import Row
from dist_scvi.metrics.run_record import CONFIG, run_config
from dist_scvi.storage.lease import Driver
from dist_scvi.storage.run_storage import RunStorage, open_run_storage
from dist_scvi.training.resolve import open_from
from dist_scvi.training.save_requests import SaveRequests
from dist_scvi.training.train import train
from dist_scvi.world import World


def train_worker(
    config: RunConfig,
    world: World,
    requests: SaveRequests | None = None,
    *,
    driver: Driver | None = None,
    allow: Sequence[str] = (),
    fresh: bool = False,
    on_metrics: Callable[[Row], None] | None = None,
) -> None:
    """Train in the folder ``config.run`` and write the model there. If it is started again, it resumes.

    The arguments are those of `train`.
    """
    place = storage_of_run(config)
    config = world.from_first(fix_soma_timestamp(config, place) if world.rank == 0 else config)
    data = open_from(config.data)
    record = {"rank": world.rank, "world_size": world.size, "pid": os.getpid(), "host": socket.gethostname()}
    place.write(f"workers/{world.rank}.json", json.dumps(record).encode())
    train(
        config,
        data=data,
        world=world,
        folder=place,
        on_metrics=on_metrics,
        driver=driver,
        requests=requests,
        allow=allow,
        fresh=fresh,
    )
    world.wait()


def storage_of_run(config: RunConfig) -> RunStorage:
    """Open the folder of a run; it need not exist."""
    return open_run_storage(config.run, storage_options=config.storage_options)


def fix_soma_timestamp(config: RunConfig, place: RunStorage) -> RunConfig:
    """Fix the TileDB timestamp at which SOMA is read, for all workers and for every later start of the run."""
    uris = [config.data.uri] if isinstance(config.data.uri, str) else config.data.uri
    soma = config.data.soma or (SomaConfig() if any(is_soma(Path(uri).expanduser()) for uri in uris) else None)
    if soma is None or soma.timestamp_ms is not None:
        return config
    recorded = run_config(place).data.soma if CONFIG in place.names() else None
    timestamp_ms = (recorded and recorded.timestamp_ms) or time.time_ns() // 1_000_000
    soma = soma.model_copy(update={"timestamp_ms": timestamp_ms})
    return config.model_copy(update={"data": config.data.model_copy(update={"soma": soma})})
