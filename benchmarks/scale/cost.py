"""A model of what a training step costs: on this machine fitted to measurements, on GPUs of assumed constants.

A step is a sum of terms in seconds, each a function of its own: bus, compute, all-reduce, optimizer. Reading goes on
beside it, so the slower of the two sets the pace. Nothing else is hidden behind anything: neither sending behind the
backward pass nor copies behind computing.
"""

import math
from dataclasses import dataclass

from .count import Work, WorkOf

BUCKET_BYTES = 25 << 20
"""Gradients that DDP sends in one message, after a first of 1 MiB."""
ADAM_BYTES = 28.0
"""Read and written for one weight: weight, gradient and two moments, of which three are written again."""
BUS_BYTES = (40.0, 4.0)
"""Sent to a GPU for a cell, and for a stored entry as uint16 count and gene."""
WIDENING_BYTES = (4.0, 60.0)
"""Passing through a GPU's memory to make counts dense: for a cell and gene, for a stored entry."""
DISK_BYTES_PER_ENTRY = 1.5
"""Of packed stores; results/loaders.json."""


@dataclass(frozen=True, slots=True)
class Link:
    """A way on which workers add up vectors."""

    latency_s: float
    """Of one message over one hop; a message takes log2(workers) hops."""
    bytes_per_s: float
    """Of one worker, or one node, in each direction."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a node can do; times and rates are those of one worker, if nothing else is said."""

    flops_per_s: float
    """Of products of matrices, float32."""
    memory_bytes_per_s: float
    """Of all other operators, which are bound by it."""
    kernel_s: float
    """To call an operator."""
    entry_s: float
    """Extra, for a stored entry: its logarithms of the gamma function."""
    async_kernels: bool
    """Whether kernels are called while those before still run, as on a GPU."""
    optimizer_bytes_per_s: float
    bus_bytes_per_s: float
    """From memory to device; infinite where they are one."""
    read_cell_s: float
    """For its reader, a cell."""
    read_entry_s: float
    """For its reader, a stored entry."""
    disk_bytes_per_s: float
    """Of the storage of one node."""
    workers_per_node: int
    within: Link
    """Between the workers of a node."""
    between: Link
    """Between nodes; the bandwidth is that of a node."""
    crowding: float = 1.0
    """Factor on all that a worker computes if every hardware thread is busy."""
    jitter: float = 0.0
    """Share of the computing for which a worker waits for a slower one."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a run asks of each worker in a step."""

    genes: int
    entries_per_cell: float
    cells: int


@dataclass(frozen=True, slots=True)
class Predicted:
    """Seconds of the parts of a step, and what follows."""

    reading: float
    bus: float
    compute: float
    all_reduce: float
    optimizer: float
    cells_per_s: float
    """Of all workers."""
    bound_by: str
    """The largest part; of computing, whether calls of kernels or their work."""


def reading_s(machine: Machine, load: Load, workers: int) -> float:
    """Seconds in which a worker's reader gives the cells of a step: decompressing, or its share of the storage."""
    decoding = load.cells * (machine.read_cell_s + machine.read_entry_s * load.entries_per_cell)
    on_node = min(workers, machine.workers_per_node)
    disk = load.cells * load.entries_per_cell * DISK_BYTES_PER_ENTRY * on_node / machine.disk_bytes_per_s
    return max(decoding, disk)


def bus_s(machine: Machine, load: Load) -> float:
    """Seconds in which the cells of a step reach the device."""
    return load.cells * (BUS_BYTES[0] + BUS_BYTES[1] * load.entries_per_cell) / machine.bus_bytes_per_s


def compute_s(machine: Machine, load: Load, work: Work) -> tuple[float, float]:
    """Seconds of forward and backward pass: to call the kernels, and of their work; see `Machine.async_kernels`."""
    entries = load.cells * load.entries_per_cell
    work_s = work.flops / machine.flops_per_s + work.memory_bytes / machine.memory_bytes_per_s
    if machine.async_kernels:
        widening = WIDENING_BYTES[0] * load.cells * load.genes + WIDENING_BYTES[1] * entries
        work_s += widening / machine.memory_bytes_per_s
    return work.kernels * machine.kernel_s, work_s + entries * machine.entry_s


def all_reduce_s(machine: Machine, n_bytes: float, workers: int) -> float:
    """Seconds in which `n_bytes` of gradients, and one small message, are added up over all workers.

    A ring moves ``2 (w - 1) / w`` of the bytes through every link: among the workers of a node, and then among nodes.
    """
    messages = 2 + math.ceil(max(0.0, n_bytes - (1 << 20)) / BUCKET_BYTES)
    on_node = min(workers, machine.workers_per_node)
    seconds = 0.0
    for link, ends in ((machine.subfolder, on_node), (machine.between, workers // on_node)):
        if ends > 1:
            seconds += messages * link.latency_s * math.log2(ends) + 2 * (ends - 1) / ends * n_bytes / link.bytes_per_s
    return seconds


def optimizer_s(machine: Machine, work: Work) -> float:
    """Seconds in which Adam moves all weights."""
    return ADAM_BYTES * work.parameters / machine.optimizer_bytes_per_s


def predict(machine: Machine, work_of: WorkOf, load: Load, workers: int, *, crowded: bool = False) -> Predicted:
    """Predict a step of `workers` that take `load` each; if `crowded`, they leave no hardware thread free."""
    work = work_of(load.cells, load.genes, load.entries_per_cell)
    calls, kernels = compute_s(machine, load, work)
    slow = machine.crowding if crowded else 1.0
    compute = slow * (max(calls, kernels) if machine.async_kernels else calls + kernels)
    sending = all_reduce_s(machine, 4 * work.parameters, workers) + (workers > 1) * machine.jitter * compute
    parts = {
        "reading": reading_s(machine, load, workers),
        "bus": bus_s(machine, load),
        "compute": compute,
        "all_reduce": sending,
        "optimizer": slow * optimizer_s(machine, work),
    }
    step = sum(parts.values()) - parts["reading"]
    bound = "reading" if parts["reading"] > step else max(list(parts)[1:], key=parts.__getitem__)
    if bound == "compute" and machine.async_kernels:
        bound = "calling kernels" if calls > kernels else "compute"
    return Predicted(**parts, cells_per_s=workers * load.cells / max(step, parts["reading"]), bound_by=bound)
