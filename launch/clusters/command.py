"""``dist-scvi launch slurm | kuberay | ray-cluster | skypilot``: its arguments, and the file it prints."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dist_scvi.launch.argument_types import at_least, pair, size_bytes, span, time_s

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from dist_scvi.launch.clusters.job import Job

    _Commands = _SubParsersAction[argparse.ArgumentParser]

_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def add_launch(commands: "_Commands") -> None:
    """Add the command ``launch`` and its targets; `launch` carries it out."""
    parser = commands.add_parser("launch", help="print a file that trains on a cluster and goes on until it is done")
    targets = parser.add_subparsers(required=True, metavar="TARGET", dest="target")
    for add in (_slurm, _kuberay, _ray_cluster, _skypilot):
        add(targets)


def launch(options: argparse.Namespace) -> int:
    """Render the file that was asked for, check it, and print or write it.

    Raises
    ------
    ValueError
        If what was asked for does not fit together.
    FileExistsError
        If the file is there already.
    """
    from dist_scvi.launch.clusters.job import job_of

    job = job_of(
        options.config,
        options.words,
        name=options.name,
        workers=options.workers,
        nodes=options.nodes,
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
        memory_bytes=options.memory,
        grace_s=options.grace_s or (30 if getattr(options, "provider", None) == "gcp" and options.spot else 120),
        max_restarts=options.max_restarts,
    )
    render = {
        "slurm": _render_slurm,
        "kuberay": _render_kuberay,
        "ray-cluster": _render_ray_cluster,
        "skypilot": _render_skypilot,
    }[options.target]
    text = render(job, options)
    if options.out is None:
        sys.stdout.write(text)
        return 0
    if options.out.exists() and not options.overwrite:
        raise FileExistsError(
            f"{options.out} is there already, perhaps edited: choose another --out or say --overwrite"
        )
    options.out.write_text(text)
    return 0


def _render_slurm(job: "Job", options: argparse.Namespace) -> str:
    from dist_scvi.launch.clusters.slurm import SlurmOptions, render_slurm

    asked = SlurmOptions(
        partition=options.partition,
        account=options.account,
        time_s=options.time,
        directives=options.sbatch,
        setup=options.setup,
        shared=options.shared,
    )
    return render_slurm(job, asked)


def _render_kuberay(job: "Job", options: argparse.Namespace) -> str:
    from dist_scvi.launch.clusters.kuberay import KubeRayOptions, render_kuberay

    asked = KubeRayOptions(
        image=options.image,
        namespace=options.namespace,
        spot=options.spot,
        node_selector=dict(options.node_selector),
        head_node_selector=dict(options.head_node_selector),
        tolerations=options.toleration,
        service_account=options.service_account,
        secrets=options.secret,
        volumes=options.volume,
        shm_bytes=options.shm,
        time_s=options.time,
        ttl_s=options.ttl_s,
        submission_mode=options.submission_mode,
    )
    return render_kuberay(job, asked)


def _render_ray_cluster(job: "Job", options: argparse.Namespace) -> str:
    from dist_scvi.launch.clusters.ray_cluster import RayClusterOptions, render_ray_cluster

    asked = RayClusterOptions(
        provider=options.provider,
        region=options.region,
        zone=options.zone,
        project=options.project,
        instance=options.instance,
        head_instance=options.head_instance,
        image=options.image,
        spot=options.spot,
        install=options.install,
        shared=tuple(options.shared),
    )
    return render_ray_cluster(job, asked)


def _render_skypilot(job: "Job", options: argparse.Namespace) -> str:
    from dist_scvi.launch.clusters.skypilot import SkyPilotOptions, render_skypilot

    asked = SkyPilotOptions(
        infra=options.infra,
        accelerator=options.accelerator,
        image=options.image,
        spot=options.spot,
        install=options.install,
        mounts=options.mount,
    )
    return render_skypilot(job, asked)


def _slurm(targets: "_Commands") -> None:
    slurm = targets.add_parser("slurm", help="a batch script for sbatch")
    _add_job(slurm)
    slurm.add_argument("--partition")
    slurm.add_argument("--account")
    slurm.add_argument("--time", type=time_s, metavar="[D-]HH:MM:SS", help="after which it queues again")
    slurm.add_argument(
        "--sbatch", action="append", default=[], metavar="NAME[=VALUE]", help="further option of sbatch, as qos=high"
    )
    slurm.add_argument(
        "--setup", action="append", default=[], metavar="COMMAND", help="shell line that puts dist-scvi on PATH"
    )
    _add_shared(slurm)


def _kuberay(targets: "_Commands") -> None:
    kuberay = targets.add_parser("kuberay", help="a RayJob for Kubernetes with KubeRay")
    _add_job(kuberay)
    _add_spot(kuberay)
    label = pair("--node-selector cloud.google.com/gke-spot=true")
    claim = pair("--volume CLAIM=/PATH")
    kuberay.add_argument("--image", required=True, help="with dist_scvi and ray[default]")
    kuberay.add_argument("--namespace", default="default")
    kuberay.add_argument("--node-selector", action="append", default=[], type=label, metavar="LABEL=VALUE")
    kuberay.add_argument("--head-node-selector", action="append", default=[], type=label, metavar="LABEL=VALUE")
    kuberay.add_argument(
        "--toleration", action="append", default=[], type=_toleration, metavar="KEY[=VALUE]:EFFECT", help="of workers"
    )
    kuberay.add_argument("--service-account", metavar="NAME", help="of all pods, to reach the object store")
    kuberay.add_argument(
        "--secret", action="append", default=[], metavar="NAME", help="secret whose keys become environment variables"
    )
    kuberay.add_argument(
        "--volume", action="append", default=[], type=claim, metavar="CLAIM=/PATH", help="mounted in all pods"
    )
    kuberay.add_argument("--shm", type=size_bytes, metavar="SIZE", help="/dev/shm of a worker pod; 30%% of its memory")
    kuberay.add_argument("--time", type=time_s, metavar="[D-]HH:MM:SS", help="after which a start is given up")
    kuberay.add_argument("--ttl-s", type=at_least(0), default=300, help="how long the cluster stays after the end")
    kuberay.add_argument("--submission-mode", choices=["K8sJobMode", "HTTPMode"], default="K8sJobMode")


def _ray_cluster(targets: "_Commands") -> None:
    cluster = targets.add_parser("ray-cluster", help="a file for ray up")
    _add_job(cluster)
    _add_spot(cluster)
    cluster.add_argument("--provider", choices=["aws", "gcp"], required=True)
    cluster.add_argument("--region", required=True)
    cluster.add_argument("--zone", help="of the region; needed by gcp")
    cluster.add_argument("--project", help="of gcp")
    cluster.add_argument("--instance", required=True, metavar="TYPE", help="machine of workers")
    cluster.add_argument("--head-instance", required=True, metavar="TYPE", help="machine of the driver, 2 CPUs will do")
    cluster.add_argument("--image", help="of the machines, with Ubuntu; needed by gcp")
    _add_install(cluster)
    _add_shared(cluster)


def _skypilot(targets: "_Commands") -> None:
    sky = targets.add_parser("skypilot", help="a task for sky jobs launch")
    _add_job(sky)
    _add_spot(sky)
    sky.add_argument("--infra", metavar="CLOUD[/REGION]", help="as aws/us-east-1; by default the cheapest anywhere")
    sky.add_argument("--accelerator", metavar="NAME", help="of the GPUs, as H100")
    sky.add_argument("--image", help="of the machines, or docker:IMAGE")
    sky.add_argument(
        "--mount", action="append", default=[], type=pair("--mount /PATH=s3://bucket"), metavar="/PATH=URL",
        help="bucket to read from",
    )  # fmt: skip
    _add_install(sky)


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="configuration of the run")
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides")
    parser.add_argument("--workers", type=span, default=(1, 1), metavar="N|MIN:MAX")
    parser.add_argument("--nodes", type=span, metavar="N|MIN:MAX", help="by default one for each worker")
    parser.add_argument("--cpus-per-worker", type=at_least(1), default=4)
    parser.add_argument("--gpus-per-worker", type=at_least(0), default=0)
    parser.add_argument("--memory", type=size_bytes, default=16 << 30, metavar="SIZE", help="of each worker; 16GiB")
    parser.add_argument(
        "--grace-s", type=at_least(20), help="seconds between word of a machine's end and its end; 120, on gcp spot 30"
    )
    parser.add_argument(
        "--max-restarts", type=at_least(0), default=10, help="restarts without progress before a human is asked"
    )
    parser.add_argument("--name", help="of the job; by default that of the run's folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here instead of printing")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def _add_spot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--spot", action="store_true", default=True, help="workers on spot machines, the default")
    parser.add_argument("--on-demand", action="store_false", dest="spot", help="workers on machines that stay")


def _add_install(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--install",
        required=True,
        metavar="URL|REQUIREMENT|PATH",
        help="dist-scvi, from where the machines reach it: git+https://..., URL or path there of a wheel, or a "
        "requirement if your package index has it (in a public one that name may be another's)",
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shared", action="append", default=[], metavar="PATH", help="folder that all machines see")


def _toleration(text: str) -> tuple[str, str | None, Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]]:
    rest, _, effect = text.rpartition(":")
    key, found, value = rest.partition("=")
    if not key or effect not in _EFFECTS:
        raise argparse.ArgumentTypeError(f"{text!r}: write KEY[=VALUE]:EFFECT, effects are {', '.join(_EFFECTS)}")
    return key, value if found else None, effect  # type: ignore[return-value]
