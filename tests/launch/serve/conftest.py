"""A small atlas behind a service: the app in this process, and under uvicorn on the loopback interface."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anndata as ad
import httpx
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.launch.serve.limits import Limits, Service, hash_token
from dist_scvi.launch.serve.uvicorn_server import open_socket, server_of
from dist_scvi.loaders import open_data
from dist_scvi.model import SCANVI

N_CELLS, N_GENES = 403, 50
TOKEN = "a-token-of-the-tests-0123456789"


def new_cells(n_cells: int = N_CELLS, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    label = np.array(["T", "B", "NK"])[rng.integers(0, 3, n_cells)]
    mean = np.random.default_rng(5).gamma(0.6, 3.0, (3, N_GENES))[pd.Categorical(label).codes]
    counts = rng.poisson(mean * rng.lognormal(0, 0.4, (n_cells, 1)))
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(np.where(np.arange(n_cells) % 3 == 0, "b1", "b0")),
            "label": pd.Categorical(label),
            "age": rng.normal(50, 10, n_cells).astype(np.float32),
            "donor": pd.Categorical(rng.choice(["d1", "d2", "d3"], n_cells)),
        },
        index=[f"cell{row}" for row in range(n_cells)],
    )
    var = pd.DataFrame(
        {"symbol": [f"SYM{gene}" for gene in range(N_GENES)]}, index=[f"gene{g}" for g in range(N_GENES)]
    )
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="session")
def atlas_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("served")
    model = SCANVI(open_data(new_cells(), batch_key="batch", labels_key="label"), n_hidden=16, n_latent=4)
    model.train(1, enable_progress_bar=False)
    model.minify(folder / "atlas")
    return folder / "atlas"


@pytest.fixture(scope="session")
def atlas(atlas_path: Path) -> Atlas:
    return open_atlas(atlas_path)


@pytest.fixture(scope="session")
def service(atlas_path: Path) -> Service:
    limits = Limits(genes=20, values=20_000, body_bytes=20_000, upload_bytes=4_000_000)
    return Service(atlases={"small": str(atlas_path)}, hosts=("localhost", "127.0.0.1"), limits=limits)


@contextmanager
def running(service: Service) -> Iterator[int]:
    """Run a service under uvicorn on a free port of the loopback interface."""
    with open_socket("127.0.0.1", 0) as sock:
        server = server_of(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield sock.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def client_of(service: Service) -> Iterator[httpx.Client]:
    with running(service) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    with client_of(service) as client:
        yield client


@pytest.fixture(scope="session")
def guarded(service: Service) -> Iterator[httpx.Client]:
    """The same service, for those who know the token."""
    hashes = (hash_token("another-token-0123456789"), hash_token(TOKEN))
    with client_of(replace(service, token_hashes=hashes)) as client:
        yield client


@pytest.fixture(scope="session")
def port(service: Service) -> Iterator[int]:
    """The port of the same service with little patience."""
    with running(replace(service, limits=replace(service.limits, receive_s=0.4, send_s=0.4))) as port:
        yield port
