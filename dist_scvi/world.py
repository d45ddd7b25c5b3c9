"""The worker processes of a run and the collective operations between them."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dist_scvi.errors import WorkersFailedError
from dist_scvi.loaders.order.plan import usable_workers

T = TypeVar("T")

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class World:
    """The rank of a process among the workers. With one worker nothing is sent."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU
    group: dist.ProcessGroup | None = None
    """The process group of the workers; None for all processes."""

    def total(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def maximum(self, tensor: Tensor) -> Tensor:
        """Take the element-wise maximum of `tensor` over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor

    def from_first(self, value: T) -> T:
        """Return the value of rank 0 on every worker."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def from_all(self, value: T) -> list[T]:
        """Return the values of all workers by rank, on every worker."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def wait(self) -> None:
        """Wait until all workers have called this."""
        if self.size > 1:
            dist.barrier(group=self.group)


def worker_device(local_rank: int) -> torch.device:
    """Choose the GPU of a worker, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def choose_device(accelerator: str, device: int | str = "auto", *, rank: int = 0) -> torch.device:
    """Choose the device from the arguments of scvi-tools.

    Parameters
    ----------
    accelerator
        ``"auto"`` for a GPU if there is one, ``"cpu"``, ``"gpu"`` or ``"cuda"``.
    device
        Number of the GPU; by default chosen by the `rank` of this process.

    Raises
    ------
    ValueError
        If an argument is not one of these, or a GPU is requested where there is none.
    """
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f"accelerator={accelerator!r}: auto, cpu, gpu or cuda is needed")
    if device != "auto" and not isinstance(device, int):
        raise ValueError(f"device={device!r}: the number of a GPU is needed, or 'auto'")
    if accelerator == "cpu":
        return _CPU
    found = worker_device(rank if isinstance(device, str) else device)
    if accelerator in ("gpu", "cuda") and found.type != "cuda":
        raise ValueError(f"accelerator={accelerator!r}: torch finds no GPU here; use 'auto' or 'cpu'")
    return found


@contextmanager
def process_group(device: torch.device, *, timeout_s: float) -> Iterator[World]:
    """Join the process group described by torch's environment variables, which ``torchrun`` sets; leave at the end.

    Raises
    ------
    WorkersFailedError
        If another worker has ended or does not answer within `timeout_s`.
    """
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield joined_world(device)
    except BaseException as error:
        # The frames of the traceback refer to the model and its reducer, which the collection below must free.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            reason = str(error).strip().splitlines()[0]
            raise WorkersFailedError(f"the other workers are gone, or did not answer in time ({reason})") from error
        raise
    finally:
        # DDP's reducer must be freed before the group. If it holds the last reference to the group, its destructor
        # waits for gloo's threads while holding the GIL, and deadlocks if one of them waits for the GIL to free its
        # last message.
        gc.collect()
        dist.destroy_process_group()


def joined_world(device: torch.device) -> World:
    """Describe the process group that a launcher has already joined."""
    return World(dist.get_rank(), dist.get_world_size(), device)


def first_workers(device: torch.device, *, lanes: int, timeout_s: float) -> World | None:
    """Use as many processes of an existing process group as can share the lanes equally.

    Returns
    -------
    World or None
        None for a process that is not used.
    """
    rank, there = dist.get_rank(), dist.get_world_size()
    size = usable_workers(lanes, 1, there)
    if size == there:
        return World(rank, there, device)
    # Every process calls new_group, also one that is not used: it is a collective operation of the whole group.
    group = dist.new_group(list(range(size)), timeout=timedelta(seconds=timeout_s))
    return World(rank, size, device, group) if rank < size else None
