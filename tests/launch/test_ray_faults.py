"""What runs under Ray survive: each fault is injected into one run, which then ends with the bits of a quiet one."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from dist_scvi.metrics.run_record import is_finished
from dist_scvi.storage.lease import holder_of
from dist_scvi.storage.run_storage import LocalStorage
from tests.launch.commands import DIST_SCVI, TORCHRUN, Command, last_step, same, started, told, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280, func_only=True)]

EPOCHS = "train.max_epochs=20"
STEPS = 21 * 20


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
    return partial(started, tmp_path / "log", *DIST_SCVI, "train", run_yaml, "--workers", "2", EPOCHS)


def saved_step(run: Path) -> int:
    holder = holder_of(LocalStorage(run))
    return (holder and holder.saved_step) or 0


def worker(run: Path, rank: int) -> int:
    return json.loads((run / "workers" / f"{rank}.json").read_text())["pid"]


def test_workers_that_hang_or_die_are_replaced(train, tmp_path: Path, quiet: Path) -> None:
    run = tmp_path / "run"
    with train("train.collective_timeout_s=10") as command:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            command.reach(run, last_step(run) + 10)
            os.kill(before := worker(run, 1), number)
            until(lambda: worker(run, 1) != before, "another worker")
        assert command.exit_code() == 0
        command.leaves_nothing()
    assert same(run, quiet)


@pytest.mark.thorough
def test_what_supervises_the_workers_leaves_no_process_when_killed_and_the_run_goes_on_at_once(
    train, tmp_path: Path, quiet: Path
) -> None:
    run = tmp_path / "run"
    with train() as command:
        command.reach(run, 10)
        [controller] = command.processes("TrainController")
        controller.kill()
        assert command.exit_code() == 75
        assert "what supervises the workers was lost" in command.said
        assert "Traceback" not in command.said
        command.leaves_nothing()
    at = last_step(run)
    with train() as command:
        command.reach(run, at + 10)
        os.kill(command.pid, signal.SIGKILL)
        assert command.exit_code() == -signal.SIGKILL
        command.leaves_nothing()
    with train() as command:
        assert command.exit_code() == 0
        command.leaves_nothing()
    assert is_finished(LocalStorage(run))
    assert same(run, quiet)


@pytest.mark.thorough
def test_a_command_that_ends_early_says_so_in_its_exit_code_and_goes_on_when_it_is_given_again(
    train, tmp_path: Path, quiet: Path
) -> None:
    run = tmp_path / "run"
    with train() as command:
        command.reach(run, 10)
        os.kill(command.pid, signal.SIGTERM)
        assert command.exit_code() == 75
        assert f"stopped on request after step {last_step(run)} of {STEPS}; all of it is saved" in command.said
        assert saved_step(run) == last_step(run)
        command.leaves_nothing()
    at = last_step(run)
    with train("--max-failures", "0") as command:
        command.reach(run, at + 10)
        os.kill(worker(run, 1), signal.SIGKILL)
        assert command.exit_code() == 75
        assert "workers were lost more than 0 times" in command.said
        command.leaves_nothing()
    at = last_step(run)
    with train() as command:
        command.reach(run, at + 10)
        os.killpg(command.pid, signal.SIGINT)
        assert command.exit_code() == 130
        assert "Traceback" not in command.said
        command.leaves_nothing()
    with train() as command:
        assert command.exit_code() == 0
    assert same(run, quiet)


@pytest.mark.thorough
def test_a_run_whose_node_breaks_down_under_it_goes_on_where_it_was(train, tmp_path: Path, quiet: Path) -> None:
    run, endless = tmp_path / "run", "train.max_epochs=9999"
    with train(endless, RAY_gcs_rpc_server_reconnect_timeout_s="10") as command:
        command.reach(run, 10)
        [control] = command.processes("gcs/gcs_server")
        control.kill()
        assert command.exit_code() not in (0, 2)  # Ray itself ends the process
        command.leaves_nothing(60)
    at = last_step(run)
    with train(endless) as command:
        command.reach(run, at + 10)
        [raylet] = command.processes("raylet/raylet")
        raylet.kill()
        assert command.exit_code() == 75
        command.leaves_nothing()
    with train(f"train.max_epochs={last_step(run) // 21 + 1}") as command:
        assert command.exit_code() == 0
    n = min(len(told(run)), len(told(quiet)))
    assert n > 20
    assert told(run)[:n] == told(quiet)[:n]
