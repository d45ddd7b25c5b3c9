"""Write outputs in processes that are killed at some change of the disk. `KilledWriters` runs this file as a script.

One process imports everything; each output is written by forks of it, which open model and cells themselves.
"""

import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}


class KilledWriters:
    """Asks the process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def write(self, out: Path, **job: Any) -> list[dict[str, Any]]:
        """Write `out`, and give how each worker ended.

        Parameters
        ----------
        job
            ``what``: minify or rows; ``workers``: their number; ``killed``: rank and number of the change before which
            it is killed; ``most_bytes``: of a file.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"out": str(out), **job}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


def _serve() -> None:
    for name in ("dist_scvi.atlas.minify", "dist_scvi.model", "dist_scvi.inference.zarr_output"):
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        pids = [_start(rank, job) for rank in range(job.get("workers", 1))]
        ended = [_ended(pid, Path(f"{job['out']}.{rank}.json")) for rank, pid in enumerate(pids)]
        sys.stdout.write(json.dumps(ended) + "\n")
        sys.stdout.flush()


def _start(rank: int, job: dict[str, Any]) -> int:
    pid = os.fork()
    if not pid:
        try:
            _work(rank, job)
        finally:
            os._exit(0)
    return pid


def _ended(pid: int, told: Path) -> dict[str, Any]:
    """Wait for a worker; one that waits for others longer than any should is killed and shows as such."""
    deadline = time.monotonic() + 60
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.005)
    found = json.loads(told.read_text()) if told.exists() else {}
    told.unlink(missing_ok=True)
    return {"signal": os.WTERMSIG(ended[1]), **found}


def _work(rank: int, job: dict[str, Any]) -> None:
    import torch

    from dist_scvi.world import World, process_group

    torch.set_num_threads(1)
    out, size, told = Path(job["out"]), job.get("workers", 1), []
    write = _minify if job["what"] == "minify" else _rows
    kill_rank, kill_at = job.get("killed", (None, 0))
    changes, error = [0], None
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    if "most_bytes" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["most_bytes"], job["most_bytes"]))

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        changed = event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3)
        here = changed and (str(arguments[0]).startswith(str(out.parent)) or not str(arguments[0]).startswith("/"))
        changes[0] += bool(here)
        if here and rank == kill_rank and changes[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def run(world: World) -> None:
        sys.addaudithook(count)
        write(out, world, lambda *progress: told.append(progress))

    try:
        if size == 1:
            run(World())
        else:
            with process_group(torch.device("cpu"), timeout_s=30) as world:
                run(world)
    except Exception as failure:  # noqa: BLE001 - the test looks at it
        error = f"{type(failure).__name__}: {failure}"
    resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1:] * 2)
    Path(f"{out}.{rank}.json").write_text(json.dumps({"changes": changes[0], "told": told, "error": error}))


def _model() -> Any:
    import anndata as ad
    import numpy as np
    import pandas as pd
    from scipy import sparse

    from dist_scvi.loaders import open_data
    from dist_scvi.model import SCVI

    rng, n_cells = np.random.default_rng(0), 80
    obs = pd.DataFrame(
        {"batch": pd.Categorical(rng.choice(["a", "b"], n_cells))}, index=[f"c{row}" for row in range(n_cells)]
    )
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(20)])
    counts = sparse.csr_matrix(rng.poisson(1.0, (n_cells, 20)).astype(np.float32))
    return SCVI(open_data(ad.AnnData(counts, obs=obs, var=var), batch_key="batch"), n_hidden=8, n_latent=3)


def _minify(out: Path, world: Any, tell: Any) -> None:
    from dist_scvi.atlas.minify import minify
    from dist_scvi.atlas.writer import plan

    plan._PIECES, plan._SMALLEST_PIECE, plan._CHUNK_ROWS, plan._NAME_ROWS = 5, 16, 32, 32
    model = _model()
    minify(model.module, model.spec, model.data, out, world=world, on_progress=tell)


def _rows(out: Path, world: Any, tell: Any) -> None:
    from dist_scvi.inference import zarr_output
    from dist_scvi.inference.posterior import posterior_of

    zarr_output._CHUNK_ROWS = 16
    model = _model()
    model.module.eval()

    def answers(minibatch: Any) -> dict[str, Any]:
        qzm_nk, qzv_nk = posterior_of(model.module, minibatch)
        return {"obsm/mean": qzm_nk.numpy(), "obs/spread": qzv_nk.numpy().sum(1)}

    zarr_output.write_rows(
        model.select(), answers, out, identity={"of": "test"}, world=world, chunk_cells=16, on_progress=tell
    )


if __name__ == "__main__":
    _serve()
