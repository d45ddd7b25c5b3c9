"""A task for SkyPilot's managed jobs, which find spot machines anywhere and start again when they are taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_scvi.launch.clusters.job import (
    AGAIN,
    FOLDER,
    MISTAKE,
    Job,
    comment,
    dump,
    install,
    judge,
    refuse_local,
    train_command,
    write_files,
)
from dist_scvi.launch.clusters.schema_check import check, check_shell

_PORT = 6399
_START_S = 600
_CLOUDS = (
    *("aws", "azure", "cudo", "digitalocean", "do", "fluidstack", "gcp", "hyperbolic", "ibm", "k8s", "kubernetes"),
    *("lambda", "mithril", "nebius", "oci", "paperspace", "primeintellect", "runpod", "scp", "seeweb", "shadeform"),
    *("slurm", "ssh", "vast", "verda", "vsphere", "yotta"),
)
"""SkyPilot 0.14.1, sky/clouds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyPilotOptions:
    """Which machines, and what they see."""

    infra: str | None = None
    """As aws/us-east-1; by default the cheapest anywhere."""
    accelerator: str | None = None
    """Name of the GPU."""
    image: str | None = None
    spot: bool = True
    install: str
    """What pip installs: dist-scvi, from wherever it is."""
    mounts: Sequence[tuple[str, str]] = ()
    """Where buckets are mounted to read, and their URLs."""


def render_skypilot(job: Job, options: SkyPilotOptions) -> str:
    """Write the task.

    Raises
    ------
    ValueError
        If the workers could not see a path, the run lies in a mounted bucket, or cloud or GPU is not named as it must.

    Notes
    -----
    SkyPilot 0.14 runs its own Ray 2.9 as the same user on port 6380: ours has another port and folder and is ended by
    its process, as ``ray stop`` would end both.
    """
    folders = [path for path, _ in options.mounts]
    refuse_local(job, folders, "--mount /PATH=URL")
    if "://" not in job.run:
        raise ValueError(
            f"run={job.run} is in a mounted bucket, which cannot rename folders whole: give its URL, as s3://bucket/run"
        )
    _check_names(job, options)
    if job.elastic:
        raise ValueError(f"--nodes {job.nodes[0]}:{job.nodes[1]}: SkyPilot starts all nodes together, give one number")
    task = _task(job, options)
    check(task, "skypilot")
    check_shell(task["setup"])
    check_shell(task["run"])
    return comment(_heading(job, options)) + dump(task)


def _check_names(job: Job, options: SkyPilotOptions) -> None:
    cloud = (options.infra or "*").partition("/")[0]
    if cloud != "*" and cloud.lower() not in _CLOUDS:
        raise ValueError(f"--infra {options.infra}: {cloud!r} is no cloud of SkyPilot, which are {', '.join(_CLOUDS)}")
    if bool(job.gpus_per_worker) != bool(options.accelerator):
        raise ValueError(
            f"--gpus-per-worker {job.gpus_per_worker} with --accelerator {options.accelerator}: give the number of "
            "GPUs and their name, as in --gpus-per-worker 1 --accelerator H100, or neither"
        )
    if ":" in (options.accelerator or ""):
        raise ValueError(
            f"--accelerator {options.accelerator}: the name alone is needed, as H100; --gpus-per-worker is the number"
        )


def _heading(job: Job, options: SkyPilotOptions) -> list[str]:
    named = [name for name in ("infra", "accelerator", "image") if getattr(options, name)]
    return [
        f"Trains {job.run}; start it with:",
        '  export RAY_AUTH_TOKEN=$(python3 -c "import secrets; print(secrets.token_hex(32))")',
        "  sky jobs launch THIS_FILE --secret RAY_AUTH_TOKEN",
        f"Exit code {AGAIN} is 'start again' and costs none of max_restarts_on_errors; others do, also {MISTAKE}",
        "(a mistake, or lost checkpoints), where a restart does not help. To stop it: sky jobs cancel",
        "To decide:",
        *(
            [f"  {', '.join(named)}: only SkyPilot knows whether they exist and go together, see sky gpus list --all"]
            * bool(named)
        ),
        f"  setup: {options.install} is installed; every machine has to reach it, a path is one of theirs",
        "  who may read and write the object store: the identity of the machines, or --secret AWS_ACCESS_KEY_ID ...",
    ]


def _task(job: Job, options: SkyPilotOptions) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "cpus": f"{job.cpus_per_node + 1}+",
        "memory": f"{-(-job.memory_mib_per_node // 1024)}+",
        "use_spot": options.spot,
        "job_recovery": {"max_restarts_on_errors": job.max_restarts, "recover_on_exit_codes": [AGAIN]},
    }
    if options.infra:
        resources["infra"] = options.infra
    if options.accelerator:
        resources["accelerators"] = {options.accelerator: job.gpus_per_node}
    if options.image:
        resources["image_id"] = options.image
    task: dict[str, Any] = {"name": job.name, "num_nodes": job.nodes[1], "resources": resources}
    if options.mounts:
        task["file_mounts"] = {path: {"source": url, "mode": "MOUNT"} for path, url in options.mounts}
    task["envs"] = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    task["secrets"] = {"RAY_AUTH_TOKEN": None}
    files = {"run.yaml": job.config.read_text(), "wait.py": _WAIT}
    task["setup"] = f"set -e\n{write_files(files)}{install(options.install)}"
    task["run"] = _run(job)
    return task


def _run(job: Job) -> str:
    """Start Ray on all nodes and train on the first; the others end with it, and its exit code counts."""
    train = train_command(job, f'"{FOLDER}/run.yaml"', address='"$head"')
    start = f"ray start --num-cpus={job.cpus_per_node} --num-gpus={job.gpus_per_node}"
    return f"""\
set -uo pipefail
. "{FOLDER}/venv/bin/activate"
unset RAY_ADDRESS  # of SkyPilot's Ray
head=$(printf '%s\\n' "$SKYPILOT_NODE_IPS" | head -n 1):{_PORT}
if [ "$SKYPILOT_NODE_RANK" -ne 0 ]; then
    until (exec 3<> "/dev/tcp/${{head%:*}}/{_PORT}") 2> /dev/null || [ "$SECONDS" -gt {_START_S} ]; do sleep 2; done
    RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S={job.drain_s} {start} --address="$head" --block
    exit 0  # the exit code of the first node is that of the run
fi
RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 {start} --head --port={_PORT} --node-ip-address="${{head%:*}}" \\
    --include-dashboard=false --temp-dir=/tmp/ray_dist_scvi --block &
ray=$!
trap 'kill "$ray" 2> /dev/null; wait "$ray"' EXIT
python "{FOLDER}/wait.py" "$head" "$SKYPILOT_NUM_NODES" {_START_S} || exit {AGAIN}
{train}
code=$?
{judge(job)}exit "$status"
"""


_WAIT = """\
\"\"\"Wait until Ray has all nodes: ADDRESS NODES SECONDS.\"\"\"

import sys
import time

import ray

address, nodes, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
end, found = time.monotonic() + seconds, 0
while found < nodes:
    try:
        ray.init(address, log_to_driver=False, ignore_reinit_error=True)
        found = sum(node["Alive"] for node in ray.nodes())
    except ConnectionError:
        pass
    if found < nodes and time.monotonic() > end:
        sys.exit(f"only {found} of {nodes} nodes came within {seconds:.0f} s")
    time.sleep(2)
"""
