"""Workers on Ray Train: as many as there is room for, on nodes that come and go; what cannot be mended ends the run."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from dist_scvi.config.load import load_config
from dist_scvi.config.schema import RunConfig
from dist_scvi.errors import StoppedError
from dist_scvi.launch.ray_train import _check_room, _end, _fit, run_on_ray
from dist_scvi.loaders.arrays.objects import StorageError
from dist_scvi.metrics.metrics_file import Row, read_metrics
from dist_scvi.metrics.run_record import CHECKPOINTS, is_finished
from dist_scvi.storage.run_storage import LocalStorage
from dist_scvi.training.save_requests import SaveRequests
from dist_scvi.training.train import train
from dist_scvi.training.worker import train_worker
from dist_scvi.world import World
from tests.launch.commands import DIST_SCVI, cells_of_steps, lives, started, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280, func_only=True)]

EPOCHS = "train.max_epochs=6"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with one node of one CPU, for workers that run the functions of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        quick = {"health_check_failure_threshold": 2}  # a lost node is found within 6 s rather than 15
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
        )
        yield cluster
        cluster.shutdown()


@contextmanager
def nodes(cluster: Cluster, number: int, cpus: int = 1) -> Iterator[list[Any]]:
    """So many more nodes; those that are left go at the end."""
    added = [cluster.add_node(num_cpus=cpus) for _ in range(number)]
    try:
        yield added
    finally:
        for node in cluster.worker_nodes.copy():
            cluster.remove_node(node)
        until(lambda: len(cluster.list_all_nodes()) == 1, "the end of the nodes")


def lose(cluster: Cluster, node: Any) -> None:
    """Have a node vanish, and wait until its workers, which outlive it for a moment, are gone too."""
    [raylet] = node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    until(lambda: not any(map(lives, workers)), "the end of the workers of a lost node")


class Stops:
    """Where the first worker stands still, so that a test can do something at a known step; files say who is where."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def here(self, name: str) -> None:
        """Stand still until `pass_on`, the first time that it comes here."""
        (self.folder / f"{name}-here").touch()
        deadline = time.monotonic() + 200
        while not self.passed(name) and time.monotonic() < deadline:
            time.sleep(0.02)

    def passed(self, name: str) -> bool:
        return (self.folder / f"{name}-passed").exists()

    def reached(self, name: str) -> None:
        until((self.folder / f"{name}-here").exists, name)

    def pass_on(self, name: str) -> None:
        (self.folder / f"{name}-passed").touch()

    def note(self, row: Row, world: World) -> None:
        with (self.folder / "steps").open("a") as file:
            file.write(f"{row['step']} {world.size}\n")

    @property
    def sizes(self) -> dict[int, int]:
        """How many workers have taken each step, at last."""
        lines = (self.folder / "steps").read_text().splitlines()
        return {int(step): int(size) for step, size in map(str.split, lines)}


@contextmanager
def running(cluster: Cluster, task: Callable[[World, SaveRequests], None], **options: Any) -> Iterator[None]:
    """Run on the cluster while the block does something to it; the end of the block waits for that of the run."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            run_on_ray(task, lanes=4, address=cluster.address, timeout_s=120, **options)
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(250)
    if failed:
        raise failed[0]


def lose_and_find(config: RunConfig, stops: Stops, world: World, requests: SaveRequests) -> None:
    def look(row: Row) -> None:
        if row["kind"] == "train":
            stops.note(row, world)
            if world.size == 2 and row["step"] >= 30 and not stops.passed("lost"):
                stops.here("lost")
            if world.size == 1 and row["step"] >= 60:
                stops.here("alone")

    train_worker(config, world, requests, on_metrics=look)


def test_a_run_goes_on_with_the_nodes_that_are_left_and_with_those_that_come_back(
    cluster: Cluster, run_yaml: Path, tmp_path: Path
) -> None:
    config, stops = load_config(run_yaml, [EPOCHS]), Stops(tmp_path / "stops")
    task = partial(lose_and_find, config, stops)
    with nodes(cluster, 1) as [node], running(cluster, task, workers=(1, 2), max_failures=1, resize_s=2):
        stops.reached("lost")
        lose(cluster, node)
        stops.pass_on("lost")
        stops.reached("alone")
        cluster.add_node()
    assert [stops.sizes[step] for step in (20, 50, 55, 126)] == [2, 1, 1, 2]
    assert_as_one_worker(config, tmp_path)


def assert_as_one_worker(config: RunConfig, tmp_path: Path) -> None:
    alone = train(config.model_copy(update={"run": str(tmp_path / "alone")})).history
    together = read_metrics(Path(config.run))
    assert cells_of_steps(together) == cells_of_steps(alone)
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    losses = [[(row["elbo"], row["reconstruction"]) for row in rows] for rows in (together, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def be_drained(config: RunConfig, stops: Stops, world: World, requests: SaveRequests) -> None:
    def look(row: Row) -> None:
        if row["kind"] == "train":
            stops.note(row, world)
            if world.size == 2 and row["step"] >= 30:
                stops.here("told")
                stops.here("lost") if stops.passed("saved") else time.sleep(0.2)

    train_worker(config, world, requests, on_metrics=look)


def test_a_node_that_is_taken_away_with_notice_costs_nothing_and_is_no_failure(
    cluster: Cluster, run_yaml: Path, tmp_path: Path
) -> None:
    rarely = [EPOCHS, "train.save_every_n_steps=1000", "train.check_val_every_n_epoch=100"]
    config, stops = load_config(run_yaml, rarely), Stops(tmp_path / "stops")
    checkpoints = Path(config.run) / CHECKPOINTS
    task = partial(be_drained, config, stops)
    with nodes(cluster, 1) as [node], running(cluster, task, workers=(1, 2), max_failures=0, resize_s=2):
        stops.reached("told")
        gone_s = time.time() + 15
        drain(cluster, node.node_id, gone_s)
        stops.pass_on("told")
        until(lambda: list(checkpoints.glob("step-*/MANIFEST.json")), "a checkpoint")
        stops.pass_on("saved")
        stops.reached("lost")
        time.sleep(max(0.0, gone_s - time.time()))
        # each worker asks for a save when it hears of it: there may be two
        step = max(int(saved.parent.name.removeprefix("step-")) for saved in checkpoints.glob("step-*/MANIFEST.json"))
        cluster.remove_node(node, allow_graceful=False)
    assert 30 < step < 126
    assert [stops.sizes[step], stops.sizes[step + 1]] == [2, 1]
    assert_as_one_worker(config, tmp_path)


def drain(cluster: Cluster, node_id: str, gone_s: float) -> None:
    """Announce, as `ray start` does when it is sent SIGTERM, when a node will be gone."""
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    client = ray._raylet.GcsClient(address=cluster.address)
    accepted, why = client.drain_node(node_id, reason, "test", int(1000 * gone_s))
    assert accepted, why


def test_ray_still_has_what_tells_a_worker_that_a_node_will_go() -> None:
    from ray.train.v2._internal.execution.context import TrainContext, get_train_context
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    assert callable(get_train_context)
    assert "preemption_context" in {field.name for field in dataclasses.fields(TrainContext)}
    assert [field.name for field in dataclasses.fields(PreemptionContext)] == ["preemption_info"]


def record(folder: Path, world: World, requests: SaveRequests) -> None:
    (folder / f"{world.rank}").write_text(f"{world.size} {torch.get_num_threads()}")


def test_of_more_workers_than_can_share_the_lanes_the_last_stand_by_and_the_others_use_the_cpus_that_ray_gives_them(
    cluster: Cluster, tmp_path: Path
) -> None:
    with nodes(cluster, 3, cpus=2):
        run_on_ray(partial(record, tmp_path), workers=3, lanes=4, cpus_per_worker=2, address=cluster.address)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "2 2", "1": "2 2"}


def test_without_an_address_a_cluster_that_happens_to_run_is_left_alone(cluster: Cluster) -> None:
    code = (
        "import ray; from dist_scvi.launch.ray_cluster import join_cluster\n"
        "with join_cluster(None, 1): print(ray.get_runtime_context().gcs_address)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert found.stdout.strip() not in ("", cluster.address)


# Starts a cluster of its own with the task of argv[1], and prints who listens where, and what protects it.
LISTENING = """
import json, os, stat, psutil
from functools import partial
from dist_scvi.launch.ray_train import run_on_ray

def task(world, requests, driver):
    world.wait()
    if world.rank == 0:
        here = psutil.Process(driver)
        listening = [
            [process.name(), connection.laddr.ip]
            for process in [here, *here.children(recursive=True)]
            for connection in process.net_connections("inet")
            if connection.status == "LISTEN"
        ]
        with open("listening.json", "w") as file:
            json.dump(listening, file)

os.environ["RAY_AUTH_MODE"] = "disabled"
run_on_ray(partial(task, driver=os.getpid()), workers=1, lanes=1)
print(os.environ["RAY_AUTH_MODE"], oct(stat.S_IMODE(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode)))
"""


def test_a_cluster_of_our_own_listens_on_loopback_only_and_requires_a_token(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LISTENING)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment,
        timeout=240,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["token", "0o600"]
    assert not (tmp_path / ".ray").exists()
    listening = json.loads((tmp_path / "listening.json").read_text())
    assert {"raylet", "gcs_server"} <= {name for name, _ in listening}
    elsewhere = [name for name, address in listening if not address.endswith("127.0.0.1")]
    assert elsewhere in ([], ["ray::RayTrainWorker"])  # where torch's workers of one group meet: torch offers no choice


def refuse(error: Exception, world: World, requests: SaveRequests) -> None:
    if world.rank == 1:
        raise error
    world.wait()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space left"), FloatingPointError("the loss became nan")])
def test_what_no_restart_can_mend_is_told_and_not_retried(cluster: Cluster, error: Exception) -> None:
    kind = OSError if isinstance(error, OSError) else ValueError
    with nodes(cluster, 1), pytest.raises(kind, match=r"no space left|the loss became nan"):
        run_on_ray(partial(refuse, error), workers=2, lanes=2, address=cluster.address)


def test_storage_that_fails_for_now_is_worth_a_restart_and_a_full_or_closed_disk_is_not() -> None:
    assert _end(StorageError("the server closed the connection")) is None
    assert _end(OSError(errno.EIO, "input/output error")) is None
    assert _end(OSError(errno.ENOSPC, "full")) == "refused"
    assert _end(PermissionError(errno.EACCES, "closed")) == "refused"
    assert _end(FileNotFoundError(errno.ENOENT, "gone")) == "mistake"
    assert _end(RuntimeError("gloo: connection closed by peer")) is None


def test_workers_that_ray_could_never_place_are_refused_and_of_a_range_only_the_least_must_fit() -> None:
    each = {"CPU": 3, "GPU": 1}
    small, large = ({"Alive": True, "Resources": {"CPU": cpus, "GPU": 2}} for cpus in (2, 7))
    gone = {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}
    _check_room([small, large, gone], 2, each)
    with pytest.raises(
        ValueError,
        match=r"3 workers with 3 CPU and 1 GPU each are needed, Ray has room for 2 on 2 nodes: lower --workers or "
        r"--cpus-per-worker or --gpus-per-worker",
    ):
        _check_room([small, large, gone], 3, each)


def test_commands_use_a_running_cluster_and_leave_it_as_it_was(
    cluster: Cluster, run_yaml: Path, tmp_path: Path
) -> None:
    there = ["--workers", "2", "--address", cluster.address]
    with nodes(cluster, 1):
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        with started(tmp_path / "log", *DIST_SCVI, "train", run_yaml, "train.max_epochs=2", *there) as command:
            assert command.exit_code() == 0, command.said
        with started(tmp_path / "log", *DIST_SCVI, "minify", tmp_path / "run", *there) as command:
            assert command.exit_code() == 0, command.said
        assert is_finished(LocalStorage(tmp_path / "run"))
        assert (tmp_path / "run" / "atlas").is_dir()
        assert before & {process.pid for process in psutil.Process().children(recursive=True)}
        with started(
            tmp_path / "log", *DIST_SCVI, "train", run_yaml, "--workers", "3:4", "--address", cluster.address
        ) as command:
            assert command.exit_code() == 2
            assert "3 workers with 1 CPU each are needed, Ray has room for 2 on 2 nodes" in command.said
        ray.init(address=cluster.address, log_to_driver=False)
        try:
            assert ray.available_resources()["CPU"] == 2
        finally:
            ray.shutdown()


def test_a_signal_while_ray_starts_ends_the_run_before_it_begins() -> None:
    stop, board = threading.Event(), SimpleNamespace(stop=SimpleNamespace(remote=None))
    stop.set()
    with pytest.raises(StoppedError, match="before the workers were started"):
        _fit(None, board, stop, 1)
