"""The file for ``ray up``: spot workers, an authenticated Ray that saves in time, and a script that starts again."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_scvi.launch.clusters.job import Job, job_of
from dist_scvi.launch.clusters.options import JobOptions, RayClusterOptions
from dist_scvi.launch.clusters.ray_cluster import render_ray_cluster
from dist_scvi.launch.clusters.schema_check import RAY_CLUSTER, check

AWS = RayClusterOptions(
    provider="aws",
    region="us-east-1",
    instance="g5.xlarge",
    head_instance="m7i.large",
    install="dist-scvi @ file:///a b",
)
GCP = RayClusterOptions(
    provider="gcp",
    region="us-central1",
    zone="us-central1-a",
    project="lab",
    instance="g2-standard-8",
    head_instance="e2-standard-2",
    image="projects/x/images/y",
    install="dist-scvi",
)
CONFIG = "# it's $(mine)\nrun: s3://bucket/run\ndata: {uri: s3://bucket/atlas.zarr}\n"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "run.yaml").write_text(CONFIG)
    return job_of(
        JobOptions(
            config=tmp_path / "run.yaml",
            words=("data.batch_key=it's $(here)",),
            name=None,
            workers=(2, 4),
            nodes=None,
            cpus_per_worker=4,
            gpus_per_worker=1,
            memory_bytes=16 << 30,
            grace_s=120,
            max_restarts=2,
        )
    )


def rendered(job: Job, options: RayClusterOptions = AWS) -> dict[str, Any]:
    cluster: dict[str, Any] = yaml.safe_load(render_ray_cluster(job, options))
    return cluster


def test_workers_are_spot_machines_within_the_range_and_the_head_is_not(job: Job) -> None:
    cluster = rendered(job)
    head, worker = (cluster["available_node_types"][name] for name in ("head", "worker"))
    assert (worker["min_workers"], worker["max_workers"], cluster["max_workers"]) == (2, 4, 4)
    assert worker["node_config"] == {"InstanceType": "g5.xlarge", "InstanceMarketOptions": {"MarketType": "spot"}}
    assert worker["resources"] == {"CPU": 4, "GPU": 1}
    assert head == {"resources": {"CPU": 0}, "node_config": {"InstanceType": "m7i.large"}}
    on_demand = rendered(job, replace(AWS, spot=False, image="ami-1"))["available_node_types"]["worker"]
    assert on_demand["node_config"] == {"InstanceType": "g5.xlarge", "ImageId": "ami-1"}


def test_machines_of_gcp_are_described_as_gcp_does(job: Job) -> None:
    cluster = rendered(replace(job, grace_s=30), GCP)
    provider = {"type": "gcp", "region": "us-central1", "availability_zone": "us-central1-a", "project_id": "lab"}
    assert cluster["provider"] == provider
    worker = cluster["available_node_types"]["worker"]["node_config"]
    assert worker["machineType"] == "g2-standard-8"
    assert worker["scheduling"] == [{"preemptible": True, "onHostMaintenance": "TERMINATE"}]
    assert worker["disks"][0]["initializeParams"]["sourceImage"] == "projects/x/images/y"
    assert "scheduling" not in cluster["available_node_types"]["head"]["node_config"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(GCP, project=None, image=None), "needs --project and --image"),
        (GCP, "gcp gives a spot machine 30 s"),
        (replace(AWS, project="lab"), "--project belongs to"),
    ],
)
def test_what_the_cloud_does_not_have_is_refused(job: Job, options: RayClusterOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_ray_cluster(job, options)


def test_a_run_on_this_machine_is_refused_unless_all_share_it(job: Job) -> None:
    local = replace(job, paths=(("run", "/efs/run"),))
    with pytest.raises(ValueError, match=r"run=/efs/run.*--shared"):
        render_ray_cluster(local, AWS)
    render_ray_cluster(local, replace(AWS, shared=("/efs",)))


def test_ray_is_authenticated_and_workers_save_when_their_machine_is_shut_down(job: Job, tmp_path: Path) -> None:
    cluster = rendered(job)
    assert cluster["file_mounts"] == {"/home/ubuntu/.ray/auth_token": "~/.ray/auth_token"}
    (tmp_path / "dist-scvi" / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "dist-scvi" / "venv" / "bin" / "activate").write_text(
        'ray() { echo "$* ${RAY_AUTH_MODE-} ${RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S-}"; }; setsid() { shift; "$@"; }\n'
    )
    for role, words in (
        (
            "head",
            f"--head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config={tmp_path}/ray_bootstrap_config.yaml",
        ),
        ("worker", "--address=10.0.0.1:6379"),
    ):
        script = "\n".join([*cluster[f"{role}_start_ray_commands"], "wait"])
        environment = home(tmp_path) | {"RAY_HEAD_IP": "10.0.0.1"}
        subprocess.run(["bash", "-uc", script], env=environment, check=True, capture_output=True)
        log = (tmp_path / "dist-scvi" / "ray.log").read_text()
        assert log == f"start --block {words} token {100 if role == 'worker' else 0}\n"


def test_it_installs_into_an_environment_of_its_own_what_was_named(job: Job, tmp_path: Path) -> None:
    stubs = "curl() { exit 9; }; uv() { printf '%s|' \"$@\"; echo; }; export -f uv curl\n"
    script = stubs + "\n".join(rendered(job)["setup_commands"])
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=home(tmp_path)).stdout
    venv, install = told.splitlines()
    assert venv.endswith(f"|{tmp_path}/dist-scvi/venv|")
    assert f"|--constraint|{tmp_path}/dist-scvi/constraints.txt|" in install
    assert install.endswith("|dist-scvi @ file:///a b|ray[default,train]|boto3|")


def home(folder: Path) -> dict[str, str]:
    return {"HOME": str(folder), "PATH": os.environ["PATH"]}


def train(job: Job, folder: Path, stub: str) -> tuple[int, list[str]]:
    """Set the head up and run its script with dist-scvi played by `stub`: exit code, and what was called."""
    environment = home(folder)
    for command in rendered(job)["head_setup_commands"]:
        subprocess.run(["bash", "-c", command], check=True, env=environment)
    (folder / "dist-scvi" / "venv" / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "dist-scvi" / "venv" / "bin" / "activate").write_text(f'dist-scvi() {{\necho "$*"\n{stub}\n}}\n')
    script = folder / "dist-scvi" / "train.sh"
    code = subprocess.run(["bash", str(script)], check=False, env=environment, timeout=30).returncode
    return code, (folder / "dist-scvi" / "train.log").read_text().splitlines()


def test_the_head_has_the_configuration_and_trains_to_the_end(job: Job, tmp_path: Path) -> None:
    code, log = train(job, tmp_path, "return 0")
    assert (tmp_path / "dist-scvi" / "run.yaml").read_text() == CONFIG
    assert code == 0
    assert log == [
        (
            f"train {tmp_path}/dist-scvi/run.yaml data.batch_key=it's $(here) --workers 2:4 --cpus-per-worker 4 "
            "--gpus-per-worker 1 --address auto"
        ),
        "status s3://bucket/run --exit-code",
    ]


def test_it_starts_again_as_long_as_there_are_new_checkpoints(job: Job, tmp_path: Path) -> None:
    stub = """case $* in
train*) starts=$((${starts:-0} + 1)); return 75 ;;
*--json) echo "{\\"saved_step\\": $((starts < 4 ? starts : 4))}" ;;
*) return 75 ;;
esac"""
    code, log = train(job, tmp_path, stub)
    assert code == 75
    assert sum(line.startswith("train") for line in log) == 6  # steps 1, 2, 3, 4, 4, 4
    assert "2 restarts without a new checkpoint" in log[-1]


@pytest.mark.parametrize(("codes", "end"), [((2, 75), 2), ((0, 1), 1), ((1, 2), 2)])
def test_a_mistake_or_a_broken_run_ends_it(job: Job, tmp_path: Path, codes: tuple[int, int], end: int) -> None:
    stub = f"case $1 in train) return {codes[0]} ;; *) return {codes[1]} ;; esac"
    code, log = train(job, tmp_path, stub)
    assert (code, len(log)) == (end, 2)


@pytest.mark.parametrize(
    ("key", "value"), [("max_workers", -1), ("nodes", 3), ("provider", {}), ("setup_commands", "ls"), ("docker", 1)]
)
def test_a_file_that_ray_would_refuse_is_refused(job: Job, key: str, value: object) -> None:
    cluster = rendered(job)
    check(cluster, RAY_CLUSTER)
    with pytest.raises(ValueError, match="ray-cluster: at"):
        check({**cluster, key: value}, RAY_CLUSTER)
