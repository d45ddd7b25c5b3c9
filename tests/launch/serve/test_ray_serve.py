"""The service on Ray Serve: the same answers, jobs that every replica knows, and a replica that is killed."""

import json
import os
import signal
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

import dist_scvi
from dist_scvi.atlas.atlas import Atlas
from tests.launch.commands import DIST_SCVI, started, until

pytest.importorskip("ray.serve")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(280, func_only=True)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def test_a_replica_that_is_killed_loses_no_request_that_is_repeated(
    atlas_path: Path, atlas: Atlas, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = [*DIST_SCVI, "serve", f"small={atlas_path}", "--ray", "--replicas", "2:2", "--port", str(port)]
    with started(tmp_path / "log", *words) as command:
        until(lambda: answers(f"{url}/healthz") or command.ended, "the service", timeout_s=200)
        assert not command.ended, command.said
        remote = dist_scvi.connect(url)

        body = json.dumps({"by": "label", "n_genes": 2}).encode()
        headers = {"Content-Type": "application/json", "Prefer": "respond-async"}
        asked = urllib.request.Request(f"{url}/v1/small/markers", body, headers)
        with urllib.request.urlopen(asked, timeout=60) as response:
            job = response.headers["Location"]
        for _ in range(8):  # whichever replica answers
            with urllib.request.urlopen(url + job, timeout=60) as response:
                assert json.load(response)["question"] == "markers"
        until(lambda: json.load(urllib.request.urlopen(url + job, timeout=60))["state"] == "done", "the job")

        genes = [f"gene{gene}" for gene in range(48)]
        with ThreadPoolExecutor(6) as pool:
            found = [pool.submit(remote.expression, [gene], "label") for gene in genes]
            found[2].result(60)
            replicas = command.processes("ServeReplica:dist_scvi:Replica")
            assert len(replicas) == 2
            replicas[0].send_signal(signal.SIGKILL)
            for gene, future in zip(genes, found, strict=True):
                expected = atlas.expression([gene], "label").table
                pd.testing.assert_frame_equal(future.result(100).table, expected, check_exact=True)
        os.kill(command.pid, signal.SIGTERM)
        assert command.exit_code(60) == 0, command.said
