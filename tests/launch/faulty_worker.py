"""A worker that trains as under torchrun and meets with faults; it notes the rows of every step it takes.

`fault_runs.Worker` runs this file as a script and sends jobs, lines of JSON; what each gave as exit code is answered.
"""

import errno
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock


class Fault:
    """Wraps a function of the product, and does harm at one of its calls.

    Parameters
    ----------
    call
        Path of the function, as of an import.
    do
        The harm: a signal that the process sends itself; an error of the disk by its name (ENOSPC); ``raise``, ``die``
        (the thread ends without a word), ``hang``, ``spoil`` (of a step or a read: one count becomes infinite),
        ``perturb`` (of a step: one weight changes), ``slow`` (the call takes half a second).
    at
        The first call that is harmed, from 1 on, and how many.
    when
        Before the call, after it, or ``while`` it is under way.
    thread
        Count calls of the thread with this name alone.
    """

    def __init__(
        self, call: str, do: str, at: int = 1, *, times: int = 1, when: str = "before", thread: str | None = None
    ) -> None:
        self.path, self._do, self._at, self._times, self._when, self._thread = call, do, at, times, when, thread
        self._calls, self._lock = 0, threading.Lock()
        self._original: Callable[..., Any] = pkgutil.resolve_name(call)

    def patch(self) -> Any:
        """Put the wrapper in place for as long as the context lasts."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._thread not in (None, threading.current_thread().name):
                return self._original(*args, **kwargs)
            with self._lock:
                self._calls += 1
                harmed = self._at <= self._calls < self._at + self._times
            if not harmed:
                return self._original(*args, **kwargs)
            if self._when == "while":
                threading.Thread(target=self._harm, args=(args,)).start()
            if self._when == "before":
                args = self._harm(args)
            result = self._original(*args, **kwargs)
            if self._when == "after":
                self._harm(args)
            return result

        return mock.patch(self.path, wrapped)

    def _harm(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._do.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self._do))
        elif self._do.startswith("E"):
            number = getattr(errno, self._do)
            named = [os.fspath(path) for path in args[:1] if isinstance(path, (str, Path))]
            raise OSError(number, os.strerror(number), *named)
        elif self._do == "raise":
            raise RuntimeError("a fault of the test")
        elif self._do == "die":
            raise SystemExit
        elif self._do == "hang":
            time.sleep(600)
        elif self._do == "slow":
            time.sleep(0.5)
        elif self._do == "spoil":
            return tuple(_spoilt(value) if hasattr(value, "row_n") else value for value in args)
        elif self._do == "perturb":
            next(args[1].parameters()).data.view(-1)[0] += 1e-6
        else:
            raise ValueError(self._do)
        return args


def _spoilt(minibatch: Any) -> Any:
    """Make the first count of the second cell infinite."""
    counts_e = minibatch.counts.counts_e.astype("float32")
    counts_e[minibatch.counts.indptr[1]] = float("inf")
    return replace(minibatch, counts=replace(minibatch.counts, counts_e=counts_e))


def noting(rows: Path, start: str, rank: int, size: int) -> Any:
    """Note every step before it is taken: in which start of the run, by whom, when, and the rows."""
    from dist_scvi.training import train

    taken = train.take_step

    def noted(model: Any, module: Any, optimizer: Any, minibatch: Any, *args: Any, **kwargs: Any) -> Any:
        line = {"start": start, "rank": rank, "size": size, "epoch": minibatch.epoch, "step": minibatch.step}
        line |= {"time": time.time_ns(), "rows": minibatch.row_n.tolist()}
        with (rows / f"{rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return taken(model, module, optimizer, minibatch, *args, **kwargs)

    return mock.patch("dist_scvi.training.train.take_step", noted)


def _work(job: dict[str, Any]) -> int:
    from dist_scvi.launch import torchrun

    rank, size = job["rank"], job["size"]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": job["port"], "LOCAL_RANK": rank, "RANK": rank}
    os.environ |= {key: str(value) for key, value in where.items()} | {"WORLD_SIZE": str(size)}
    with Path(job["said"]).open("a") as said:
        os.dup2(said.fileno(), 2)
    faulthandler.dump_traceback_later(60)  # where one hangs is told
    with ExitStack() as patched:
        patched.callback(faulthandler.cancel_dump_traceback_later)
        patched.enter_context(noting(Path(job["rows"]), job["start"], rank, size))
        for fault in job["faults"]:
            patched.enter_context(Fault(**fault).patch())
        return torchrun.main(job["arguments"])


def _serve() -> None:
    for name in ("dist_scvi.launch.torchrun", "scipy.sparse", "h5py"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            code = _work(json.loads(line))
        except Exception:  # noqa: BLE001 - as the interpreter would tell it
            traceback.print_exc()
            code = 1
        gc.collect()  # as the end of a process, this closes the connections to the others
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        _serve()
    else:  # under torchrun itself: a folder for the rows, the faults of each rank, and what torchrun.main takes
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        from dist_scvi.launch import torchrun

        with ExitStack() as patched:
            patched.enter_context(noting(Path(sys.argv[1]), os.environ["MASTER_PORT"], rank, size))
            for fault in json.loads(sys.argv[2]).get(str(rank), []):
                patched.enter_context(Fault(**fault).patch())
            sys.exit(torchrun.main(sys.argv[3:]))
