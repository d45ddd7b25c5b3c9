"""``dist-scvi launch rayservice``: a RayService for Kubernetes with KubeRay, which answers questions to atlases."""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dist_scvi.launch.argument_types import at_least, size_bytes, span
from dist_scvi.launch.clusters.dataclass_arguments import add_arguments, argument, record_of
from dist_scvi.launch.clusters.options import OutputOptions, PodOptions
from dist_scvi.launch.serve.limits import Service, name_atlases, read_tokens

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    _Commands = _SubParsersAction[argparse.ArgumentParser]

PORT = 8000
"""KubeRay makes a service of Kubernetes for this port."""
_GRACE_S, _DRAIN_S = 60, 45


@dataclass(frozen=True, slots=True, kw_only=True)
class RayServiceOptions:
    """Atlases, who may ask, and the replicas that answer."""

    atlases: tuple[str, ...] = argument(
        "atlases", "URLs, or paths below a --volume", metavar="[NAME=]ATLAS", default=()
    )
    name: str = argument("--name", "of the service; atlas by default", default="atlas")
    replicas: tuple[int, int] = argument(
        "--replicas", "by load, 1:4 by default", metavar="N|MIN:MAX", read=span, default=(1, 4)
    )
    cpus_per_replica: int = argument("--cpus-per-replica", "2 by default", read=at_least(1), default=2)
    memory_bytes: int = argument(
        "--memory", "of each replica, 8GiB by default", metavar="SIZE", read=size_bytes, default=8 << 30
    )
    token_file: Path | None = argument(
        "--token-file",
        "bearer tokens that are accepted; their hashes are written",
        metavar="FILE",
        read=Path,
        default=None,
    )
    insecure: bool = argument("--insecure", "let everybody ask who reaches the service", default=False)


def add_rayservice(targets: "_Commands") -> None:
    """Add the target ``rayservice``."""
    arguments = targets.add_parser("rayservice", help="a RayService for Kubernetes with KubeRay: dist-scvi serve --ray")
    for record in (RayServiceOptions, PodOptions, OutputOptions):
        add_arguments(arguments, record)
    arguments.set_defaults(render=_render)


def _render(options: argparse.Namespace) -> str:
    return render_rayservice(record_of(options, RayServiceOptions), record_of(options, PodOptions))


def render_rayservice(options: RayServiceOptions, pods: PodOptions) -> str:
    """Return the RayService.

    Raises
    ------
    ValueError
        If there is no atlas, one is not visible to the pods, a name is not allowed, or everybody could ask.
    """
    from dist_scvi.launch.clusters.documents import comment, dump
    from dist_scvi.launch.clusters.kuberay import check_names
    from dist_scvi.launch.clusters.schema_check import check

    check_names(pods)
    if not options.token_file and not options.insecure:
        raise ValueError("a service in a cluster is reached by others: give --token-file FILE, or --insecure")
    tokens = read_tokens(options.token_file) if options.token_file else ()
    service = Service(atlases=_visible(name_atlases(options.atlases), pods), token_hashes=tokens)
    document = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": options.name, "namespace": pods.namespace},
        "spec": {"serveConfigV2": _serve_config(service, options), "rayClusterConfig": _cluster(options, pods)},
    }
    check(document, "rayservice")
    return comment(_heading(options, pods)) + dump(document)


def _visible(atlases: dict[str, str], pods: PodOptions) -> dict[str, str]:
    if not atlases:
        raise ValueError("no atlas is named: dist-scvi launch rayservice s3://bucket/atlas --image IMAGE")
    for place in atlases.values():
        below = any(PurePosixPath(place).is_relative_to(folder) for _, folder in pods.volumes)
        if "://" not in place and not below:
            raise ValueError(
                f"{place}: a path of this machine, which the replicas do not see: give a URL such as s3://b/atlas, "
                "or name the folder that they all see with --volume CLAIM=/PATH"
            )
    return atlases


def _heading(options: RayServiceOptions, pods: PodOptions) -> list[str]:
    from dist_scvi.launch.clusters.templates import pinned_version

    return [
        f"Answers questions to {', '.join(name_atlases(options.atlases))}; start it with: kubectl apply -f THIS_FILE",
        f"Reach it with: kubectl -n {pods.namespace} port-forward service/{options.name}-serve-svc {PORT}",
        "A changed file is applied without a gap: KubeRay starts a new cluster and moves the traffic to it.",
        f"It needs KubeRay 1.5.1 or newer, and an image with dist_scvi[serve-ray] and ray=={pinned_version('ray')}.",
        "To decide: serviceAccountName or envFrom, who may read the object store; an Ingress with TLS in front of it.",
    ]


def _serve_config(service: Service, options: RayServiceOptions) -> str:
    from dist_scvi.launch.clusters.documents import dump
    from dist_scvi.launch.serve.ray_serve import APP

    values = service.to_dict() | {"replicas": list(options.replicas), "cpus_per_replica": options.cpus_per_replica}
    values["limits"]["threads"] = max(2, options.cpus_per_replica)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    app = {"name": APP, "route_prefix": "/", "import_path": "dist_scvi.launch.serve.ray_serve:build", "args": plain}
    http = {"host": "0.0.0.0", "port": PORT, "keep_alive_timeout_s": 30}
    return dump({"proxy_location": "EveryNode", "http_options": http, "applications": [app]})


def _cluster(options: RayServiceOptions, pods: PodOptions) -> dict[str, Any]:
    from dist_scvi.launch.clusters.kuberay import head_pod, worker_pod
    from dist_scvi.launch.clusters.templates import pinned_version

    memory_mib = options.memory_bytes >> 20
    resources = {"cpu": str(options.cpus_per_replica), "memory": f"{memory_mib}Mi"}
    least, most = options.replicas
    worker = partial(worker_pod, grace_s=_GRACE_S, drain_s=_DRAIN_S)
    return {
        "rayVersion": pinned_version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"idleTimeoutSeconds": 300},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": {"spec": head_pod(pods, grace_s=_GRACE_S, drain_s=_DRAIN_S)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "replicas",
                "replicas": least,
                "minReplicas": least,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": {"spec": worker(pods, resources, memory_mib)},
            }
        ],
    }
