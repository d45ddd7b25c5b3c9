"""Time a service: one client alone, then 50 clients that ask a mixture of questions for a minute.

The atlas is drawn, not trained: latent means around the centres of its types and a random decoder, written as an atlas
on disk once. The service runs in a process of its own on the loopback interface, and so do the clients. A client pauses
a second between two questions on average.

    python benchmarks/serve.py --cells 1000000 --genes 8000 --atlas /data/drawn-atlas
"""

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

RESULTS = Path(__file__).parent / "results" / "serve.json"
N_TYPES, N_DONORS, LATENT = 200, 20, 10
ARROW = "application/vnd.apache.arrow.stream"


def write_atlas_of(path: Path, n_cells: int, n_genes: int) -> None:
    """Draw an atlas and write it."""
    from anndata import AnnData
    from scipy.sparse import csr_array

    from dist_scvi.atlas.writer.plan import Minified
    from dist_scvi.atlas.writer.write_atlas import AtlasOptions, write_atlas
    from dist_scvi.config.schema import ModelConfig
    from dist_scvi.loaders.stores.memory_store import MemoryStore
    from dist_scvi.network.fit_data import open_for
    from dist_scvi.network.model_spec import ModelSpec
    from dist_scvi.progress_reporter import ProgressReporter
    from dist_scvi.world import World

    rng = np.random.default_rng(0)
    type_n = rng.integers(0, N_TYPES, n_cells)
    names = np.array([f"t{number:03d}" for number in range(N_TYPES)])
    donors = np.array([f"d{number:02d}" for number in range(N_DONORS)])
    obs = pd.DataFrame(
        {
            "type": pd.Categorical.from_codes(type_n, names),
            "donor": pd.Categorical.from_codes(rng.integers(0, N_DONORS, n_cells), donors),
            "n_counts": rng.lognormal(7.6, 0.4, n_cells).astype(np.float32),
        },
        index=[f"c{row}" for row in range(n_cells)],
    )
    genes = [f"g{gene}" for gene in range(n_genes)]
    spec = ModelSpec(
        model=ModelConfig(n_latent=LATENT), seed=0, layer=None, var_names=tuple(genes), batch=None, label=None,
        categorical_covariates=(), continuous_covariates=(),
    )  # fmt: skip
    module = spec.build().eval()
    with torch.no_grad():
        module.decoder.px_scale_decoder[0].bias.normal_(0, 2)
    mean_nk = rng.normal(0, 1.5, (N_TYPES, LATENT))[type_n] + rng.normal(0, 0.5, (n_cells, LATENT))
    mean_nk = mean_nk.astype(np.float32)
    store = MemoryStore(AnnData(csr_array((n_cells, n_genes), dtype="float32"), obs=obs, var=pd.DataFrame(index=genes)))
    store.uri = "drawn"
    library_n = obs["n_counts"].to_numpy()

    def rows_of(ranges: Any) -> Iterator[Minified]:
        for start, stop in ranges:
            mean, library = mean_nk[start:stop], library_n[start:stop]
            yield Minified(mean, np.full_like(mean, 0.01), library, library)

    write_atlas(
        path, module, spec, open_for(store, spec), rows_of, has_counts=False, identity={"of": "drawn"},
        var=pd.DataFrame(index=genes), options=AtlasOptions((), ["type"]), world=World(), lineage={},
        on_progress=ProgressReporter("written"),
    )  # fmt: skip


@contextmanager
def service_of(atlas: Path, tokens: list[str]) -> Iterator[tuple[int, psutil.Process]]:
    """Run a service in a process of its own; yield its port and the process."""
    with tempfile.NamedTemporaryFile("w", suffix=".tokens") as file:
        file.write("\n".join(tokens))
        file.flush()
        words = [sys.executable, "-m", "dist_scvi.launch.cli", "serve", f"drawn={atlas}", "--port", "0"]
        process = subprocess.Popen([*words, "--token-file", file.name], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield int(line.split("://")[1].split("/")[0].rsplit(":", 1)[1]), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def questions(n_cells: int, n_genes: int, rng: random.Random) -> dict[str, Callable[[], tuple[str, Any]]]:
    """Return a function for each kind of question, that makes one which was not asked before."""

    def types(n: int) -> list[str]:
        return [f"t{number:03d}" for number in rng.sample(range(N_TYPES), n)]

    def lasso() -> dict[str, Any]:
        where = f"n_counts > {rng.uniform(500, 2500):.2f}"
        return {
            "group1": f"{where} and type == '{types(1)[0]}'",
            "mode": "change",
            "pseudocounts": 1e-8,
            "engine": "pairs",
        }

    def sketch() -> dict[str, Any]:
        first = types(2)
        return {"group1": {"type": first[:1]}, "group2": {"type": first[1:]}, "mode": "change", "pseudocounts": 1e-8}

    def genes(n: int) -> list[str]:
        return [f"g{gene}" for gene in rng.sample(range(n_genes), n)]

    return {
        "expression of 10 genes by type": lambda: ("expression", {"genes": genes(10), "by": "type"}),
        "differential expression by sketch": lambda: ("differential-expression", sketch()),
        "differential expression by pairs": lambda: ("differential-expression", lasso()),
        "15 neighbours of a cell": lambda: ("neighbors", {"query": [rng.randrange(n_cells)]}),
        "abundance of types by donor": lambda: (
            "abundance",
            {"by": "donor", "groups": "type", "where": f"n_counts > {rng.uniform(500, 3000):.2f}"},
        ),
        "genes by a part of their name": lambda: (f"genes?q=g{rng.randrange(n_genes)}", None),
    }


WEIGHTS = {"differential expression by pairs": 1, "abundance of types by donor": 1}
"""Others are asked four times as often."""


class Client:
    """A client with a connection and a token of its own."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._headers = {"Authorization": f"Bearer {token}", "Accept": ARROW, "Content-Type": "application/json"}

    def ask(self, path: str, body: Any) -> tuple[int, int, float]:
        """Return the status, the bytes and the seconds of an answer; a job is waited for."""
        began = time.perf_counter()
        text = None if body is None else json.dumps(body)
        headers = self._headers if body is not None else {**self._headers, "Accept": "application/json"}
        self._connection.request("GET" if body is None else "POST", f"/v1/drawn/{path}", text, headers)
        response = self._connection.getresponse()
        content = response.read()
        status = response.status
        while status == 202:
            job = response.headers["Location"]
            self._connection.request("GET", job, headers=self._headers)
            if json.loads(self._connection.getresponse().read())["state"] == "running":
                time.sleep(0.05)
                continue
            self._connection.request("GET", f"{job}/answer", headers=self._headers)
            answer = self._connection.getresponse()
            content, status = answer.read(), answer.status
        return status, len(content), time.perf_counter() - began


def summary(seconds: list[float], sizes: list[int]) -> dict[str, float]:
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    return {
        "n": len(seconds),
        "p50_ms": round(1e3 * float(p50), 1),
        "p95_ms": round(1e3 * float(p95), 1),
        "kib": round(float(np.mean(sizes)) / 1024, 1),
    }


def alone(port: int, token: str, n_cells: int, n_genes: int, repeats: int) -> dict[str, Any]:
    """Time each question of one client, after one that compiles."""
    client, found = Client(port, token), {}
    for name, make in questions(n_cells, n_genes, random.Random(1)).items():
        assert client.ask(*make())[0] == 200, name
        answers = [client.ask(*make()) for _ in range(repeats)]
        assert {status for status, _, _ in answers} == {200}, name
        found[name] = summary([each[2] for each in answers], [each[1] for each in answers])
        print(f"{name:>36}  {found[name]}", flush=True)
    return found


def together(
    port: int, tokens: list[str], n_cells: int, n_genes: int, seconds: float, process: psutil.Process
) -> dict[str, Any]:
    """Let all clients ask for some time; sample the memory of the service."""
    times: dict[str, list[float]] = defaultdict(list)
    sizes: dict[str, list[int]] = defaultdict(list)
    failed: list[str] = []
    stop = time.monotonic() + seconds

    def run(number: int) -> None:
        rng = random.Random(100 + number)
        client, made = Client(port, tokens[number]), questions(n_cells, n_genes, rng)
        weights = [WEIGHTS.get(name, 4) for name in made]
        while True:
            time.sleep(rng.expovariate(1.0))
            if time.monotonic() > stop:
                return
            [name] = rng.choices(list(made), weights)
            try:
                status, size, spent = client.ask(*made[name]())
            except (OSError, http.client.HTTPException) as error:
                failed.append(f"{name}: {error!r}")
                return
            if status != 200:
                failed.append(f"{name}: {status}")
            times[name].append(spent)
            sizes[name].append(size)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(tokens))]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(process.memory_info().rss >> 20)
        time.sleep(1)
    third = max(1, len(memory) // 3)
    return {
        "clients": len(tokens),
        "seconds": seconds,
        "errors": failed[:20],
        "answers_per_s": round(sum(map(len, times.values())) / seconds, 1),
        "questions": {name: summary(times[name], sizes[name]) for name in sorted(times)},
        "memory_mib": {
            "first": memory[0],
            "first_third": int(np.median(memory[:third])),
            "last_third": int(np.median(memory[-third:])),
            "most": max(memory),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=8_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--atlas", type=Path, required=True, help="where the drawn atlas is, or is to be written")
    parser.add_argument("--only-write", action="store_true", help="write the atlas and stop")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results by number of cells; others in it are kept")
    options = parser.parse_args()
    if not options.atlas.exists():
        write_atlas_of(options.atlas, options.cells, options.genes)
    if options.only_write:
        return
    tokens = [f"token-of-client-{number:04d}" for number in range(options.clients)]
    with service_of(options.atlas, tokens) as (port, process):
        one = alone(port, tokens[0], options.cells, options.genes, options.repeats)
        many = together(port, tokens, options.cells, options.genes, options.seconds, process)
    print(json.dumps(many, indent=1))
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    machine = {"cpus": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()[1]}
    found[str(options.cells)] = {"genes": options.genes, "machine": machine, "one_client": one, "many_clients": many}
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
