"""A file for ``ray up``: machines of a cloud, workers on spot ones, and a script that trains to the end."""

from typing import Any

from dist_scvi.launch.clusters.documents import comment, dump
from dist_scvi.launch.clusters.install import install_script
from dist_scvi.launch.clusters.job import Job, refuse_local
from dist_scvi.launch.clusters.options import RayClusterOptions
from dist_scvi.launch.clusters.schema_check import RAY_CLUSTER, check, check_shell
from dist_scvi.launch.clusters.templates import Value, render_script

_GCP_SPOT_S = 30
_CLIENT = {"aws": "boto3", "gcp": "google-api-python-client"}  # the package with which Ray starts machines


def render_ray_cluster(job: Job, options: RayClusterOptions) -> str:
    """Return the file.

    Raises
    ------
    ValueError
        If a path is not visible to the workers, or a required option of the cloud is missing.

    Notes
    -----
    Ray 2.60 saves on SIGTERM only in a ``ray start --block``, which therefore runs in the background.
    """
    refuse_local(job, options.shared, "--shared")
    _check_cloud(job, options)
    head = _node(options, options.head_instance, spot=False, gpus=0)
    worker = _node(options, options.instance, spot=options.spot, gpus=job.gpus_per_node)
    resources = {"CPU": job.cpus_per_node} | ({"GPU": job.gpus_per_node} if job.gpus_per_node else {})
    least, most = job.nodes
    cluster: dict[str, Any] = {
        "cluster_name": job.name,
        "max_workers": most,
        "idle_timeout_minutes": 10,
        "provider": _provider(options),
        "auth": {"ssh_user": "ubuntu"},
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": head},
            "worker": {"min_workers": least, "max_workers": most, "resources": resources, "node_config": worker},
        },
        "file_mounts": {"/home/ubuntu/.ray/auth_token": "~/.ray/auth_token"},
        "setup_commands": [install_script(options.install, _CLIENT[options.provider], files={})],
        "head_setup_commands": [_head_files(job)],
        "head_start_ray_commands": _start(is_head=True, drain_s=0),
        "worker_start_ray_commands": _start(is_head=False, drain_s=job.drain_s),
    }
    check(cluster, RAY_CLUSTER)
    for key in ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in cluster[key]:
            check_shell(command)
    return comment(_heading(job, options)) + dump(cluster)


def _check_cloud(job: Job, options: RayClusterOptions) -> None:
    if options.provider == "gcp":
        missing = [name for name in ("project", "zone", "image") if getattr(options, name) is None]
        if missing:
            raise ValueError(f"--provider gcp needs --{' and --'.join(missing)}")
        if options.spot and job.grace_s > _GCP_SPOT_S:
            raise ValueError(
                f"--grace-s {job.grace_s}: gcp gives a spot machine {_GCP_SPOT_S} s: that or less is needed"
            )
    elif options.project is not None:
        raise ValueError("--project belongs to --provider gcp")


def _heading(job: Job, options: RayClusterOptions) -> list[str]:
    return [
        f"Trains {job.run} on machines of {options.provider}:",
        "  ray get-auth-token --generate > /dev/null && export RAY_AUTH_MODE=token",
        "  ray up THIS_FILE --yes",
        "  ray exec THIS_FILE --tmux 'bash ~/dist-scvi/train.sh'",
        "  ray exec THIS_FILE 'tail -f ~/dist-scvi/train.log'",
        "  ray down THIS_FILE --yes",
        "The machines cost money until the last of these commands.",
        "To decide:",
        "  node_config: disks, network and the role that may read and write the object store",
        f"  setup_commands: {options.install} is installed; every machine has to reach it, a path is one there",
        *(["  the cloud decides when a spot machine ends, whatever --grace-s says"] if options.spot else []),
    ]


def _provider(options: RayClusterOptions) -> dict[str, Any]:
    provider: dict[str, Any] = {"type": options.provider, "region": options.region}
    if options.zone:
        provider["availability_zone"] = options.zone
    if options.project:
        provider["project_id"] = options.project
    if options.provider == "aws":
        provider["cache_stopped_nodes"] = (
            False  # a stopped machine still costs its disk, and its environment is installed again in any case
        )
    return provider


def _node(options: RayClusterOptions, instance: str, *, spot: bool, gpus: int) -> dict[str, Any]:
    if options.provider == "aws":
        node: dict[str, Any] = {"InstanceType": instance}
        if options.image:
            node["ImageId"] = options.image
        if spot:
            node["InstanceMarketOptions"] = {"MarketType": "spot"}
        return node
    disk = {"diskSizeGb": 200, "sourceImage": options.image}
    node = {
        "machineType": instance,
        "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}],
    }
    scheduling = ({"preemptible": True} if spot else {}) | ({"onHostMaintenance": "TERMINATE"} if gpus else {})
    if scheduling:
        node["scheduling"] = [scheduling]
    return node


def _start(*, is_head: bool, drain_s: int) -> list[str]:
    return [
        render_script({}, "ray_cluster_stop"),
        render_script({"is_head": "yes" if is_head else "no", "drain_s": drain_s}, "ray_cluster_start"),
    ]


def _head_files(job: Job) -> str:
    values: dict[str, Value] = {
        "train_options": job.train_options,
        "status": job.status,
        "max_restarts": job.options.max_restarts,
    }
    script = f"#!/usr/bin/env bash\nset -uo pipefail\n{render_script(values, 'run_state', 'ray_cluster_train')}"
    check_shell(script)
    files = {"run.yaml": job.config.read_text(), "train.sh": script}
    return render_script({"file_names": list(files), "file_texts": list(files.values())}, "write_files")
