"""The batch script for Slurm: what it asks for, and how it ends, with Slurm and dist-scvi played by small scripts."""

import os
import shlex
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dist_scvi.launch.clusters.job import Job, job_of
from dist_scvi.launch.clusters.options import JobOptions, SlurmOptions
from dist_scvi.launch.clusters.slurm import render_slurm
from tests.launch.clusters.with_options import with_options

STUBS = {
    "srun": 'echo "srun $*" >> "$STUB/log"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "ray": 'echo "ray $*" >> "$STUB/log"; while [ "$1" != -- ]; do shift; done; shift; "$@"; exit 0',  # swallows codes
    "scontrol": """
case $1 in
show) echo node7 ;;
requeue) echo "requeue $2" >> "$STUB/log"; [ ! -e "$STUB/no_requeue" ] ;;
esac""",
    "getent": "echo '127.0.1.1 STREAM node7'; echo '10.0.0.7 STREAM node7'",
    "dist-scvi": """
echo "$*" >> "$STUB/log"
case "$*" in
train*)
    cat "$RAY_AUTH_TOKEN_PATH" > "$STUB/token"
    stat -c %a "$RAY_AUTH_TOKEN_PATH" > "$STUB/mode"
    if [ -e "$STUB/waits" ]; then
        trap 'echo saved >> "$STUB/log"; exit 75' TERM
        touch "$STUB/training"
        while :; do sleep 0.05; done
    fi
    exit "$(cat "$STUB/train_code")" ;;
*--exit-code) exit "$(cat "$STUB/status_code")" ;;
*--json) printf '{"step": 7, "saved_step": %s}' "$(cat "$STUB/saved_step")" ;;
esac""",
}


class Site:
    """A Slurm of stubs, in which a script is run as a job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name, text in STUBS.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / "bin" / name).chmod(0o755)
        self.says(train_code=0, status_code=0, saved_step=10)

    def says(self, **answers: int) -> None:
        for name, answer in answers.items():
            (self.folder / name).write_text(str(answer))

    def start(self, script: str, restarts: int = 0) -> "subprocess.Popen[str]":
        environment = {
            "STUB": str(self.folder),
            "HOME": str(self.folder),
            "PATH": os.environ["PATH"],
            "SLURM_JOB_ID": "123",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        (self.folder / "log").unlink(missing_ok=True)
        return subprocess.Popen(
            ["bash", "-c", script], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, script: str, restarts: int = 0) -> tuple[int, str, str]:
        """Run a script to its end: exit code, what was called, what was printed."""
        process = self.start(script, restarts)
        printed, _ = process.communicate(timeout=30)
        return process.returncode, (self.folder / "log").read_text(), printed

    def await_training(self) -> None:
        end = time.monotonic() + 20
        while not (self.folder / "training").exists():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    folder = tmp_path / "a 'folder' of $(mine)"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "run.yaml").write_text("run: /shared/run 1\ndata: {uri: /shared/atlas.zarr}\n")
    return job_of(
        JobOptions(
            config=Path("run.yaml"),
            words=("data.batch_key='it''s $(here)'",),
            name=None,
            workers=(4, 4),
            nodes=(2, 2),
            cpus_per_worker=2,
            gpus_per_worker=1,
            memory_bytes=8 << 30,
            grace_s=120,
            max_restarts=2,
        )
    )


@pytest.fixture
def options(site: Site) -> SlurmOptions:
    return SlurmOptions(setup=(f"export PATH={shlex.quote(str(site.folder / 'bin'))}:$PATH",))


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]


def test_it_asks_for_what_the_workers_need_and_to_be_told_and_queued_again(job: Job, options: SlurmOptions) -> None:
    asked = directives(render_slurm(job, replace(options, partition="gpu", account="lab", time_s=90_061)))
    assert {"nodes=2", "ntasks-per-node=1", "cpus-per-task=4", "gpus-per-node=2", "mem=16384M"} <= set(asked)
    assert {"requeue", "signal=B:USR1@180", "open-mode=append", "exclusive"} <= set(asked)
    assert {"partition=gpu", "account=lab", "time=1-01:01:01", "job-name=run-1", "output=run-1-%j.out"} <= set(asked)
    assert "no-kill" not in asked


def test_a_range_of_nodes_outlives_the_loss_of_one(job: Job, options: SlurmOptions, site: Site) -> None:
    script = render_slurm(with_options(job, workers=(2, 4), nodes=(1, 2)), options)
    assert {"nodes=1-2", "no-kill"} <= set(directives(script))
    _, log, _ = site.run(script)
    assert "srun --cpus-per-task=4 --no-kill " in log
    assert "--workers 2:4" in log


def test_directives_stand_before_the_first_command(job: Job, options: SlurmOptions) -> None:
    lines = render_slurm(job, replace(options, directives=["qos=high", "--nice"])).splitlines()
    assert {"#SBATCH --qos=high", "#SBATCH --nice"} <= set(lines)
    last = max(place for place, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directives": ["gpu=1"]}, "'gpu' is not one of"),
        ({"directives": ["signal=USR2@10"]}, "at signal: 'USR2@10' does not match"),
        ({"directives": ["mem=lots"]}, "at mem: 'lots' does not match"),
        ({"directives": ["qos=a b"]}, "without spaces"),
        ({"time_s": 779}, "--time 0-00:12:59: .*180 s before its end .*--grace-s 120.* 0-00:13:00 or more"),
        ({"directives": ["time=0:12:59"]}, "--time 0:12:59"),
        ({"time_s": 3600, "directives": ["signal=B:USR1@3001"]}, "signal to save 3001 s"),
        ({"partition": "gpu\n#SBATCH --uid=0"}, "--partition=.*without spaces"),
        ({"setup": ["source 'env"]}, "the script is not valid"),
    ],
)
def test_what_sbatch_or_bash_would_refuse_is_refused(
    job: Job, options: SlurmOptions, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render_slurm(job, replace(options, **change))  # type: ignore[arg-type]


def test_a_time_that_leaves_some_to_train_is_taken(job: Job, options: SlurmOptions) -> None:
    assert "time=0-00:13:00" in directives(render_slurm(job, replace(options, time_s=780)))
    assert "time=1-0:00:00" in directives(render_slurm(job, replace(options, directives=["time=1-0:00:00"])))


def test_a_run_in_a_folder_of_the_node_is_refused(job: Job, options: SlurmOptions) -> None:
    local = replace(job, paths=(("run", "/tmp/run"),))
    with pytest.raises(ValueError, match="run=/tmp/run"):
        render_slurm(local, options)
    render_slurm(local, replace(options, shared=["/tmp"]))


def test_it_trains_on_a_ray_of_all_nodes_and_ends_well(job: Job, options: SlurmOptions, site: Site) -> None:
    code, log, _ = site.run(render_slurm(job, options))
    assert code == 0
    assert "ray symmetric-run --address 10.0.0.7:20123 --min-nodes 2 --num-cpus=4 --num-gpus=2 -- " in log
    train = next(line for line in log.splitlines() if line.startswith("train"))
    assert train == (
        f"train {job.config} data.batch_key='it''s $(here)' --workers 4 --cpus-per-worker 2 --gpus-per-worker 1 "
        "--address auto"
    )
    assert "requeue" not in log


def test_one_node_needs_no_ray_cluster(job: Job, options: SlurmOptions, site: Site) -> None:
    script = render_slurm(with_options(job, nodes=(1, 1)), options)
    code, log, _ = site.run(script)
    assert code == 0
    assert "symmetric-run" not in log
    assert "--address" not in log
    assert "exclusive" not in directives(script)


def test_the_token_is_secret_and_gone_at_the_end(job: Job, options: SlurmOptions, site: Site) -> None:
    _, log, printed = site.run(render_slurm(job, options))
    token = (site.folder / "token").read_text()
    assert len(token) == 64
    assert (site.folder / "mode").read_text() == "600\n"
    assert token not in log + printed
    assert list((site.folder / ".dist-scvi").iterdir()) == []


def test_a_run_that_is_not_finished_is_queued_again_though_ray_says_that_all_is_well(
    job: Job, options: SlurmOptions, site: Site
) -> None:
    site.says(train_code=1, status_code=75)
    code, log, _ = site.run(render_slurm(job, options))
    assert (code, "requeue 123" in log) == (0, True)


@pytest.mark.parametrize(("train", "status", "end"), [(2, 75, 2), (0, 3, 3), (1, 2, 2)])
def test_a_mistake_or_a_broken_run_is_not_queued_again(
    job: Job, options: SlurmOptions, site: Site, train: int, status: int, end: int
) -> None:
    site.says(train_code=train, status_code=status)
    code, log, _ = site.run(render_slurm(with_options(job, nodes=(1, 1)), options))
    assert (code, "requeue" in log) == (end, False)


def test_restarts_without_a_new_checkpoint_are_counted_and_come_to_an_end(
    job: Job, options: SlurmOptions, site: Site
) -> None:
    site.says(status_code=75)
    script = render_slurm(job, options)
    ends = []
    for restart, step in enumerate([10, 10, 20, 20, 20]):
        site.says(saved_step=step)
        code, log, printed = site.run(script, restart)
        ends.append((code, "requeue" in log))
    assert ends == [(0, True)] * 4 + [(75, False)]
    assert "2 restarts without a new checkpoint" in printed


def test_a_failed_requeue_is_told(job: Job, options: SlurmOptions, site: Site) -> None:
    site.says(status_code=75)
    (site.folder / "no_requeue").touch()
    code, _, printed = site.run(render_slurm(job, options))
    assert code == 75
    assert "submit it again" in printed


@pytest.mark.parametrize("nodes", [(1, 1), (2, 2)])
@pytest.mark.parametrize(("told", "queued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_when_its_time_is_over_it_saves_and_queues_again_but_not_when_it_is_cancelled(
    job: Job, options: SlurmOptions, site: Site, nodes: tuple[int, int], told: signal.Signals, queued: bool
) -> None:
    site.says(status_code=75)
    (site.folder / "waits").touch()
    process = site.start(render_slurm(with_options(job, nodes=nodes), options))
    site.await_training()
    process.send_signal(told)
    printed, _ = process.communicate(timeout=20)
    log = (site.folder / "log").read_text()
    assert "saved" in log
    assert "stopping: saving a checkpoint" in printed
    assert ("requeue 123" in log, process.returncode) == ((True, 0) if queued else (False, 75))
