"""GPUs that were not at hand: their constants, each assumed, and what the cost model says of them.

Of what is measured or counted on this machine only the work of a step and the speed of a reader are taken over.
"""

from dataclasses import asdict, replace
from typing import Any

from .cost import Link, Load, Machine, predict
from .count import WorkOf

ASSUMED = {
    "flops_per_s": "0.55 of 67 TFLOP/s: float32 of H100 and H200 SXM without tensor cores, torch's default",
    "memory_bytes_per_s": "0.9 of 3.35 TB/s (H100) or 4.8 TB/s (H200)",
    "kernel_s": "6 us for torch to call an operator",
    "optimizer_bytes_per_s": "as memory_bytes_per_s",
    "bus_bytes_per_s": "12 GB/s: PCIe 5 from memory that is not pinned, as the code has it",
    "disk_bytes_per_s": "5 GB/s for the 8 GPUs of a node",
    "within": "NVLink, 350 GB/s of 450 and 5 us a hop",
    "between": "0.85 of 25, 100 or 400 Gb/s for a node, and 15 us a hop",
    "entries_per_cell": "300, 800, 1400 and 1500 for 2,000, 8,000, 20,000 and 60,000 genes",
    "crowding, jitter": "none: every GPU has two hardware threads of its own, and all are equally fast",
}
NETWORKS = (25, 100, 400)
"""Gb/s between nodes."""
WORKERS = (1, 2, 4, 8, 16, 32, 64)
ENTRIES = {2000: 300, 8000: 800, 20_000: 1400, 60_000: 1500}
CELLS = (1024, 8192)
"""Of each GPU in a step."""
GPUS_PER_NODE = 8
_MEMORY = {"H100": 0.9 * 3.35e12, "H200": 0.9 * 4.8e12}


def gpu(name: str, network_gbit: int, here: Machine) -> Machine:
    """Put a node of GPUs together; the reader is that of this machine."""
    return replace(
        here,
        flops_per_s=0.55 * 67e12,
        memory_bytes_per_s=_MEMORY[name],
        kernel_s=6e-6,
        entry_s=0.0,
        async_kernels=True,
        optimizer_bytes_per_s=_MEMORY[name],
        bus_bytes_per_s=12e9,
        disk_bytes_per_s=5e9,
        workers_per_node=GPUS_PER_NODE,
        within=Link(5e-6, 350e9),
        between=Link(15e-6, 0.85 * network_gbit * 1e9 / 8),
        crowding=1.0,
        jitter=0.0,
    )


def predictions(work_of: WorkOf, here: Machine) -> list[dict[str, Any]]:
    """Predict every combination; up to 8 GPUs are on one node, where the network does not matter."""
    rows = []
    for name in _MEMORY:
        for genes, entries in ENTRIES.items():
            for cells in CELLS:
                for network in NETWORKS:
                    machine = gpu(name, network, here)
                    for workers in WORKERS:
                        told = asdict(predict(machine, work_of, Load(genes, entries, cells), workers))
                        rates = {key: told.pop(key) for key in ("cells_per_s", "bound_by")}
                        where = {"gpu": name, "genes": genes, "cells_each": cells, "network_gbit": network}
                        milliseconds = {part: float(f"{1e3 * seconds:.3g}") for part, seconds in told.items()}
                        rates["cells_per_s"] = float(f"{rates['cells_per_s']:.4g}")
                        rows.append({**where, "workers": workers, **rates, "ms": milliseconds})
    return rows
