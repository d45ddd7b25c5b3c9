"""Measure one program in a process of its own: what every program is measured by, in whatever environment it runs.

A script beside this one gives `measure` a function that opens its minibatches: an endless iterator, epoch after epoch,
of the counts (rows of a CSR matrix, or dense float32) and the label of each cell. The job is a JSON object, the first
argument of the script; the answer is one line of JSON.
"""

import json
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Job = dict[str, Any]
Minibatches = Iterator[tuple[Any, np.ndarray]]
_STEP_S = 0.005
_AT_MOST = 5
"""Times the seconds asked for after which a slow program is stopped amid a window."""


def measure(minibatches: Callable[[Job], Minibatches]) -> None:
    warnings.simplefilter("ignore")
    job = json.loads(sys.argv[1])
    begin = time.perf_counter()
    stream = minibatches(job)
    cells = len(next(stream)[1])
    first_s = time.perf_counter() - begin
    while cells < job["window_cells"]:
        cells += len(next(stream)[1])
    if job["cold"]:  # the code is warm by now: the files alone are made cold
        stream.close()
        evict(Path(job["path"]))
        stream = minibatches(job)
    answer = {"first_next_s": first_s, **timed(stream, job, lambda: None)}
    # not ru_maxrss, which begins with what the process that started this one held
    answer["peak_rss_mib"] = int(proc("status")["VmHWM"].split()[0]) / 1024
    for name, step in steps() if job["steps"] else ():
        while_training = timed(stream, job, step)
        answer[f"p50_next_ms_{name}"] = while_training["p50_next_ms"]
        answer[f"p99_next_ms_{name}"] = while_training["p99_next_ms"]
        answer[f"step_ms_{name}"] = while_training["step_ms"]
    print(json.dumps(answer), flush=True)
    os._exit(0)  # not to wait for what a program reads ahead


def timed(stream: Minibatches, job: Job, step: Callable[[], object]) -> dict[str, float]:
    """Consume whole windows for about ``job["seconds"]``, with `step` after every minibatch."""
    waits, stepped, label_counts, cells = [], [], [], 0
    usage, disk = resource.getrusage(resource.RUSAGE_SELF), bytes_read()
    begin = last = time.perf_counter()
    while True:
        counts, label_n = next(stream)
        came = time.perf_counter()
        del counts  # what a minibatch holds is given back before the next is made
        cells += len(label_n)
        label_counts.append(np.bincount(label_n))
        step()
        waits.append(came - last)
        last = time.perf_counter()
        stepped.append(last - came)
        enough = last - begin >= job["seconds"] or (job["cold"] and cells >= job["n_cells"])
        if (enough and cells % job["window_cells"] == 0) or last - begin >= _AT_MOST * job["seconds"]:
            break
    spent, end = last - begin, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = end.ru_utime + end.ru_stime - usage.ru_utime - usage.ru_stime
    asked, from_disk = (after - before for before, after in zip(disk, bytes_read(), strict=True))
    return {
        "cells": cells,
        "cells_per_s": cells / spent,
        "cpu_s_per_million_cells": cpu_s / cells * 1e6,
        "mb_read_per_s": asked / spent / 1e6,
        "mb_from_disk_per_s": from_disk / spent / 1e6,
        "p50_next_ms": statistics.median(waits) * 1e3,
        "p99_next_ms": float(np.quantile(waits, 0.99)) * 1e3,
        "label_entropy_bits": statistics.mean(entropy_bits(count_l) for count_l in label_counts),
        "step_ms": statistics.median(stepped) * 1e3,
    }


def steps() -> Iterator[tuple[str, Callable[[], object]]]:
    """Give the training steps: one that sleeps, and one that computes on one core without the GIL."""
    yield "sleep", lambda: time.sleep(_STEP_S)
    right, took_s, size = np.ones((1024, 1024), dtype=np.float32), [0.0], 0
    while min(took_s) < _STEP_S:
        size += 32
        left, out = np.ones((size, 1024), dtype=np.float32), np.empty((size, 1024), dtype=np.float32)
        begin_s = [time.perf_counter()]
        for _ in range(7):
            np.matmul(left, right, out=out)
            begin_s.append(time.perf_counter())
        took_s = np.diff(begin_s).tolist()
    yield "matmul", lambda: np.matmul(left, right, out=out)


def entropy_bits(count_l: np.ndarray) -> float:
    share_l = count_l[count_l > 0] / count_l.sum()
    return float(-(share_l * np.log2(share_l)).sum())


def bytes_read() -> tuple[int, int]:
    """Bytes this process has asked for with read calls, and those of them that came from the disk."""
    told = proc("io")
    return int(told["rchar"]), int(told["read_bytes"])


def proc(name: str) -> dict[str, str]:
    lines = Path(f"/proc/self/{name}").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def evict(path: Path) -> None:
    """Let the page cache forget the files of a store."""
    for file in files_of(path):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
