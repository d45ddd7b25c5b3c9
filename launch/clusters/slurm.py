"""A batch script for Slurm that saves before its time limit and is queued again until the run is finished."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from dist_scvi.launch.clusters.documents import comment
from dist_scvi.launch.clusters.job import Job, refuse_node_local
from dist_scvi.launch.clusters.options import SlurmOptions
from dist_scvi.launch.clusters.schema_check import check, check_shell
from dist_scvi.launch.clusters.templates import Value, render_script

_VALUE = re.compile(r"[^\s\"'\\#`$]+")
_TRAINING_S = 600
"""Smallest time between the start of a job and the signal to save."""


def render_slurm(job: Job, options: SlurmOptions) -> str:
    """Return the script.

    Raises
    ------
    ValueError
        If a path is on one node only, an option is not one of sbatch, or the time limit leaves no time to train.

    Notes
    -----
    Ray 2.60 symmetric-run: it exits 0 if Ray does not start, waits only 30 s for the other nodes, and ends with
    ``ray stop``, which ends every Ray process of this user on the node; hence ``--exclusive``. A signal that Slurm
    sends to the step would end Ray itself, so the training process alone gets it.
    """
    refuse_node_local(job, options.shared)
    directives = _directives(job, options)
    check(directives, "slurm")
    _check_time(job, directives)
    lines = [f"#SBATCH --{name}" + ("" if value is True else f"={value}") for name, value in directives.items()]
    script = "\n".join(
        [
            "#!/usr/bin/env bash",
            comment(_heading(job, options)).rstrip(),
            *lines,
            "set -uo pipefail",
            *_environment(options),
            _script(job),
        ]
    )
    check_shell(script)
    return script


def _directives(job: Job, options: SlurmOptions) -> dict[str, str | bool]:
    least, most = job.nodes
    found: dict[str, str | bool] = {
        "job-name": job.name,
        "nodes": str(most) if least == most else f"{least}-{most}",
        "ntasks-per-node": "1",
        "cpus-per-task": str(job.cpus_per_node),
        "mem": f"{job.memory_mib_per_node}M",
        "output": f"{job.name}-%j.out",
        "open-mode": "append",
        "requeue": True,
        "signal": f"B:USR1@{job.grace_s + 60}",
    }
    if job.gpus_per_node:
        found["gpus-per-node"] = str(job.gpus_per_node)
    if most > 1:
        found["exclusive"] = True
    if job.elastic:
        found["no-kill"] = True
    for name, value in (("partition", options.partition), ("account", options.account)):
        if value:
            found[name] = _checked(f"--{name}", value)
    if options.time_s:
        found["time"] = _time(options.time_s)
    for directive in options.directives:
        name, given, value = directive.removeprefix("--").partition("=")
        found[name] = _checked(f"--sbatch {name}", value) if given else True
    return found


def _check_time(job: Job, directives: Mapping[str, str | bool]) -> None:
    if "time" not in directives:
        return
    days, _, clock = str(directives["time"]).rpartition("-")
    hours, minutes, rest = map(int, clock.split(":"))
    notice_s = int(str(directives["signal"]).rpartition("@")[2])
    if ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest < notice_s + _TRAINING_S:
        raise ValueError(
            f"--time {directives['time']}: the job gets the signal to save {notice_s} s before its end (--grace-s "
            f"{job.grace_s} and 60 s); {_time(notice_s + _TRAINING_S)} or more is needed, or a smaller --grace-s"
        )


def _checked(option: str, value: str) -> str:
    if not _VALUE.fullmatch(value):
        raise ValueError(f"{option}={value!r}: a value without spaces, quotes, '#', '$' and '\\' is needed")
    return value


def _time(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:{rest:02}"


def _heading(job: Job, options: SlurmOptions) -> list[str]:
    decide = [] if options.partition else ["--partition: the default of the site applies"]
    decide += [] if options.time_s else ["--time: the default of the site applies"]
    decide += [] if options.setup else ["--setup: every node needs this Python environment at the path below"]
    return [
        f"Trains {job.run}; submit it with: sbatch THIS_FILE",
        f"{job.grace_s + 60} s before its time limit it saves a checkpoint and queues itself again.",
        "Preempted jobs get the signal in time where slurm.conf has PreemptParameters=send_user_signal.",
        *(
            ["--exclusive is needed because ray symmetric-run, at its end, ends all your Ray processes on its nodes."]
            * (job.nodes[1] > 1)
        ),
        *(["To decide:"] if decide else []),
        *(f"  {line}" for line in decide),
    ]


def _environment(options: SlurmOptions) -> list[str]:
    """Return the lines after which dist-scvi is on PATH, in the directory in which the file was rendered."""
    bin_folder = str(Path(sys.executable).parent)
    setup = options.setup or [f"export PATH={shlex.quote(bin_folder)}:$PATH"]
    return [f"cd -- {shlex.quote(str(Path.cwd()))} || exit 1", *setup]


def _script(job: Job) -> str:
    values: dict[str, Value] = {
        "config": str(job.config),
        "train_options": job.train_options,
        "status": job.status,
        "nodes": job.nodes[1],
        "elastic": "yes" if job.elastic else "no",
        "cpus_per_node": job.cpus_per_node,
        "gpus_per_node": job.gpus_per_node,
        "drain_s": job.drain_s,
        "max_restarts": job.options.max_restarts,
    }
    return render_script(values, "run_state", "slurm")
