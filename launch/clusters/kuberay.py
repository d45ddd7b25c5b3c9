"""A RayJob for Kubernetes with KubeRay, and the ConfigMap that holds its configuration."""

import re
from collections.abc import Iterable
from typing import Any

from dist_scvi.launch.clusters.documents import comment, dump
from dist_scvi.launch.clusters.job import Job, refuse_local
from dist_scvi.launch.clusters.options import KubeRayOptions, PodOptions
from dist_scvi.launch.clusters.schema_check import check, check_shell
from dist_scvi.launch.clusters.templates import pinned_version, render_script
from dist_scvi.launch.exit_codes import MISTAKE

_FOLDER = "/etc/dist-scvi"
_DNS_WORD = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = rf"(?=.{{1,63}}\Z){_DNS_WORD}"
_DNS_NAME = rf"(?=.{{1,253}}\Z){_DNS_WORD}(\.{_DNS_WORD})*"
_LABEL_WORD = "[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = rf"((?=[^/]{{1,253}}/){_DNS_WORD}(\.{_DNS_WORD})*/)?{_LABEL_WORD}"


def render_kuberay(job: Job, options: KubeRayOptions) -> str:
    """Return the ConfigMap and the RayJob.

    Raises
    ------
    ValueError
        If a path is not visible to the workers, spot nodes are not named, a name is not allowed, or sizes do not fit.

    Notes
    -----
    KubeRay 1.5.1 is the first with token authentication of a RayJob. KubeRay passes the entrypoint through several
    shells: it is a command without quotes that runs a script, in which everything is quoted once.
    """
    refuse_local(job, [path for _, path in options.volumes], "--volume CLAIM=/PATH")
    check_names(options)
    if options.spot and not options.node_selector:
        raise ValueError(
            "--spot needs the label of the spot nodes: --node-selector cloud.google.com/gke-spot=true (GKE), "
            "eks.amazonaws.com/capacityType=SPOT (EKS) or karpenter.sh/capacity-type=spot; or add --on-demand"
        )
    script = _script(job)
    check_shell(script)
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": job.name, "namespace": options.namespace},
        "data": {"run.yaml": job.config.read_text(), "train.sh": script},
    }
    ray_job = _ray_job(job, options)
    check(config, "configmap")
    check(ray_job, "rayjob")
    return comment(_heading(job, options)) + dump(config, ray_job)


def check_names(options: PodOptions) -> None:
    """Refuse names that Kubernetes does not allow.

    Raises
    ------
    ValueError
        With the option and the name.
    """
    _check_each("--image", [options.image], r"\S+", "an image without spaces")
    _check_each("--namespace", [options.namespace], _DNS_LABEL, "up to 63 lower-case letters, digits and dashes")
    for option, names in (
        ("--service-account", [options.service_account] if options.service_account else []),
        ("--secret", options.secrets),
        ("--volume", [claim for claim, _ in options.volumes]),
    ):
        _check_each(option, names, _DNS_NAME, "up to 253 lower-case letters, digits, dashes and dots")
    for option, labels in (
        ("--node-selector", options.node_selector),
        ("--head-node-selector", options.head_node_selector),
        ("--toleration", [(key, value or "") for key, value, _ in options.tolerations]),
    ):
        _check_each(option, [key for key, _ in labels], _LABEL_KEY, "a label such as karpenter.sh/capacity-type")
        _check_each(
            option, [value for _, value in labels], f"({_LABEL_WORD})?", "up to 63 letters, digits, '-', '_' and '.'"
        )


def _check_each(option: str, found: Iterable[str], pattern: str, needed: str) -> None:
    for text in found:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{option}: Kubernetes does not allow {text!r}: {needed} is needed")


def _heading(job: Job, options: KubeRayOptions) -> list[str]:
    return [
        f"Trains {job.run}; start it with: kubectl create -f THIS_FILE",
        "ConfigMap and RayJob stay after the end. Start again with: kubectl replace --force -f THIS_FILE",
        "(which ends a job that still trains), or remove both with: kubectl delete -f THIS_FILE",
        "If the names are taken by another run, render this one with another --name.",
        f"It needs KubeRay 1.5.1 or newer, and an image with dist_scvi and ray[default]=={pinned_version('ray')}.",
        f"A failed start is repeated {job.options.max_restarts} times (backoffLimit), each on a new cluster, which",
        "continues the run. It fails unless the run has its final manifest.",
        f"After exit code {MISTAKE} (a mistake in the input, or lost checkpoints) a restart does not help: delete it.",
        "To decide:",
        "  serviceAccountName or envFrom: who may read and write the object store",
        "  cpu and memory of the head, which runs the driver and no worker",
        *(
            [f"  terminationGracePeriodSeconds: {job.grace_s} is requested; your cloud may give a spot node less"]
            if options.spot
            else []
        ),
    ]


def _script(job: Job) -> str:
    values = {"config": f"{_FOLDER}/run.yaml", "train_options": job.train_options, "status": job.status}
    return f"#!/usr/bin/env bash\nset -uo pipefail\n{render_script(values, 'run_state', 'kuberay')}"


def _ray_job(job: Job, options: KubeRayOptions) -> dict[str, Any]:
    least, most = job.nodes
    cluster: dict[str, Any] = {
        "rayVersion": pinned_version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": {"spec": _head(job, options)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": least,
                "minReplicas": least,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": {"spec": _worker(job, options)},
            }
        ],
    }
    if job.elastic:  # a cluster of fixed size would wait for the last spot node before it starts to train
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {"idleTimeoutSeconds": 300}
    spec: dict[str, Any] = {
        "entrypoint": f"bash {_FOLDER}/train.sh",
        "submissionMode": options.submission_mode,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": options.ttl_s,
        "backoffLimit": job.options.max_restarts,
        "rayClusterSpec": cluster,
    }
    if options.time_s:
        spec["activeDeadlineSeconds"] = options.time_s
    metadata = {"name": job.name, "namespace": options.namespace}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def _head(job: Job, options: KubeRayOptions) -> dict[str, Any]:
    pod = head_pod(options, grace_s=job.grace_s, drain_s=job.drain_s)
    pod["containers"][0]["volumeMounts"].append({"name": "config", "mountPath": _FOLDER, "readOnly": True})
    pod["volumes"].append({"name": "config", "configMap": {"name": job.name}})
    return pod


def _worker(job: Job, options: KubeRayOptions) -> dict[str, Any]:
    resources = {"cpu": str(job.cpus_per_node), "memory": f"{job.memory_mib_per_node}Mi"}
    if job.gpus_per_node:
        resources["nvidia.com/gpu"] = str(job.gpus_per_node)
    return worker_pod(options, resources, job.memory_mib_per_node, grace_s=job.grace_s, drain_s=job.drain_s)


def head_pod(options: PodOptions, *, grace_s: int, drain_s: int) -> dict[str, Any]:
    """Return the pod of the head, which runs no worker."""
    resources = {"cpu": "2", "memory": "8Gi"}
    pod = _pod(options, "ray-head", resources, shm_mib=2048, grace_s=grace_s, drain_s=drain_s)
    if options.head_node_selector:
        pod["nodeSelector"] = dict(options.head_node_selector)
    return pod


def worker_pod(
    options: PodOptions, resources: dict[str, str], memory_mib: int, *, grace_s: int, drain_s: int
) -> dict[str, Any]:
    """Return the pod of workers.

    Raises
    ------
    ValueError
        If its shared memory is no part of its memory.
    """
    shm_mib = options.shm_bytes >> 20 if options.shm_bytes else memory_mib * 3 // 10  # the share of Ray's object store
    if not 0 < shm_mib < memory_mib:
        raise ValueError(f"--shm of {shm_mib} MiB: it is taken from the {memory_mib} MiB of the pod, less is needed")
    pod = _pod(options, "ray-worker", resources, shm_mib=shm_mib, grace_s=grace_s, drain_s=drain_s)
    if options.node_selector:
        pod["nodeSelector"] = dict(options.node_selector)
    if options.tolerations:
        pod["tolerations"] = [_toleration(*each) for each in options.tolerations]
    return pod


def _pod(
    options: PodOptions, name: str, resources: dict[str, str], *, shm_mib: int, grace_s: int, drain_s: int
) -> dict[str, Any]:
    mounts = [(f"claim-{number}", claim, path) for number, (claim, path) in enumerate(options.volumes)]
    container: dict[str, Any] = {
        "name": name,
        "image": options.image,
        "env": [{"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(drain_s)}],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            *({"name": volume, "mountPath": path} for volume, _, path in mounts),
        ],
    }
    if options.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in options.secrets]
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": grace_s,
        "containers": [container],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_mib}Mi"}},
            *({"name": volume, "persistentVolumeClaim": {"claimName": claim}} for volume, claim, _ in mounts),
        ],
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    return pod


def _toleration(key: str, value: str | None, effect: str) -> dict[str, str]:
    matched = {"operator": "Exists"} if value is None else {"operator": "Equal", "value": value}
    return {"key": key, **matched, "effect": effect}
