"""A small run, workers that meet with faults in it, and what must hold of it afterwards.

Shape letters in this file
    n   cells
"""

import io
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anndata import AnnData
from scipy import sparse

from dist_scvi.config.load import load_config
from dist_scvi.launch.cli import main
from dist_scvi.loaders import Plan
from dist_scvi.metrics.metrics_file import read_metrics
from dist_scvi.metrics.run_record import is_finished
from dist_scvi.storage.run_storage import LocalStorage
from dist_scvi.training.resolve import open_from, resolve
from tests.launch.faulty_worker import Fault, noting

SCRIPT, REPOSITORY = Path(__file__).with_name("faulty_worker.py"), Path(__file__).parents[2]
STEPS, EPOCHS, SAVES = 10, 2, (4, 8, 10, 12, 16, 20)
"""Steps in an epoch, epochs, and when there are checkpoints: every 4 steps and at the end of an epoch."""
STEP = "dist_scvi.training.train.take_step"
TIMEOUT_S = 120


def toy_cells(n_cells: int = 421, n_genes: int = 30, seed: int = 1) -> AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.6, 3.0, n_genes) * rng.lognormal(0, 0.4, (n_cells, 1)))
    obs = pd.DataFrame(
        {"batch": pd.Categorical(np.where(np.arange(n_cells) % 3 == 0, "b1", "b0"))},
        index=[f"cell{row}" for row in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{gene}" for gene in range(n_genes)])
    return AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


def write_config(path: Path, cells: Path, **train: Any) -> Path:
    """Write a configuration of 2 epochs of 10 steps, saved every 4 and told every 3."""
    settings = {
        "max_epochs": EPOCHS,
        "batch_size": 40,
        "lanes": 4,
        "micro_cells": 5,
        "save_every_n_steps": 4,
        "log_every_n_steps": 3,
        "n_steps_kl_warmup": 12,
        "collective_timeout_s": 30,
        **train,
    }
    model = {"n_hidden": 12, "n_latent": 3}
    path.write_text(
        yaml.safe_dump({"data": {"uri": str(cells), "batch_key": "batch"}, "model": model, "train": settings})
    )
    return path


@dataclass
class Ended:
    """How a start of a run ended."""

    codes: list[int]
    """Exit code of each worker; minus the signal that killed it."""
    said: str


class Worker:
    """A process that trains when told to, again and again, until a fault ends it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, job: dict[str, Any]) -> None:
        self.said = Path(job["said"])
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def ended(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for the end of the job; whoever does not end in time is killed."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            self.end()
            raise TimeoutError(f"a worker has not ended in {timeout_s} s: {self.said.read_text()}")
        line = self._process.stdout.readline()
        return int(line) if line else self._process.wait(60)

    def is_stopped(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def end(self) -> None:
        self._process.kill()
        self._process.wait(60)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def lives(self) -> bool:
        return self._process.poll() is None


@dataclass
class Crew:
    """Workers, of which those that live on are used again."""

    idle: list[Worker] = field(default_factory=list)
    everyone: list[Worker] = field(default_factory=list)

    def begin(
        self, toy: "Toy", *overrides: str, workers: int = 2, faults: dict[int, list[Any]] | None = None
    ) -> list[Worker]:
        """Start the run of `toy`; `faults` are those of each rank."""
        team = [self.idle.pop() if self.idle else Worker() for _ in range(workers)]
        self.everyone += [worker for worker in team if worker not in self.everyone]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        toy.said.write_text("")
        start = f"{time.time_ns()}"
        arguments = [str(toy.config), f"run={toy.run}", *overrides]
        for rank, worker in enumerate(team):
            job = {
                "rank": rank,
                "size": workers,
                "port": port,
                "said": str(toy.said),
                "rows": str(toy.rows),
                "start": start,
            }
            worker.begin({**job, "arguments": arguments, "faults": (faults or {}).get(rank, [])})
        return team

    def end(self, toy: "Toy", team: list[Worker]) -> Ended:
        """Wait for the end of a start."""
        codes = [worker.ended() for worker in team]
        for worker in team:
            self.idle.append(worker) if worker.lives() else worker.end()
        return Ended(codes, toy.said.read_text())

    def train(self, toy: "Toy", *overrides: str, workers: int = 2, faults: dict[int, list[Any]] | None = None) -> Ended:
        return self.end(toy, self.begin(toy, *overrides, workers=workers, faults=faults))

    def finish(self, toy: "Toy", *overrides: str, workers: int = 2) -> Ended:
        """Start the run and see that it ends well."""
        ended = self.train(toy, *overrides, workers=workers)
        assert ended.codes == [0] * workers, ended.said
        return ended

    def close(self) -> None:
        for worker in self.everyone:  # also those that a test which failed has left
            worker.end()


@dataclass
class Toy:
    """A run and what is noted beside it."""

    config: Path
    folder: Path
    run: str = ""
    files: Path = Path()
    """Where the files of the run lie, if that is not where it is told to be."""

    def __post_init__(self) -> None:
        self.run = self.run or str(self.folder / "run")
        self.files = Path(self.run) if self.files == Path() else self.files
        self.rows, self.said = self.folder / "rows", self.folder / "said.txt"
        self.rows.mkdir(exist_ok=True)

    @property
    def place(self) -> LocalStorage:
        return LocalStorage(self.files)

    @property
    def model(self) -> bytes:
        return (self.files / "model" / "weights.safetensors").read_bytes()

    @property
    def metrics(self) -> list[tuple[Any, ...]]:
        """Give what must be equal in the metrics of equal runs."""
        rows = read_metrics(self.place)
        return [(row["kind"], row["epoch"], row["step"], row["elbo"], row.get("cells_hash")) for row in rows]

    def steps_taken(self) -> list[dict[str, Any]]:
        """Read the notes of all steps that were begun, in order."""
        lines = [line for path in self.rows.glob("*.jsonl") for line in path.read_text().splitlines()]
        return sorted(map(json.loads, lines), key=lambda note: int(note["time"]))

    def saved(self) -> list[int]:
        """Name the steps of the checkpoints that are there."""
        return [int(name[5:]) for name in self.place.subfolder("checkpoints").names() if name.startswith("step-")]

    def plan(self) -> Plan:
        config = load_config(self.config)
        return resolve(config, open_from(config.data))[1]


def train_here(toy: Toy, *arguments: str, faults: Iterable[dict[str, Any]] = (), command: str = "train") -> Ended:
    """Run the command line in this process, with one worker."""
    torch.set_num_threads(1)
    said = io.StringIO()
    words = [str(toy.config), f"run={toy.run}"] if command == "train" else [toy.run]
    with ExitStack() as patched, redirect_stderr(said), redirect_stdout(said):
        patched.enter_context(noting(toy.rows, f"{time.time_ns()}", 0, 1))
        for each in faults:
            patched.enter_context(Fault(**each).patch())
        with pytest.raises(SystemExit) as end:
            main([command, *words, *arguments])
    return Ended([int(end.value.code or 0)], said.getvalue())


def finish_here(toy: Toy, *arguments: str) -> Ended:
    """Do the same and see that the run ends well."""
    ended = train_here(toy, *arguments)
    assert ended.codes == [0], ended.said
    return ended


def fault(call: str, do: str, at: int = 1, **more: Any) -> dict[str, Any]:
    """Describe a fault; see `faulty_worker.Fault`."""
    return {"call": call, "do": do, "at": at, **more}


def until(holds: Callable[[], bool]) -> None:
    """Wait for something, not for ever."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_undisturbed(toy: Toy, expected: Toy) -> None:
    """See that the run ended as the undisturbed one: equal weights and metrics, every cell once in each epoch."""
    assert is_finished(toy.place)
    assert toy.model == expected.model
    assert toy.metrics == expected.metrics
    assert_each_cell_once(toy)


def assert_each_cell_once(toy: Toy) -> None:
    """See that every step always has the same rows, and that an epoch has every training cell once.

    Of a step that was done again, the last time counts.
    """
    plan, starts, shares = toy.plan(), defaultdict(dict), {}
    for note in toy.steps_taken():
        step = (note["epoch"], note["step"])
        assert shares.setdefault((*step, note["rank"], note["size"]), note["rows"]) == note["rows"]
        starts[step, note["start"], note["size"]][note["rank"]] = note["rows"]
    whole = [(step, sorted(chain(*ranks.values()))) for (step, _, size), ranks in starts.items() if len(ranks) == size]
    last = dict(whole)
    assert all(last[step] == rows for step, rows in whole)
    for epoch in range(EPOCHS):
        assert {step for of, step in last if of == epoch} == set(range(plan.steps_per_epoch))
        rows = chain(*(last[epoch, step] for step in range(plan.steps_per_epoch)))
        assert sorted(rows) == np.flatnonzero(plan.trains_on(0, plan.n_cells)).tolist()


def assert_at_most_one_save_lost(toy: Toy) -> None:
    """See that a crash lost no more than the steps since the last save but one.

    The last one may have been under way: it is written while training goes on.
    """
    by_writer = [note for note in toy.steps_taken() if note["rank"] == 0]
    begun = max((note["epoch"] * STEPS + note["step"] + 1 for note in by_writer), default=0)
    given = [0, 0, *(step for step in SAVES if step < begun)]
    assert max(toy.saved(), default=0) >= given[-2]


def steps_done_again(toy: Toy) -> int:
    """Count the steps that more than one start of the run has begun."""
    starts = defaultdict(set)
    for note in toy.steps_taken():
        starts[note["epoch"], note["step"]].add(note["start"])
    return sum(len(of) > 1 for of in starts.values())
