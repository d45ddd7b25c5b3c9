"""The RayJob for Kubernetes: spot workers that are told in time, a head that stays, and an entrypoint that can fail."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_scvi.launch.clusters.job import Job, job_of
from dist_scvi.launch.clusters.kuberay import render_kuberay
from dist_scvi.launch.clusters.options import JobOptions, KubeRayOptions
from dist_scvi.launch.clusters.schema_check import check
from dist_scvi.launch.clusters.templates import pinned_version
from tests.launch.clusters.with_options import with_options

OPTIONS = KubeRayOptions(
    image="registry/dist-scvi:1",
    node_selector=(("cloud.google.com/gke-spot", "true"),),
    head_node_selector=(("pool", "steady"),),
    tolerations=(("cloud.google.com/gke-spot", "true", "NoSchedule"), ("nvidia.com/gpu", None, "NoSchedule")),
)


def job_on(folder: Path, text: str = "run: s3://bucket/run\ndata: {uri: s3://bucket/atlas.zarr}\n") -> Job:
    (folder / "run.yaml").write_text(text)
    return job_of(
        JobOptions(
            config=folder / "run.yaml",
            words=("data.batch_key=it's $(here)",),
            name="atlas",
            workers=(2, 4),
            nodes=(1, 2),
            cpus_per_worker=8,
            gpus_per_worker=1,
            memory_bytes=32 << 30,
            grace_s=120,
            max_restarts=7,
        )
    )


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_on(tmp_path)


def rendered(job: Job, options: KubeRayOptions = OPTIONS) -> tuple[dict[str, Any], dict[str, Any]]:
    config, ray_job = yaml.safe_load_all(render_kuberay(job, options))
    return config, ray_job


def pods(ray_job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    cluster = ray_job["spec"]["rayClusterSpec"]
    return cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]


def test_it_starts_again_cleans_up_and_is_authenticated(job: Job) -> None:
    _, ray_job = rendered(job, replace(OPTIONS, time_s=3600, ttl_s=60, submission_mode="HTTPMode"))
    spec = ray_job["spec"]
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (7, True, 60)
    assert (spec["activeDeadlineSeconds"], spec["submissionMode"]) == (3600, "HTTPMode")
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["rayVersion"] == pinned_version("ray")


def test_workers_lie_on_spot_nodes_and_the_head_does_not(job: Job) -> None:
    head, worker = pods(rendered(job)[1])
    assert worker["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert worker["tolerations"] == [
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    ]
    assert head["nodeSelector"] == {"pool": "steady"}
    assert "tolerations" not in head


def test_a_pod_has_time_to_save_within_its_grace(job: Job) -> None:
    for pod in pods(rendered(job)[1]):
        assert pod["terminationGracePeriodSeconds"] == 120
        assert {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "100"} in pod["containers"][0]["env"]


def test_a_pod_has_what_its_workers_need_and_a_shared_memory(job: Job) -> None:
    _, worker = pods(rendered(job)[1])
    resources = {"cpu": "16", "memory": "65536Mi", "nvidia.com/gpu": "2"}
    assert worker["containers"][0]["resources"] == {"requests": resources, "limits": resources}
    assert worker["volumes"][0] == {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "19660Mi"}}
    assert worker["containers"][0]["volumeMounts"][0] == {"name": "shm", "mountPath": "/dev/shm"}
    _, worker = pods(rendered(job, replace(OPTIONS, shm_bytes=8 << 30))[1])
    assert worker["volumes"][0]["emptyDir"]["sizeLimit"] == "8192Mi"


def test_a_range_starts_with_the_least_and_grows(job: Job) -> None:
    cluster = rendered(job)[1]["spec"]["rayClusterSpec"]
    group = cluster["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 2)
    assert cluster["enableInTreeAutoscaling"]
    fixed = rendered(with_options(job, workers=(4, 4), nodes=(2, 2)))[1]["spec"]["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in fixed
    assert fixed["workerGroupSpecs"][0]["replicas"] == 2


def test_the_head_trains_nothing(job: Job) -> None:
    assert rendered(job)[1]["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_configuration_arrives_as_it_is_written(tmp_path: Path) -> None:
    text = "# it's \"mine\": $(here)\nrun: 's3://bucket/a run'\ndata:\n  uri: s3://bucket/atlas.zarr   \n\n"
    config, ray_job = rendered(job_on(tmp_path, text))
    assert config["data"]["run.yaml"] == text
    head, worker = pods(ray_job)
    assert {"name": "config", "configMap": {"name": config["metadata"]["name"]}} in head["volumes"]
    assert len(worker["volumes"]) == 1


@pytest.mark.parametrize(
    ("code", "status", "end"), [(0, 0, 0), (0, 75, 75), (1, 75, 75), (2, 75, 2), (0, 1, 1), (1, 2, 2)]
)
def test_the_entrypoint_fails_unless_the_run_is_finished(job: Job, code: int, status: int, end: int) -> None:
    config, ray_job = rendered(job)
    assert ray_job["spec"]["entrypoint"] == "bash /etc/dist-scvi/train.sh"
    stub = f'dist-scvi() {{ echo "$*"; case $1 in train) return {code} ;; *) return {status} ;; esac; }}\n'
    told = subprocess.run(
        ["bash", "-c", stub + config["data"]["train.sh"]], capture_output=True, text=True, check=False
    )
    assert told.returncode == end
    assert told.stdout.splitlines() == [
        (
            "train /etc/dist-scvi/run.yaml data.batch_key=it's $(here) --workers 2:4 --cpus-per-worker 8 "
            "--gpus-per-worker 1 --address auto"
        ),
        "status s3://bucket/run --exit-code",
    ]


def test_claims_secrets_and_the_account_reach_all_pods(tmp_path: Path) -> None:
    job = job_on(tmp_path, "run: /atlas/run\ndata: {uri: /atlas/a.zarr}\n")
    options = replace(OPTIONS, volumes=[("claim", "/atlas")], secrets=["keys"], service_account="trainer")
    for pod in pods(rendered(job, options)[1]):
        assert {"name": "claim-0", "persistentVolumeClaim": {"claimName": "claim"}} in pod["volumes"]
        assert {"name": "claim-0", "mountPath": "/atlas"} in pod["containers"][0]["volumeMounts"]
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]
        assert pod["serviceAccountName"] == "trainer"
    with pytest.raises(ValueError, match="run=/atlas/run"):
        render_kuberay(job, OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node_selector": ()}, "--spot needs the label"),
        ({"shm_bytes": 80 << 30}, "--shm of 81920 MiB"),
        ({"image": "a b"}, "--image: .*'a b'"),
        ({"image": "a\n"}, "--image: "),
        ({"namespace": "Upper"}, "--namespace: .*'Upper'"),
        ({"namespace": "a" * 64}, "--namespace: "),
        ({"namespace": "a.b"}, "--namespace: "),
        ({"node_selector": (("a b", "c"),)}, "--node-selector: .*'a b'"),
        ({"node_selector": (("a", "b c"),)}, "--node-selector: .*'b c'"),
        ({"node_selector": (("a", "b\n"),)}, "--node-selector: "),
        ({"node_selector": (("Upper.io/a", "b"),)}, "--node-selector: "),
        ({"node_selector": ((f"{'a' * 254}/a", "b"),)}, "--node-selector: "),
        ({"node_selector": (("a.io/", "b"),)}, "--node-selector: "),
        ({"node_selector": (("a.io/b/c", "d"),)}, "--node-selector: "),
        ({"node_selector": (("a", "b" * 64),)}, "--node-selector: "),
        ({"head_node_selector": (("-a", "b"),)}, "--head-node-selector: .*'-a'"),
        ({"tolerations": [("a", "b c", "NoSchedule"), ("a", "b", "NoExecute")]}, "--toleration: .*'b c'"),
        ({"tolerations": [("a b", None, "NoSchedule")]}, "--toleration: .*'a b'"),
        ({"secrets": ["A B"]}, "--secret: .*'A B'"),
        ({"volumes": [("a..b", "/atlas")]}, r"--volume: .*'a\.\.b'"),
        ({"volumes": [("claim", "relative")]}, "mountPath"),
        ({"service_account": "$(x)"}, "--service-account: "),
    ],
)
def test_what_the_cluster_would_refuse_is_refused(job: Job, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_kuberay(job, replace(OPTIONS, **change))  # type: ignore[arg-type]


def test_names_as_kubernetes_allows_them_are_taken(job: Job) -> None:
    options = replace(
        OPTIONS,
        namespace="1-lab",
        node_selector=(("Upper_1.a", ""), (f"{'a.' * 126}b/c", "d" * 63)),
        tolerations=[("a", "", "NoSchedule"), ("a", "b_1.C", "NoExecute")],
        secrets=["a.b-c", "x" * 253],
    )
    assert pods(rendered(job, options)[1])[1]["nodeSelector"] == dict(options.node_selector)


def test_it_says_how_it_is_started_again_and_what_ends_the_one_before(job: Job) -> None:
    heading = render_kuberay(job, OPTIONS)
    for command in (
        "kubectl create -f THIS_FILE",
        "kubectl replace --force -f THIS_FILE",
        "kubectl delete -f THIS_FILE",
    ):
        assert command in heading


def test_nodes_that_stay_need_no_label(job: Job) -> None:
    _, worker = pods(rendered(job, replace(OPTIONS, spot=False, node_selector={}, tolerations=()))[1])
    assert "nodeSelector" not in worker


def test_a_field_that_kuberay_does_not_have_is_refused(job: Job) -> None:
    _, ray_job = rendered(job)
    broken: list[tuple[list[str], str]] = [
        ([], "kinds"),
        (["spec"], "backoffLimits"),
        (["spec", "rayClusterSpec"], "auth"),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec"], "terminationGracePeriod"),
    ]
    for place, field in broken:
        at = ray_job
        for key in place:
            at = at[key]
        at[field] = 1
        with pytest.raises(ValueError, match=field):
            check(ray_job, "rayjob")
        del at[field]
    check(ray_job, "rayjob")
