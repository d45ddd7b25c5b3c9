"""What workers say to each other: nothing when alone, exact sums when together, and never a wait without end."""

import subprocess
import sys

import torch

from dist_scvi.world import World, worker_device

TOGETHER = """
import sys, torch
from dist_scvi.world import process_group, worker_device
with process_group(worker_device(0), timeout_s=20) as world:
    assert world.total(torch.tensor([1.0 + world.rank])).item() == 3.0
    assert world.maximum(torch.tensor([float(world.rank)])).item() == 1.0
    assert world.from_first({"rank": world.rank}) == {"rank": 0}
    world.wait()
"""
ONE_STAYS_AWAY = """
import sys, time, torch
from dist_scvi.world import process_group, worker_device
with process_group(worker_device(0), timeout_s=3) as world:
    if world.rank == 1:
        time.sleep(60)
    world.total(torch.ones(1))
"""


def torchrun(script: str, path: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    with open(path, "w") as file:  # noqa: PTH123
        file.write(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", path]
    return subprocess.run(command, timeout=timeout_s, capture_output=True, check=False)


def test_one_worker_alone_says_nothing() -> None:
    world, tensor = World(), torch.ones(2)
    assert world.total(tensor) is tensor
    assert world.maximum(tensor) is tensor
    assert world.from_first("x") == "x"
    world.wait()


def test_two_workers_agree(tmp_path: object) -> None:
    done = torchrun(TOGETHER, f"{tmp_path}/together.py", 90)
    assert done.returncode == 0, done.stderr.decode()


def test_a_worker_that_stays_away_is_waited_for_no_longer_than_allowed(tmp_path: object) -> None:
    done = torchrun(ONE_STAYS_AWAY, f"{tmp_path}/away.py", 50)
    assert done.returncode != 0


def test_the_cpu_is_used_where_there_is_no_gpu() -> None:
    assert worker_device(3).type == ("cuda" if torch.cuda.is_available() else "cpu")
