"""What runs under Ray survive: each fault is injected into one run, which then ends with the bits of a quiet one."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from dist_scvi.lease import holder_of
from dist_scvi.places import LocalPlace
from dist_scvi.run_folder import is_finished

from .commands import DIST_SCVI, TORCHRUN, Command, last_step, same, started, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

EPOCHS = "train.max_epochs=30"
STEPS = 21 * 30


@pytest.fixture
def quiet(run_yaml: Path, kept: dict[type, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two workers that nothing disturbs, and without Ray."""
    if Command not in kept:
        kept[Command] = run = tmp_path_factory.mktemp("quiet") / "run"
        words = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "dist_scvi.launch.torchrun"]
        with started(run.parent / "log", *words, run_yaml, f"run={run}", EPOCHS, OMP_NUM_THREADS="1") as command:
            assert command.exit_code(240) == 0, command.said
    return kept[Command]


@pytest.fixture
def train(run_yaml: Path, tmp_path: Path):
    """Start, or start again, a run of two workers."""
    return partial(started, tmp_path / "log", *DIST_SCVI, "train", run_yaml, EPOCHS, "--workers", "2")


def saved_step(run: Path) -> int:
    holder = holder_of(LocalPlace(run))
    return (holder and holder.saved_step) or 0


def worker(run: Path, rank: int) -> int:
    return json.loads((run / "workers" / f"{rank}.json").read_text())["pid"]


def test_workers_that_hang_or_die_are_replaced_and_what_supervises_them_leaves_no_process_when_killed(
    train, tmp_path: Path, quiet: Path
) -> None:
    run = tmp_path / "run"
    with train("train.collective_timeout_s=10") as command:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            command.reach(run, at := last_step(run) + 20)
            os.kill(before := worker(run, 1), number)
            until(lambda: worker(run, 1) != before, "another worker")
        command.reach(run, at + 20)
        [controller] = command.processes("TrainController")
        controller.kill()
        assert command.exit_code() == 75
        assert "what supervises the workers was lost" in command.said
        assert "Traceback" not in command.said
        command.leaves_nothing()
    at = last_step(run)
    with train() as command:
        command.reach(run, at + 20)
        os.kill(command.pid, signal.SIGKILL)
        assert command.exit_code() == -signal.SIGKILL
        command.leaves_nothing()
    with train() as command:
        assert command.exit_code() == 0
        command.leaves_nothing()
    assert is_finished(LocalPlace(run))
    assert same(run, quiet)


def test_a_command_that_ends_early_says_so_in_its_exit_code_and_goes_on_when_it_is_given_again(
    train, tmp_path: Path, quiet: Path
) -> None:
    run = tmp_path / "run"
    with train() as command:
        command.reach(run, 20)
        os.kill(command.pid, signal.SIGTERM)
        assert command.exit_code() == 75
        assert f"stopped as asked after step {last_step(run)} of {STEPS}; all of it is saved" in command.said
        assert saved_step(run) == last_step(run)
        command.leaves_nothing()
    at = last_step(run)
    with train("--max-failures", "0") as command:
        command.reach(run, at + 20)
        os.kill(worker(run, 1), signal.SIGKILL)
        assert command.exit_code() == 75
        assert "workers were lost more than 0 times" in command.said
        command.leaves_nothing()
    at = last_step(run)
    with train() as command:
        command.reach(run, at + 20)
        os.killpg(command.pid, signal.SIGINT)
        assert command.exit_code() == 130
        assert "Traceback" not in command.said
        command.leaves_nothing()
    at = last_step(run)
    with train() as command:
        command.reach(run, at + 20)
        [raylet] = command.processes("raylet/raylet")
        raylet.kill()
        assert command.exit_code() not in (0, 2)
        command.leaves_nothing()
    with train() as command:
        assert command.exit_code() == 0
    assert same(run, quiet)
