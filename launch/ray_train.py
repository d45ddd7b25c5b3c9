"""Workers on Ray Train: Ray starts, restarts, resizes and places them; order, checkpoints and metrics are ours."""

import errno
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from dist_scvi.errors import LostLeaseError, StoppedError, WorkersFailedError
from dist_scvi.launch.ray_cluster import join_cluster, prepare_own_cluster
from dist_scvi.launch.signals import call_on_signal
from dist_scvi.progress_reporter import report_waiting
from dist_scvi.training.save_requests import SaveRequests

if TYPE_CHECKING:  # not imported here: the process of the board does not need torch
    from dist_scvi.world import World

_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_USAGE_STATS_ENABLED": "0",
    # time that the other workers wait for a dead one before all are restarted
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "10",
}
_POLL_S = 0.5
_AGAIN_S = 10.0
"""Seconds between checkpoints after a notice: workers continue until the node is removed, and may lose this much."""

_NOTICED_S = 15.0
"""Time within which Ray detects the loss of a node; errors of other workers due to it are immediate."""

_ENDS = {"stopped": StoppedError, "mistake": ValueError, "refused": OSError, "followed": LostLeaseError}
"""Reasons for which a run ends although workers could be restarted."""

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Storage that is full or read-only remains so after a restart; from other errors it may recover."""


Task = Callable[["World", SaveRequests], None]
"""The task of every worker, given its rank and the requests to save or stop."""


def run_on_ray(
    task: Task,
    *,
    workers: int | tuple[int, int],
    lanes: int = 1,
    address: str | None = None,
    cpus_per_worker: int | None = None,
    gpus_per_worker: int = 0,
    timeout_s: float = 300.0,
    max_failures: int = 3,
    resize_s: float = 60.0,
) -> None:
    """Run `task` on every worker of a Ray Train group.

    Parameters
    ----------
    task
        Must be picklable, and must continue from its last state when it is called again.
    workers
        Number of workers; or the smallest and the largest number, of which as many take part as Ray has room for.
        Workers beyond the greatest number that divides `lanes` are on standby.
    lanes
        The number of workers that take part divides it.
    address
        Address of a running Ray cluster, ``auto`` for that of this machine; by default one is started and stopped.
    cpus_per_worker
        By default an equal share of this machine's, or 1 on a running cluster.
    gpus_per_worker
        GPUs of each worker.
    timeout_s
        Longest wait of one worker for the others in a collective, and for a worker that does not answer.
    max_failures
        How often lost workers are replaced; nodes that are removed with notice do not count.
    resize_s
        Time between checks for room for more workers.

    A cluster that is started for the call listens on the loopback interface only and requires a token, which is in a
    file that only this user can read.

    Raises
    ------
    ValueError
        If a worker found an error that a restart cannot resolve.
    StoppedError
        If a stop was requested and the workers stopped.
    WorkersFailedError
        If workers were lost more often than `max_failures`, or the controller of Ray was lost.
    OSError
        If storage is full or must not be written.
    LostLeaseError
        If another start of the run has taken over.

    Notes
    -----
    Ray 2.60 writes its snapshot of a run in place. A truncated snapshot makes the name of the run unusable, so each
    call uses a new name.
    """
    if address is None and "ray" not in sys.modules:  # Ray reads its environment when it is imported
        prepare_own_cluster()
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    ray_train: Any = ray.train  # its type stubs are of an older version
    most = workers if isinstance(workers, int) else workers[1]
    least = workers if isinstance(workers, int) else workers[0]
    cpus = cpus_per_worker or (1 if address else max(1, (os.cpu_count() or 1) // most))
    stop = threading.Event()
    each = {"CPU": cpus} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
    with call_on_signal(stop.set), _environment(timeout_s), join_cluster(address, most), _scratch() as scratch:
        _check_room(ray.nodes(), least, each)  # type: ignore[no-untyped-call]
        board = _board()
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"task": task, "board": board, "cpus": cpus, "lanes": lanes, "timeout_s": timeout_s},
            scaling_config=ray_train.ScalingConfig(
                num_workers=workers,
                use_gpu=gpus_per_worker > 0,
                resources_per_worker=each,
                elastic_resize_monitor_interval_s=resize_s,
            ),
            run_config=ray_train.RunConfig(
                name=uuid.uuid4().hex[:12],
                storage_path=scratch,
                failure_config=ray_train.FailureConfig(max_failures=max_failures),
            ),
            torch_config=TorchConfig(timeout_s=int(timeout_s)),
        )
        _fit(trainer, board, stop, least)


def _fit(trainer: Any, board: Any, stop: threading.Event, workers: int) -> None:
    """Start the workers and wait until their task has ended."""
    import ray
    from ray.train import TrainingFailedError

    try:
        with call_on_signal(board.stop.remote):  # again: ray.init has installed its own handler
            if stop.is_set():
                raise StoppedError("stopped on request before the workers were started")
            with report_waiting(partial(_waiting_for, board, workers)):
                trainer.fit()
    except SystemExit:  # Ray's reaction to Ctrl-C, after it has ended the workers
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        _raise_said(board)
        times = trainer.run_config.failure_config.max_failures
        raise WorkersFailedError(
            f"workers were lost more than {times} times ({_last_line(error)}); nothing that was saved is lost"
        ) from error
    except ray.exceptions.RayError as error:  # Ray does not restart its controller
        raise WorkersFailedError(
            f"what supervises the workers was lost ({_last_line(error)}); nothing that was saved is lost"
        ) from error
    _raise_said(board)


def _waiting_for(board: Any, workers: int) -> str:
    """Return how many workers are ready, as text; empty once all are."""
    import ray

    ready = 0
    with suppress(ray.exceptions.RayError):
        ready = ray.get(board.count_started.remote(), timeout=5)
    return "" if ready >= workers else f"starting Ray Train: {ready} of {workers} workers ready"


@contextmanager
def _environment(timeout_s: float) -> Iterator[None]:
    """Set the variables that Ray reads from the environment of its driver, unless the user has set them."""
    ours = {**_ENVIRONMENT, "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(int(timeout_s))}
    ours = {key: value for key, value in ours.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            del os.environ[key]


@contextmanager
def _scratch() -> Iterator[str]:
    """Create a folder for the records of Ray, which are not used: checkpoints and results are in the run."""
    folder = tempfile.mkdtemp(prefix="dist-scvi-ray-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Board:
    """An actor shared by workers and driver: number of started workers, reason of an early end, request to stop."""

    def __init__(self) -> None:
        self.said: tuple[str, str] | None = None
        self.stopping = False
        self.started = 0

    def add_started(self) -> None:
        self.started += 1

    def count_started(self) -> int:
        return self.started

    def say(self, kind: str, message: str) -> None:
        # The first reason is kept: the end of one worker causes errors in the others.
        self.said = self.said or (kind, message)

    def read(self) -> tuple[str, str] | None:
        return self.said

    def stop(self) -> None:
        self.stopping = True

    def is_stopping(self) -> bool:
        return self.stopping


def _board() -> Any:
    """Start the actor on the node of the driver, so that it lives as long as the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()


def _raise_said(board: Any) -> None:
    import ray

    said = None
    with suppress(ray.exceptions.RayError):
        said = ray.get(board.read.remote(), timeout=30)
    if said:
        raise _ENDS[said[0]](said[1])


def _worker(settings: dict[str, Any]) -> None:
    """Run the task on one worker, in the process group that Ray has joined."""
    import ray
    import torch
    from ray.train.torch import get_device

    from dist_scvi.world import first_workers

    board = settings["board"]
    if ray.get(board.read.remote()):
        return  # the group was restarted, but the same error would occur again: the driver reads it from the board
    board.add_started.remote()
    torch.set_num_threads(settings["cpus"])
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = first_workers(device, lanes=settings["lanes"], timeout_s=settings["timeout_s"])
    if world is None:
        return  # the lanes cannot be divided by one more worker: it is on standby for the next change of size
    requests = SaveRequests()
    ended = threading.Event()
    watch = threading.Thread(target=_listen, args=(requests, board, ended), daemon=True)
    watch.start()
    try:
        settings["task"](world, requests)
    except StoppedError as error:
        # Not raised: Ray would count it as a failure and restart the workers.
        ray.get(board.say.remote("stopped", str(error)))
    except Exception as error:
        end = _end(error)
        if end is not None:
            ray.get(board.say.remote(end, str(error)))
        elif _is_preempted():  # wait until Ray detects the loss of the node, or it counts as a failure of this worker
            time.sleep(_NOTICED_S)
        raise
    finally:
        ended.set()


def _end(error: Exception) -> str | None:
    """Return the kind of an error that ends the run; None if restarted workers may continue."""
    if isinstance(error, LostLeaseError):
        return "followed"
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return "refused"
    return "mistake" if isinstance(error, ValueError | FileNotFoundError | FloatingPointError) else None


def _listen(requests: SaveRequests, board: Any, ended: threading.Event) -> None:
    """Request checkpoints after notice that a node will be removed, and a stop when the driver requests it."""
    import ray

    saved_s = -_AGAIN_S
    with suppress(ray.exceptions.RayError):  # the driver has ended, and Ray ends its workers
        while not ended.wait(_POLL_S):
            if _is_preempted() and time.monotonic() - saved_s > _AGAIN_S:
                requests.save()
                saved_s = time.monotonic()
            if ray.get(board.is_stopping.remote()):
                requests.stop()
                return


def _is_preempted() -> bool:
    """Return whether Ray has notified this worker that a node will be removed.

    The public ``ray.train.get_preemption_info`` waits for all workers at each call; this reads the notice that this
    worker received.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def _check_room(nodes: list[dict[str, Any]], workers: int, each: dict[str, int]) -> None:
    """Refuse resources for which Ray would wait without end; a worker needs all its resources on one node."""
    there = [node["Resources"] for node in nodes if node["Alive"]]
    room = sum(min(int(found.get(name, 0) // number) for name, number in each.items()) for found in there)
    if room < workers:
        needed = " and ".join(f"{number} {name}" for name, number in each.items())
        keys = " or ".join(f"--{name.lower()}s-per-worker" for name in each)
        raise ValueError(
            f"{workers} workers with {needed} each are needed, Ray has room for {room} on {len(there)} nodes: lower "
            f"--workers or {keys}"
        )


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
