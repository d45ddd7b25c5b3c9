"""A task for SkyPilot's managed jobs, which find spot machines in any region and restart when these are removed."""

from typing import Any

from dist_scvi.launch.clusters.documents import comment, dump
from dist_scvi.launch.clusters.install import install_script
from dist_scvi.launch.clusters.job import Job, refuse_local
from dist_scvi.launch.clusters.options import SkyPilotOptions
from dist_scvi.launch.clusters.schema_check import check, check_shell
from dist_scvi.launch.clusters.templates import Value, render_script
from dist_scvi.launch.exit_codes import AGAIN, MISTAKE

_PORT = 6399
_START_S = 600
_CLOUDS = (
    *("aws", "azure", "cudo", "digitalocean", "do", "fluidstack", "gcp", "hyperbolic", "ibm", "k8s", "kubernetes"),
    *("lambda", "mithril", "nebius", "oci", "paperspace", "primeintellect", "runpod", "scp", "seeweb", "shadeform"),
    *("slurm", "ssh", "vast", "verda", "vsphere", "yotta"),
)
"""SkyPilot 0.14.1, sky/clouds."""


def render_skypilot(job: Job, options: SkyPilotOptions) -> str:
    """Return the task.

    Raises
    ------
    ValueError
        If a path is not visible to the workers, the run is in a mounted bucket, or cloud or GPU is misspelled.

    Notes
    -----
    SkyPilot 0.14 runs its own Ray 2.9 as the same user on port 6380: ours has another port and folder and is ended by
    its process, because ``ray stop`` would end both.
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
        raise ValueError(f"--infra {options.infra}: {cloud!r} is no cloud of SkyPilot; those are {', '.join(_CLOUDS)}")
    if bool(job.options.gpus_per_worker) != bool(options.accelerator):
        raise ValueError(
            f"--gpus-per-worker {job.options.gpus_per_worker} with --accelerator {options.accelerator}: give the "
            "number of GPUs and their name, as in --gpus-per-worker 1 --accelerator H100, or neither"
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
        f"Exit code {AGAIN} means 'start again' and uses up none of max_restarts_on_errors; others do, also {MISTAKE}",
        "(a mistake in the input, or lost checkpoints), where a restart does not help. To stop it: sky jobs cancel",
        "To decide:",
        *(
            [f"  {', '.join(named)}: only SkyPilot knows whether they exist together, see sky gpus list --all"]
            * bool(named)
        ),
        f"  setup: {options.install} is installed; every machine has to reach it, a path is one there",
        "  who may read and write the object store: the identity of the machines, or --secret AWS_ACCESS_KEY_ID ...",
    ]


def _task(job: Job, options: SkyPilotOptions) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "cpus": f"{job.cpus_per_node + 1}+",
        "memory": f"{-(-job.memory_mib_per_node // 1024)}+",
        "use_spot": options.spot,
        "job_recovery": {"max_restarts_on_errors": job.options.max_restarts, "recover_on_exit_codes": [AGAIN]},
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
    task["setup"] = install_script(options.install, files={"run.yaml": job.config.read_text()})
    task["run"] = _run(job)
    return task


def _run(job: Job) -> str:
    """Start Ray on all nodes and train on the first; the others end with it, and its exit code counts."""
    values: dict[str, Value] = {
        "train_options": job.train_options,
        "status": job.status,
        "cpus_per_node": job.cpus_per_node,
        "gpus_per_node": job.gpus_per_node,
        "drain_s": job.drain_s,
        "port": _PORT,
        "start_s": _START_S,
    }
    return f"set -uo pipefail\n{render_script(values, 'run_state', 'skypilot')}"
