"""Options of ``dist-scvi launch``: one dataclass for the job, and one for each target.

The command-line arguments are generated from them, and the renderers receive them unchanged.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_scvi.launch.argument_types import at_least, pair, size_bytes, span, time_s
from dist_scvi.launch.clusters.dataclass_arguments import argument

_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_LABEL = pair("--node-selector cloud.google.com/gke-spot=true")
_INSTALL = (
    "dist-scvi, from where the machines reach it: git+https://..., URL or path there of a wheel, or a requirement if "
    "your package index has it (in a public one that name may be another's)"
)


def _spot() -> bool:
    off = ("--on-demand", "workers on machines that are not taken away")
    field: bool = argument("--spot", "workers on spot machines, the default", default=True, off=off)
    return field


def _toleration(text: str) -> tuple[str, str | None, str]:
    rest, _, effect = text.rpartition(":")
    key, found, value = rest.partition("=")
    if not key or effect not in _EFFECTS:
        raise argparse.ArgumentTypeError(f"{text!r}: write KEY[=VALUE]:EFFECT, effects are {', '.join(_EFFECTS)}")
    return key, value if found else None, effect


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """A run, and the machines for its training."""

    config: Path = argument("config", "configuration of the run", metavar="RUN.yaml", read=Path)
    words: tuple[str, ...] = argument("words", "overrides", metavar="key=value", default=())
    workers: tuple[int, int] = argument("--workers", "1 by default", metavar="N|MIN:MAX", read=span, default=(1, 1))
    nodes: tuple[int, int] | None = argument(
        "--nodes", "one for each worker by default", metavar="N|MIN:MAX", read=span, default=None
    )
    cpus_per_worker: int = argument("--cpus-per-worker", "4 by default", read=at_least(1), default=4)
    gpus_per_worker: int = argument("--gpus-per-worker", "0 by default", read=at_least(0), default=0)
    memory_bytes: int = argument(
        "--memory", "of each worker, 16GiB by default", metavar="SIZE", read=size_bytes, default=16 << 30
    )
    grace_s: int | None = argument(
        "--grace-s",
        "seconds from the notice that a machine ends to its end; 120 by default, 30 on spot machines of gcp",
        read=at_least(20),
        default=None,
    )
    max_restarts: int = argument(
        "--max-restarts",
        "restarts without a new checkpoint before it stops, 10 by default",
        read=at_least(0),
        default=10,
    )
    name: str | None = argument("--name", "of the job; by default that of the folder of the run", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmOptions:
    """Settings of a site. None uses the default of the site."""

    partition: str | None = argument("--partition", default=None)
    account: str | None = argument("--account", default=None)
    time_s: int | None = argument(
        "--time", "limit after which the job is queued again", metavar="[D-]HH:MM:SS", read=time_s, default=None
    )
    directives: tuple[str, ...] = argument(
        "--sbatch", "further option of sbatch, as qos=high", metavar="NAME[=VALUE]", default=()
    )
    setup: tuple[str, ...] = argument(
        "--setup", "shell line that puts dist-scvi on PATH; by default this Python's", metavar="COMMAND", default=()
    )
    shared: tuple[str, ...] = argument("--shared", "folder that all machines see", metavar="PATH", default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOptions:
    """Namespace, image and resources in a Kubernetes cluster."""

    image: str = argument("--image", "with dist_scvi and ray[default], as made from launch/clusters/docker")
    namespace: str = argument("--namespace", "default by default", default="default")
    node_selector: tuple[tuple[str, str], ...] = argument(
        "--node-selector", "label of the nodes of workers", metavar="LABEL=VALUE", read=_LABEL, default=()
    )
    head_node_selector: tuple[tuple[str, str], ...] = argument(
        "--head-node-selector", "label of the node of the head", metavar="LABEL=VALUE", read=_LABEL, default=()
    )
    tolerations: tuple[tuple[str, str | None, str], ...] = argument(
        "--toleration", "of workers", metavar="KEY[=VALUE]:EFFECT", read=_toleration, default=()
    )
    service_account: str | None = argument(
        "--service-account", "of all pods, to reach the object store", metavar="NAME", default=None
    )
    secrets: tuple[str, ...] = argument(
        "--secret", "secret whose keys become environment variables", metavar="NAME", default=()
    )
    volumes: tuple[tuple[str, str], ...] = argument(
        "--volume", "claim mounted in all pods", metavar="CLAIM=/PATH", read=pair("--volume CLAIM=/PATH"), default=()
    )
    shm_bytes: int | None = argument(
        "--shm", "/dev/shm of a worker pod; 30%% of its memory", metavar="SIZE", read=size_bytes, default=None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeRayOptions(PodOptions):
    """A job in a Kubernetes cluster."""

    spot: bool = _spot()
    time_s: int | None = argument(
        "--time", "limit after which a start is given up", metavar="[D-]HH:MM:SS", read=time_s, default=None
    )
    ttl_s: int = argument("--ttl-s", "how long the cluster stays after the end", read=at_least(0), default=300)
    submission_mode: Literal["K8sJobMode", "HTTPMode"] = argument(
        "--submission-mode", choices=["K8sJobMode", "HTTPMode"], default="K8sJobMode"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RayClusterOptions:
    """Machines of a cloud."""

    provider: Literal["aws", "gcp"] = argument("--provider", choices=["aws", "gcp"])
    region: str = argument("--region")
    zone: str | None = argument("--zone", "of the region; needed by gcp", default=None)
    project: str | None = argument("--project", "of gcp", default=None)
    instance: str = argument("--instance", "machine of workers", metavar="TYPE")
    head_instance: str = argument("--head-instance", "machine of the driver, 2 CPUs are enough", metavar="TYPE")
    image: str | None = argument("--image", "of the machines, with Ubuntu; needed by gcp", default=None)
    spot: bool = _spot()
    install: str = argument("--install", _INSTALL, metavar="URL|REQUIREMENT|PATH")
    shared: tuple[str, ...] = argument("--shared", "folder that all machines see", metavar="PATH", default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyPilotOptions:
    """Machines and their mounts."""

    infra: str | None = argument(
        "--infra", "as aws/us-east-1; by default the cheapest anywhere", metavar="CLOUD[/REGION]", default=None
    )
    accelerator: str | None = argument("--accelerator", "of the GPUs, as H100", metavar="NAME", default=None)
    image: str | None = argument("--image", "of the machines, or docker:IMAGE", default=None)
    spot: bool = _spot()
    install: str = argument("--install", _INSTALL, metavar="URL|REQUIREMENT|PATH")
    mounts: tuple[tuple[str, str], ...] = argument(
        "--mount", "bucket to read from", metavar="/PATH=URL", read=pair("--mount /PATH=s3://bucket"), default=()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Destination of the file."""

    out: Path | None = argument("--out", "write here instead of printing", metavar="FILE", read=Path, default=None)
    overwrite: bool = argument("--overwrite", "replace an existing file", default=False)
