"""Workers on Ray Train: Ray starts, restarts and equips them; order, checkpoints and metrics are ours."""

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_scvi.world import World

_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_USAGE_STATS_ENABLED": "0",
    # how long the living wait for a dead worker before all are restarted
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "10",
}
_FAILURE = "failure.json"


class WorkersFailedError(RuntimeError):
    """Workers were lost more often than allowed. The run is intact and goes on when it is started again."""


def run_on_ray(
    task: Callable[[World], None],
    *,
    workers: int,
    folder: Path,
    cpus_per_worker: int | None = None,
    gpus_per_worker: int = 0,
    timeout_s: float = 300.0,
    max_failures: int = 3,
) -> None:
    """Run `task` on every worker of a Ray Train group.

    Parameters
    ----------
    task
        Called with the worker's place in the world. It must be picklable, and must go on where it was when called
        again.
    workers
        Number of workers.
    folder
        A folder that every worker sees, for Ray's records, word of failures, and the warnings of each worker.
    cpus_per_worker
        By default an equal share of this machine's.
    gpus_per_worker
        GPUs of each.
    timeout_s
        Longest wait of one worker for the others in a collective.
    max_failures
        How often lost workers are replaced.

    Raises
    ------
    ValueError
        If a worker found a mistake that no restart can mend.
    WorkersFailedError
        If workers were lost more often than `max_failures`.

    Notes
    -----
    Ray 2.60: a run name is never used twice, because a torn snapshot of Ray's own would make it unusable.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    cpus = cpus_per_worker or max(1, (os.cpu_count() or 1) // workers)
    attempt = folder / ".ray" / uuid.uuid4().hex[:12]
    attempt.mkdir(parents=True)
    started = not ray.is_initialized()
    if started:
        ray.init(
            num_cpus=max(os.cpu_count() or 1, workers),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"task": task, "folder": str(folder), "attempt": str(attempt), "cpus": cpus},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus_per_worker > 0,
            resources_per_worker={"CPU": cpus} | ({"GPU": gpus_per_worker} if gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name=attempt.name, storage_path=str(attempt), failure_config=FailureConfig(max_failures=max_failures)
        ),
        torch_config=TorchConfig(timeout_s=int(timeout_s)),
    )
    try:
        _check_resources(ray.cluster_resources(), workers, cpus, gpus_per_worker)  # type: ignore[no-untyped-call]
        trainer.fit()
        _raise_failure(attempt)
    except SystemExit:  # Ray's own answer to Ctrl-C, after it has ended the workers
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        _raise_failure(attempt)
        raise WorkersFailedError(
            f"workers were lost more than {max_failures} times ({_last_line(error)}); nothing that was saved is "
            "lost, start the same command again to go on"
        ) from error
    finally:
        if started:
            ray.shutdown()
        shutil.rmtree(attempt, ignore_errors=True)
        with suppress(OSError):  # another start of the same run may use it
            attempt.parent.rmdir()


def _worker(settings: dict[str, Any]) -> None:
    """Run the task on one worker, in the process group that Ray has joined."""
    import torch
    from ray.train.torch import get_device

    from dist_scvi.world import joined_world

    failure = Path(settings["attempt"]) / _FAILURE
    if failure.exists():
        return  # the group was restarted, but what stopped it would stop it again: the driver reads the failure
    torch.set_num_threads(settings["cpus"])
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = joined_world(device)
    warnings_of_this_worker = Path(settings["folder"]) / "workers" / f"{world.rank}.log"
    warnings_of_this_worker.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("dist_scvi").addHandler(logging.FileHandler(warnings_of_this_worker, delay=True))
    try:
        settings["task"](world)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        failure.write_text(json.dumps({"message": str(error)}))
        raise


def _check_resources(found: dict[str, float], workers: int, cpus: int, gpus: int) -> None:
    """Refuse what Ray would wait for without end."""
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if workers * each > found.get(name, 0):
            raise ValueError(
                f"{workers} workers with {each} {name}s each need {workers * each}, Ray has {found.get(name, 0):.0f}: "
                f"lower --workers or --{name.lower()}s-per-worker"
            )


def _raise_failure(attempt: Path) -> None:
    if (attempt / _FAILURE).exists():
        raise ValueError(json.loads((attempt / _FAILURE).read_text())["message"])


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
