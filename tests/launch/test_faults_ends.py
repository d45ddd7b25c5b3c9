"""Workers that fall silent, agents that die, and signals that end a job."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from tests.launch.commands import lives
from tests.launch.fault_runs import (
    REPOSITORY,
    SCRIPT,
    STEP,
    STEPS,
    Crew,
    Toy,
    assert_at_most_one_save_lost,
    assert_undisturbed,
    fault,
    finish_here,
    train_here,
    until,
)

pytestmark = pytest.mark.timeout(240)


class TestSilence:
    @pytest.mark.parametrize("rank", [0, 1])
    def test_workers_do_not_wait_for_one_that_is_stopped(
        self, rank: int, toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
    ) -> None:
        team = crew.begin(toy, "train.collective_timeout_s=8", faults={rank: [fault(STEP, "SIGSTOP", 7)]})
        assert team[1 - rank].ended() not in (0, 2)
        assert team[rank].is_stopped()
        if rank == 0:
            ended = train_here(toy)
            assert ended.codes == [2]
            assert "is being written by process" in ended.said
        team[rank].end()
        crew.idle.append(team[1 - rank])
        assert_at_most_one_save_lost(toy)
        crew.finish(toy)
        assert_undisturbed(toy, undisturbed(2))

    def test_a_worker_that_comes_back_after_the_others_gave_up_ends(
        self, toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
    ) -> None:
        team = crew.begin(toy, "train.collective_timeout_s=8", faults={0: [fault(STEP, "SIGSTOP", 9)]})
        codes = [team[1].ended()]
        os.kill(team[0].pid, signal.SIGCONT)
        codes.append(team[0].ended())
        assert not {0, 2} & set(codes)
        crew.idle += team
        crew.finish(toy)
        assert_undisturbed(toy, undisturbed(2))


class TestAgents:
    @pytest.mark.parametrize("harm", ["SIGKILL", "SIGTERM", "SIGUSR1"])
    def test_workers_whose_agent_is_gone_save_and_end(
        self, harm: str, toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
    ) -> None:
        with torchrun(toy, {rank: [fault(STEP, "slow", times=99)] for rank in range(2)}) as agent:
            until(lambda: len(toy.steps_taken()) >= 6)
            workers = psutil.Process(agent.pid).children(recursive=True)
            assert len(workers) == 2
            agent.send_signal(getattr(signal, harm))
            assert agent.wait(60) != 0
            until(lambda: not any(map(lives, workers)))
        done = max(note["epoch"] * STEPS + note["step"] + 1 for note in toy.steps_taken())
        assert 3 <= done < 2 * STEPS
        assert toy.saved()[-1] == done
        crew.finish(toy)
        assert_undisturbed(toy, undisturbed(2))


@contextmanager
def torchrun(toy: Toy, faults: dict[int, list[object]]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    command += [str(toy.rows), json.dumps(faults), str(toy.config), f"run={toy.run}"]
    with toy.said.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said, cwd=REPOSITORY) as agent:
        children: list[psutil.Process] = []
        try:
            yield agent
        finally:
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(agent.pid).children(recursive=True)
            for process in [*children, agent]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


class TestSignals:
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
    def test_one_process_saves_ends_with_75_and_goes_on_where_it_was(
        self, name: str, toy: Toy, undisturbed: Callable[[int], Toy]
    ) -> None:
        ended = train_here(toy, faults=[fault(STEP, name, 7)])
        assert ended.codes == [75]
        assert "all of it is saved; start the same command again" in ended.said
        done = len(toy.steps_taken())
        assert 7 <= done <= 9
        assert toy.saved()[-1] == done
        finish_here(toy)
        assert_undisturbed(toy, undisturbed(1))
        assert len(toy.steps_taken()) == 2 * STEPS  # none was done again

    def test_a_signal_to_one_worker_stops_all_at_the_same_step(
        self, toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
    ) -> None:
        assert crew.train(toy, faults={1: [fault(STEP, "SIGUSR1", 13)]}).codes == [75, 75]
        assert toy.saved()[-1] == len(toy.steps_taken()) // 2
        crew.finish(toy)
        assert_undisturbed(toy, undisturbed(2))
        assert len(toy.steps_taken()) == 2 * 2 * STEPS

    def test_a_save_by_minutes_comes_between_those_by_steps(self, toy: Toy, undisturbed: Callable[[int], Toy]) -> None:
        often = ["train.save_every_n_steps=99", "train.save_every_n_minutes=0.005", "train.keep_checkpoints=9"]
        finish_here(toy, *often)
        slow = Toy(toy.config, toy.folder, run=f"{toy.run}-slow")
        train_here(slow, *often, faults=[fault(STEP, "slow", 5)])
        assert {6, 7} & set(slow.saved())
        assert slow.model == toy.model == undisturbed(1).model
        assert slow.metrics == undisturbed(1).metrics
