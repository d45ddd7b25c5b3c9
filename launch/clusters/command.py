"""``dist-scvi launch slurm | kuberay | ray-cluster | skypilot``: its arguments, and the file it prints."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from dist_scvi.launch.clusters.dataclass_arguments import add_arguments, record_of
from dist_scvi.launch.clusters.options import (
    JobOptions,
    KubeRayOptions,
    OutputOptions,
    RayClusterOptions,
    SkyPilotOptions,
    SlurmOptions,
)

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from dist_scvi.launch.clusters.job import Job

    _Commands = _SubParsersAction[argparse.ArgumentParser]


class _Target(NamedTuple):
    help: str
    options: type
    render: Callable[["Job", argparse.Namespace], str]


def add_launch(commands: "_Commands", *others: Callable[["_Commands"], None]) -> None:
    """Add the command ``launch`` and its targets, also those that `others` add; `launch` runs it.

    Each target sets ``render``, which returns the file from the options.
    """
    parser = commands.add_parser("launch", help="print a file that trains, or answers, on a cluster")
    targets = parser.add_subparsers(required=True, metavar="TARGET", dest="target")
    for name, target in _TARGETS.items():
        arguments = targets.add_parser(name, help=target.help)
        for record in (JobOptions, target.options, OutputOptions):
            add_arguments(arguments, record)
        arguments.set_defaults(render=partial(_render_job, target))
    for add in others:
        add(targets)


def launch(options: argparse.Namespace) -> int:
    """Render a file, check it, and print or write it.

    Raises
    ------
    ValueError
        If options are incompatible, or ``dist-scvi train`` would refuse the run.
    FileExistsError
        If the file exists.
    """
    text = options.render(options)
    output = record_of(options, OutputOptions)
    if output.out is None:
        sys.stdout.write(text)
        return 0
    if output.out.exists() and not output.overwrite:
        raise FileExistsError(
            f"{output.out} exists, and may have been edited: choose another --out, or add --overwrite"
        )
    output.out.write_text(text)
    return 0


def _render_job(target: _Target, options: argparse.Namespace) -> str:
    from dist_scvi.launch.clusters.job import job_of

    job = job_of(
        record_of(options, JobOptions), spot_of_gcp=getattr(options, "provider", None) == "gcp" and options.spot
    )
    return target.render(job, options)


# The renderers are imported by the target that needs them: yaml and jsonschema would slow every other command.


def _slurm(job: "Job", options: argparse.Namespace) -> str:
    from dist_scvi.launch.clusters.slurm import render_slurm

    return render_slurm(job, record_of(options, SlurmOptions))


def _kuberay(job: "Job", options: argparse.Namespace) -> str:
    from dist_scvi.launch.clusters.kuberay import render_kuberay

    return render_kuberay(job, record_of(options, KubeRayOptions))


def _ray_cluster(job: "Job", options: argparse.Namespace) -> str:
    from dist_scvi.launch.clusters.ray_cluster import render_ray_cluster

    return render_ray_cluster(job, record_of(options, RayClusterOptions))


def _skypilot(job: "Job", options: argparse.Namespace) -> str:
    from dist_scvi.launch.clusters.skypilot import render_skypilot

    return render_skypilot(job, record_of(options, SkyPilotOptions))


_TARGETS = {
    "slurm": _Target("a batch script for sbatch", SlurmOptions, _slurm),
    "kuberay": _Target("a RayJob for Kubernetes with KubeRay", KubeRayOptions, _kuberay),
    "ray-cluster": _Target("a file for ray up", RayClusterOptions, _ray_cluster),
    "skypilot": _Target("a task for sky jobs launch", SkyPilotOptions, _skypilot),
}
