"""A file for ``ray up``: machines of a cloud, workers on spot ones, and a script that trains until it is done."""

from dataclasses import dataclass
from typing import Any, Literal

from dist_scvi.launch.clusters.job import (
    FOLDER,
    Job,
    comment,
    dump,
    install,
    judge,
    refuse_local,
    saved_step,
    train_command,
    write_files,
)
from dist_scvi.launch.clusters.schema_check import RAY_CLUSTER, check, check_shell

_GCP_SPOT_S = 30
_CLIENT = {"aws": "boto3", "gcp": "google-api-python-client"}  # with which Ray starts machines


@dataclass(frozen=True, slots=True, kw_only=True)
class RayClusterOptions:
    """Which machines of which cloud."""

    provider: Literal["aws", "gcp"]
    region: str
    zone: str | None = None
    project: str | None = None
    """Of gcp."""
    instance: str
    """Type of the machines of workers."""
    head_instance: str
    image: str | None = None
    """Image of the machines; on aws that of Ray by default."""
    spot: bool = True
    install: str
    """What pip installs: dist-scvi, from wherever it is."""
    shared: tuple[str, ...] = ()
    """Folders that all machines see."""


def render_ray_cluster(job: Job, options: RayClusterOptions) -> str:
    """Write the file.

    Raises
    ------
    ValueError
        If the workers could not see a path, or the cloud needs what was not named.

    Notes
    -----
    Ray 2.60 saves on SIGTERM only in a ``ray start --block``, which is therefore started behind the command.
    """
    refuse_local(job, options.shared, "--shared")
    _check_cloud(job, options)
    script = _script(job)
    check_shell(script)
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
        "setup_commands": ["set -e\n" + install(options.install, _CLIENT[options.provider])],
        "head_setup_commands": ["set -e\n" + write_files({"run.yaml": job.config.read_text(), "train.sh": script})],
        "head_start_ray_commands": _start(
            "--head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=$HOME/ray_bootstrap_config.yaml", 0
        ),
        "worker_start_ray_commands": _start("--address=$RAY_HEAD_IP:6379", job.drain_s),
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
        "The machines cost money until the last of these.",
        "To decide:",
        "  node_config: disks, network and the role that may read and write the object store",
        f"  setup_commands: {options.install} is installed; every machine has to reach it, a path is one of theirs",
        *(["  the cloud shuts a spot machine down in its own time, whatever --grace-s says"] if options.spot else []),
    ]


def _provider(options: RayClusterOptions) -> dict[str, Any]:
    provider: dict[str, Any] = {"type": options.provider, "region": options.region}
    if options.zone:
        provider["availability_zone"] = options.zone
    if options.project:
        provider["project_id"] = options.project
    if options.provider == "aws":
        provider["cache_stopped_nodes"] = False  # the environment is made anew, a stopped machine would cost its disk
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


def _start(words: str, drain_s: int) -> list[str]:
    activate = f'. "{FOLDER}/venv/bin/activate"'
    environment = f"RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S={drain_s}"
    behind = f'> "{FOLDER}/ray.log" 2>&1 < /dev/null &'
    start = f"{environment} setsid nohup ray start --block {words} {behind}"
    return [f"{activate}; ray stop || true", f"{activate}; ulimit -n 65536; {start}"]


def _script(job: Job) -> str:
    return f"""\
#!/usr/bin/env bash
set -uo pipefail
. "{FOLDER}/venv/bin/activate"
export RAY_AUTH_MODE=token
exec >> "{FOLDER}/train.log" 2>&1
restarts=0 old_step=
while :; do
{train_command(job, f'"{FOLDER}/run.yaml"', address="auto")}
code=$?
{judge(job)}
step=$({saved_step(job)})
if [ "${{step:-none}}" != "$old_step" ]; then restarts=0; fi
old_step=${{step:-none}}
restarts=$((restarts + 1))
if [ "$restarts" -gt {job.max_restarts} ]; then
    echo "dist-scvi: {job.max_restarts} restarts without a new checkpoint: look into it, then start it again" >&2
    exit "$status"
fi
done
"""
