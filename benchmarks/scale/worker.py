"""One process of a measurement: it trains, only reads, or only sends, and says how long each part took.

The job is a JSON object, the first argument, with a list of cases that all processes go through in turn. A case is done
by ``one`` process while the others wait, by all ``apart``, each for itself but at the same time, or by all
``together``. Parts of a step are timed by wrapping what it calls; how long the backward pass waits for gradients of
other workers is what DDP itself records. What that costs is measured too, by cases that are not ``timed``.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from dist_scvi.config.schema import DataConfig, RunConfig, TrainConfig
from dist_scvi.loaders import make_plan, open_data, open_store
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.stream import train_stream
from dist_scvi.network.vae import VAE
from dist_scvi.training.train import train
from dist_scvi.world import World, process_group

Case = dict[str, Any]
Answer = dict[str, Any]
Row = dict[str, float]
PARTS = ("widening", "forward", "backward", "waiting", "totals", "optimizer")
"""What is timed: waiting is that for gradients in the backward pass, totals are sums sent apart from it."""
_CPU = torch.device("cpu")
_LANES = 8
_TIMEOUT_S = 240.0
_REPEATS = 25


class Clock:
    """Seconds since the start that went into each part of the steps."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.models: list[DistributedDataParallel] = []
        """Whose sending is counted."""
        self._began = 0.0

    def install(self) -> None:
        """Wrap what a step calls, for the life of this process."""
        MiniBatch.to = self._timed("widening", MiniBatch.to)  # type: ignore[method-assign]
        VAE.forward = self._timed("forward", VAE.forward)  # type: ignore[method-assign]
        dist.all_reduce = self._timed("totals", dist.all_reduce)
        backward = self._timed("backward", torch.autograd.backward)
        prepare = DistributedDataParallel.__init__

        def prepared(model: DistributedDataParallel, *values: Any, **named: Any) -> None:
            prepare(model, *values, **named)
            # by default it records one step in 100
            model._set_ddp_runtime_logging_sample_rate(1)  # type: ignore[no-untyped-call]  # noqa: SLF001
            self.models.append(model)

        def backward_after_last(*values: Any, **named: Any) -> None:
            self._count_waiting()
            backward(*values, **named)

        def optimizer_begins(*_: Any) -> None:
            self._began = time.perf_counter()

        def optimizer_ends(*_: Any) -> None:
            self.seconds["optimizer"] += time.perf_counter() - self._began

        DistributedDataParallel.__init__ = prepared  # type: ignore[assignment, method-assign]
        torch.autograd.backward = backward_after_last
        register_optimizer_step_pre_hook(optimizer_begins)
        register_optimizer_step_post_hook(optimizer_ends)

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*values: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*values, **named)
            finally:
                self.seconds[part] += time.perf_counter() - begin

        return timed

    def _count_waiting(self) -> None:
        """Add what DDP has recorded of the step before this: the part of its sending that no computing hid."""
        for model in self.models:
            told = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]  # noqa: SLF001
            sent, hidden = (told.get(f"backward_{what}_time", 0) for what in ("comm", "compute_comm_overlap"))
            self.seconds["waiting"] += max(0, sent - hidden) / 1e9


def train_once(case: Case, world: World, clock: Clock) -> Answer:
    """Train one epoch; what comes before the first line of metrics is the warm-up, a last short line is left out."""
    clock.models.clear()
    rows: list[Row] = []

    def told(row: dict[str, Any]) -> None:
        if row["kind"] == "train" and row["step"] % case["steps_per_row"] == 0:
            waited = row["wait_share"] * case["steps_per_row"] / row["steps_per_s"]
            if case["who"] == "apart" and not rows:
                dist.barrier()  # both begin to be measured at the same time
            rows.append({"at": time.monotonic(), "reading": waited, **clock.seconds})

    config = RunConfig(
        data=DataConfig(uri=case["store"], batch_key="batch", window_cells=case["window_cells"]),
        train=TrainConfig(
            max_epochs=1,
            batch_size=case["batch_size"],
            train_size=1.0,
            validation_size=0.0,
            log_every_n_steps=case["steps_per_row"],
            lanes=_LANES,
        ),
    )
    train(config, world=world, on_metrics=told)
    return _rate_and_shares(rows, case["steps_per_row"] * case["batch_size"]) if rows else {}


def _rate_and_shares(rows: list[Row], cells_per_row: int) -> Answer:
    """Cells per second after the first line, and the share of the time of each part of a step."""
    began, ended = rows[0]["at"], rows[-1]["at"]
    seconds = ended - began
    spent = {part: rows[-1][part] - rows[0][part] for part in PARTS}
    parts = {
        "reading": sum(row["reading"] for row in rows[1:]),
        "widening": spent["widening"],
        "forward": spent["forward"],
        "backward": spent["backward"] - spent["waiting"],
        "all_reduce": spent["waiting"] + spent["totals"],
        "optimizer": spent["optimizer"],
    }
    parts["rest"] = seconds - sum(parts.values())
    return {
        "cells_per_s": (len(rows) - 1) * cells_per_row / seconds,
        "began": began,
        "ended": ended,
        "shares": {part: each / seconds for part, each in parts.items()},
    }


def read_once(case: Case, world: World, _: Clock) -> Answer:
    """Read some epochs and do nothing with them: cells, seconds, and CPU seconds of this process."""
    data = open_data(open_store(case["store"]), batch_key="batch")
    plan = make_plan(
        n_cells=data.n_cells,
        n_entries=data.store.n_entries,
        n_genes=data.n_genes,
        batch_size=1024,
        lanes=_LANES,
        train_size=1.0,
        window_cells=case["window_cells"],
        chunk_cells=data.store.chunk_cells,
        shuffled=data.store.shuffled,
    )
    cells, began, cpu_s = 0, 0.0, 0.0
    stream = train_stream(data, plan, rank=world.rank, world_size=world.size, epoch=0, step=0, n_epochs=case["epochs"])
    for number, minibatch in enumerate(stream):
        if number == plan.window_steps:  # the first window is the warm-up
            began, cpu_s = time.perf_counter(), _cpu_seconds()
        cells += minibatch.n_cells if number > plan.window_steps else 0
    return {"cells": cells, "seconds": time.perf_counter() - began, "cpu_s": _cpu_seconds() - cpu_s}


def send_once(case: Case, world: World, _: Clock) -> Answer:
    """Add up a vector over the workers again and again: the median of its seconds."""
    vector = torch.zeros(case["n_bytes"] // 4)
    times = []
    for _number in range(_REPEATS):
        world.wait()
        begin = time.perf_counter()
        world.total(vector)
        times.append(time.perf_counter() - begin)
    return {"seconds": sorted(times)[_REPEATS // 2]}


def multiply_once(case: Case, _: World, __: Clock) -> Answer:
    """Multiply matrices of the shapes of a step, one thread: floating point operations per second."""
    hidden_nh, weight_hg = torch.rand(case["n_cells"], 128), torch.rand(128, case["n_genes"])
    times = []
    for _number in range(_REPEATS):
        begin = time.perf_counter()
        hidden_nh @ weight_hg
        times.append(time.perf_counter() - begin)
    return {"flops_per_s": 2 * case["n_cells"] * 128 * case["n_genes"] / sorted(times)[_REPEATS // 2]}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


TASKS = {"train": train_once, "read": read_once, "send": send_once, "multiply": multiply_once}


def go_through(cases: list[Case], world: World) -> list[list[Answer]]:
    """Do every case in turn, those that are not timed before any is; give the answers by case and rank."""
    clock, answers, timed = Clock(), [], False
    for case in cases:
        if case.get("timed", True) and not timed:
            clock.install()
            timed = True
        world.wait()
        mine = case["who"] != "one" or world.rank == 0
        among = world if case["who"] == "together" else World()
        answers.append(world.from_all(TASKS[case["what"]](case, among, clock) if mine else {}))
    return answers


def main() -> None:
    torch.set_num_threads(1)
    with process_group(_CPU, timeout_s=_TIMEOUT_S) as world:
        answers = go_through(json.loads(sys.argv[1])["cases"], world)
        if world.rank == 0:
            print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
