"""What workers say to each other: nothing when alone, exact sums when together, and never a wait without end."""

import socket
import subprocess
import sys
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_scvi.errors import WorkersFailedError
from dist_scvi.world import World, choose_device, process_group, worker_device

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


@pytest.mark.parametrize(
    ("found", "raised"), [(RuntimeError("gloo: closed"), WorkersFailedError), (ValueError("no counts"), ValueError)]
)
def test_a_model_that_workers_share_goes_before_their_group_does(
    found: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round a process may hang for ever: its end waits for gloo, which waits for Python."""
    shared: list[weakref.ref[nn.Module]] = []

    def train() -> None:
        model = DistributedDataParallel(nn.Linear(2, 2))
        model.hooks = [model.forward]  # a cycle, as a hook would make
        shared.append(weakref.ref(model))
        raise found

    def destroy() -> None:
        assert shared[0]() is None
        shared.clear()
        leave()

    leave = dist.destroy_process_group
    monkeypatch.setattr(dist, "destroy_process_group", destroy)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "RANK": 0, "WORLD_SIZE": 1}
    for name, value in where.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(raised, match=r"closed|no counts"), process_group(torch.device("cpu"), timeout_s=20):
        train()
    assert shared == []


def test_the_cpu_is_used_where_there_is_no_gpu() -> None:
    assert worker_device(3).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_is_chosen_by_the_words_of_scvi_tools() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto", 0) == worker_device(0)


@pytest.mark.parametrize(
    ("accelerator", "device", "message"),
    [
        ("tpu", "auto", r"^accelerator='tpu': auto, cpu, gpu or cuda is needed$"),
        ("auto", "cuda:0", r"^device='cuda:0': the number of a GPU is needed, or 'auto'$"),
    ],
)
def test_a_device_that_there_is_not_is_refused(accelerator: str, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_device(accelerator, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^accelerator='gpu': torch finds no GPU here"):
        choose_device("gpu")
