"""The task for SkyPilot: what it asks for, and its script on the first node and another, with Ray played by stubs."""

import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_scvi.launch.clusters.job import Job, job_of
from dist_scvi.launch.clusters.options import JobOptions, SkyPilotOptions
from dist_scvi.launch.clusters.schema_check import check
from dist_scvi.launch.clusters.skypilot import render_skypilot
from dist_scvi.launch.clusters.templates import pinned_version
from tests.launch.clusters.with_options import with_options

OPTIONS = SkyPilotOptions(accelerator="H100", install="dist-scvi")
CONFIG = "# it's $(mine)\nrun: s3://bucket/run\ndata: {uri: s3://bucket/atlas.zarr}\n"
STUBS = {
    "ray": """
echo "ray $* drain=$RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S address=${RAY_ADDRESS-unset}" >> "$HOME/log"
case "$*" in
*--head*) trap 'echo "ray ended" >> "$HOME/log"; exit 0' TERM; while :; do sleep 0.02; done ;;
*) exit 1 ;;
esac""",
    "python": 'sleep 0.3; echo "wait $*" >> "$HOME/log"; exit "${WAITED:-0}"',
    "dist-scvi": """
echo "$*" >> "$HOME/log"
case $1 in train) exit "${TRAIN:-0}" ;; *) exit "${STATUS:-0}" ;; esac""",
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "run.yaml").write_text(CONFIG)
    return job_of(
        JobOptions(
            config=tmp_path / "run.yaml",
            words=("data.batch_key=it's $(here)",),
            name="atlas",
            workers=(4, 4),
            nodes=(2, 2),
            cpus_per_worker=4,
            gpus_per_worker=1,
            memory_bytes=16 << 30,
            grace_s=120,
            max_restarts=3,
        )
    )


def rendered(job: Job, options: SkyPilotOptions = OPTIONS) -> dict[str, Any]:
    task: dict[str, Any] = yaml.safe_load(render_skypilot(job, options))
    return task


def run(job: Job, folder: Path, rank: int, **answers: str) -> tuple[int, list[str]]:
    """Run the task on the node `rank`: exit code, and what was called."""
    venv = folder / "dist-scvi" / "venv" / "bin"
    venv.mkdir(parents=True)
    for name, text in STUBS.items():
        (venv / name).write_text(f"#!/bin/bash\n{text}\n")
        (venv / name).chmod(0o755)
    (venv / "activate").write_text(f"PATH={venv}:$PATH\n")
    environment = {
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
        "RAY_ADDRESS": "127.0.0.1:6380",
        **answers,
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_IPS": "127.0.0.1\n10.0.0.2",
    }
    code = subprocess.run(["bash", "-c", rendered(job)["run"]], check=False, env=environment, timeout=30).returncode
    return code, (folder / "log").read_text().splitlines()


def test_it_asks_for_spot_machines_and_to_be_started_again(job: Job) -> None:
    task = rendered(job, replace(OPTIONS, infra="aws/us-east-1", image="docker:lab/image:1"))
    assert (task["name"], task["num_nodes"]) == ("atlas", 2)
    assert task["resources"] == {
        "cpus": "9+",
        "memory": "32+",
        "use_spot": True,
        "job_recovery": {"max_restarts_on_errors": 3, "recover_on_exit_codes": [75]},
        "infra": "aws/us-east-1",
        "accelerators": {"H100": 2},
        "image_id": "docker:lab/image:1",
    }
    assert rendered(job, replace(OPTIONS, spot=False))["resources"]["use_spot"] is False


def test_the_token_is_a_secret_that_is_not_in_the_file(job: Job) -> None:
    task = rendered(job)
    assert task["secrets"] == {"RAY_AUTH_TOKEN": None}
    assert task["envs"]["RAY_AUTH_MODE"] == "token"


def test_every_node_has_the_configuration_and_an_environment_of_its_own(job: Job, tmp_path: Path) -> None:
    stubs = "curl() { exit 9; }; uv() { printf '%s|' \"$@\"; echo; }; export -f uv curl\n"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    subprocess.run(["bash", "-c", stubs + rendered(job)["setup"]], check=True, env=environment, capture_output=True)
    assert (tmp_path / "dist-scvi" / "run.yaml").read_text() == CONFIG
    assert f"ray=={pinned_version('ray')}\n" in (tmp_path / "dist-scvi" / "constraints.txt").read_text()


def test_the_first_node_waits_for_all_trains_and_ends_its_own_ray_alone(job: Job, tmp_path: Path) -> None:
    code, log = run(job, tmp_path, 0)
    assert code == 0
    assert log == [
        (
            "ray start --block --num-cpus=8 --num-gpus=2 --head --port=6399 --node-ip-address=127.0.0.1 "
            "--include-dashboard=false --temp-dir=/tmp/ray_dist_scvi drain=0 address=unset"
        ),
        "wait -m dist_scvi.launch.clusters.wait_for_nodes 127.0.0.1:6399 2 600",
        (
            f"train {tmp_path}/dist-scvi/run.yaml data.batch_key=it's $(here) --workers 4 --cpus-per-worker 4 "
            "--gpus-per-worker 1 --address 127.0.0.1:6399"
        ),
        "status s3://bucket/run --exit-code",
        "ray ended",
    ]


@pytest.mark.parametrize(
    ("answers", "end"),
    [
        ({"TRAIN": "1", "STATUS": "0"}, 0),
        ({"TRAIN": "0", "STATUS": "75"}, 75),
        ({"TRAIN": "2", "STATUS": "75"}, 2),
        ({"TRAIN": "0", "STATUS": "4"}, 4),
        ({"TRAIN": "1", "STATUS": "2"}, 2),
        ({"WAITED": "1"}, 75),
    ],
)
def test_its_exit_code_is_that_of_the_run(job: Job, tmp_path: Path, answers: dict[str, str], end: int) -> None:
    code, log = run(job, tmp_path, 0, **answers)
    assert (code, log[-1]) == (end, "ray ended")
    assert any(line.startswith("train") for line in log) == ("WAITED" not in answers)


def test_another_node_joins_as_soon_as_the_first_is_there_and_never_decides(job: Job, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 6399)):
        code, log = run(job, tmp_path, 1)
    assert code == 0
    assert log == ["ray start --block --num-cpus=8 --num-gpus=2 --address=127.0.0.1:6399 drain=100 address=unset"]


def test_buckets_are_mounted_to_read_and_runs_are_not_written_there(job: Job) -> None:
    mounted = replace(OPTIONS, mounts=[("/atlas", "gs://bucket")])
    local = replace(job, paths=(("run", job.run), ("data.uri", "/atlas/a.zarr")))
    assert rendered(local, mounted)["file_mounts"] == {"/atlas": {"source": "gs://bucket", "mode": "MOUNT"}}
    with pytest.raises(ValueError, match=r"data\.uri=/atlas/a.zarr.*--mount"):
        render_skypilot(local, OPTIONS)
    with pytest.raises(ValueError, match="run=/atlas/run is in a mounted bucket"):
        render_skypilot(replace(job, run="/atlas/run", paths=()), mounted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accelerator": None}, "--accelerator None"),
        ({"accelerator": "H100:8"}, "--accelerator H100:8: the name alone"),
        ({"infra": "mars/x"}, "--infra mars/x: 'mars' is no cloud of SkyPilot"),
        ({"infra": "aws us east"}, "--infra aws us east"),
        ({"infra": "aws/a/b/c"}, "at resources/infra"),
        ({"mounts": [("atlas", "s3://bucket")]}, "at file_mounts"),
        ({"mounts": [("/atlas", "bucket")]}, "at file_mounts//atlas/source"),
    ],
)
def test_what_skypilot_would_refuse_is_refused(job: Job, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_skypilot(job, replace(OPTIONS, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("infra", ["AWS/us-east-1", "*/us-east-1", "k8s/a/b/c", "gcp"])
def test_a_cloud_of_skypilot_is_taken_however_it_is_written(job: Job, infra: str) -> None:
    assert rendered(job, replace(OPTIONS, infra=infra))["resources"]["infra"] == infra


def test_what_could_not_be_checked_is_said(job: Job) -> None:
    told = render_skypilot(job, replace(OPTIONS, infra="aws/nowhere", install="git+https://host/x"))
    assert "#   infra, accelerator: only SkyPilot knows" in told
    assert "#   setup: git+https://host/x is installed" in told
    steady = with_options(job, gpus_per_worker=0)
    assert "only SkyPilot knows" not in render_skypilot(steady, replace(OPTIONS, accelerator=None))


def test_a_range_of_nodes_is_refused(job: Job) -> None:
    with pytest.raises(ValueError, match="--nodes 1:2: SkyPilot starts all nodes together"):
        render_skypilot(with_options(job, workers=(2, 4), nodes=(1, 2)), OPTIONS)


@pytest.mark.parametrize(("key", "value"), [("num_nodes", 0), ("node", 2), ("envs", {"A B": ""}), ("resources", {})])
def test_a_task_that_does_not_fit_the_schema_is_refused(job: Job, key: str, value: object) -> None:
    task = rendered(job)
    check(task, "skypilot")
    with pytest.raises(ValueError, match="skypilot: at"):
        check({**task, key: value}, "skypilot")
