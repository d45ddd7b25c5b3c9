"""A batch script for Slurm: it saves when its time is over, queues again, and stops when the run is finished."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_scvi.launch.clusters.job import AGAIN, Job, comment, judge, refuse_node_local, saved_step, train_command
from dist_scvi.launch.clusters.schema_check import check, check_shell

_VALUE = re.compile(r"[^\s\"'\\#`$]+")
_TRAINING_S = 600
"""Least time of a job before it is told to save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmOptions:
    """What a site asks for. None leaves it to the defaults of the site."""

    partition: str | None = None
    account: str | None = None
    time_s: int | None = None
    directives: Sequence[str] = ()
    """Further options of sbatch, as ``name`` or ``name=value``."""
    setup: Sequence[str] = ()
    """Shell lines that put dist-scvi on PATH; by default that of this Python is put there."""
    shared: Sequence[str] = ()
    """Folders that all nodes share though they do not look like it."""


def render_slurm(job: Job, options: SlurmOptions) -> str:
    """Write the script.

    Raises
    ------
    ValueError
        If a path lies on one node only, an option is not one of sbatch, or the time leaves none to train.

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
    several = job.nodes[1] > 1
    script = "\n".join(
        [
            "#!/usr/bin/env bash",
            comment(_heading(job, options)).rstrip(),
            *lines,
            "set -uo pipefail",
            "",
            _environment(job, options),
            _ray(job) if several else "",
            _step(job, several=several),
            _end(job),
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
            f"--time {directives['time']}: the job is told to save {notice_s} s before its end (--grace-s "
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
    decide = [] if options.partition else ["--partition: the site's default is taken"]
    decide += [] if options.time_s else ["--time: the site's default is taken"]
    decide += [] if options.setup else ["--setup: all nodes need this Python environment at this path, see PATH below"]
    return [
        f"Trains {job.run}; submit it with: sbatch THIS_FILE",
        f"{job.grace_s + 60} s before its time is over it saves, and puts itself into the queue again.",
        "Preempted jobs are told in time where slurm.conf has PreemptParameters=send_user_signal.",
        *(
            ["--exclusive stands because Ray, when it ends, ends all Ray processes of yours on its nodes."]
            * (job.nodes[1] > 1)
        ),
        *(["To decide:"] if decide else []),
        *(f"  {line}" for line in decide),
    ]


def _environment(job: Job, options: SlurmOptions) -> str:
    bin_folder = str(Path(sys.executable).parent)
    setup = options.setup or [f"export PATH={shlex.quote(bin_folder)}:$PATH"]
    return "\n".join(
        [
            f"cd -- {shlex.quote(str(Path.cwd()))} || exit 1",
            *setup,
            "state=$HOME/.dist-scvi/slurm-$SLURM_JOB_ID  # of this job over its restarts",
            'mkdir -p "$state" && chmod 700 "$state" && rm -f "$state/pid" || exit 1',
            """trap 'rm -rf "$state"' EXIT""",
            "export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token",
            f"export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S={job.drain_s}",
            """(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \\n' > "$RAY_AUTH_TOKEN_PATH") || exit 1""",
            "",
        ]
    )


def _ray(job: Job) -> str:
    """Find the address of the first node, on which this script runs; of several networks, a human may know better."""
    return f"""\
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# To decide: on a site with several networks, the address of this node in the fastest.
head=$(getent ahostsv4 "$node" | awk '$1 !~ /^127\\./ {{ print $1; exit }}')
head=${{head:-$(hostname -I | awk '{{ print $1 }}')}}
port=$((20000 + SLURM_JOB_ID % 10000))
ray=(ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES"
    --num-cpus={job.cpus_per_node} --num-gpus={job.gpus_per_node} --)
"""


def _step(job: Job, *, several: bool) -> str:
    train = train_command(job, shlex.quote(str(job.config)), address="auto" if several else None)
    srun = ["srun", '--cpus-per-task="$SLURM_CPUS_PER_TASK"', *(["--no-kill"] if job.elastic else [])]
    return f"""\
step='' cancelled=''
stop() {{
    cancelled=$1
    echo "dist-scvi: told to stop, saving" >&2
    if [ -s "$state/pid" ]; then kill -TERM "$(cat "$state/pid")"; else kill -TERM "$step"; fi
}}
# shellcheck disable=SC2016
noted='echo "$$" > "$1"; shift; exec "$@"'  # the training process runs on this node and is told by its number
trap 'stop ""' USR1  # its time is over
trap 'stop yes' TERM  # cancelled, or preempted: then Slurm itself puts it into the queue again
{" ".join(srun)} {'"${ray[@]}" ' if several else ""}bash -c "$noted" noted "$state/pid" \\
    {train} &
step=$!
while wait "$step"; code=$?; [ "$code" -gt 128 ] && kill -0 "$step" 2> /dev/null; do :; done
trap '' USR1 TERM
"""


def _end(job: Job) -> str:
    return f"""\
{judge(job)}
# Not finished. A restart is worth it as long as there are new checkpoints.
if [ "$cancelled" ]; then exit {AGAIN}; fi
step=$({saved_step(job)})
restarts=${{SLURM_RESTART_COUNT:-0}}
read -r old_step old_restarts 2> /dev/null < "$state/progress" || old_step=
if [ "${{step:-none}}" != "$old_step" ]; then
    old_restarts=$restarts
    echo "${{step:-none}} $restarts" > "$state/progress"
fi
if [ $((restarts - old_restarts)) -ge {job.max_restarts} ]; then
    echo "dist-scvi: {job.max_restarts} restarts without a new checkpoint: look into it, then submit again" >&2
    exit {AGAIN}
fi
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
scontrol requeue "$SLURM_JOB_ID" || {{
    echo "dist-scvi: could not be put into the queue again: submit it again to go on" >&2
    exit {AGAIN}
}}
"""
