"""Two hosts on one cable, as two network namespaces: a run crosses it, outlives its loss, and changes in no bit."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dist_scvi.metrics.run_record import is_finished
from dist_scvi.storage.run_storage import LocalStorage
from tests.launch.commands import DIST_SCVI, RAY, TORCHRUN, Command, last_step, same, started, until

pytestmark = pytest.mark.timeout(280, func_only=True)

ADDRESSES = ("10.213.0.1", "10.213.0.2")
CABLE = "cable"
EPOCHS = "train.max_epochs=10"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, ...]]]:
    """What is put before a command to run it on the first, and on the second host."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs iproute2 and root")
    names = [f"dist-scvi-{uuid.uuid4().hex[:8]}" for _ in ADDRESSES]
    with ExitStack() as undo:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
            undo.callback(ip, "netns", "delete", name)
        ip("link", "add", CABLE, "netns", names[0], "type", "veth", "peer", "name", CABLE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", CABLE, "up")
        yield [("ip", "netns", "exec", name) for name in names]


def switch(host: tuple[str, ...], state: str) -> None:
    ip("-n", host[-1], "link", "set", CABLE, state)


def both(hosts: list[tuple[str, ...]], folder: Path, *words: Any) -> tuple[ExitStack, list[Command]]:
    """Start torchrun on both hosts."""
    stack, commands = ExitStack(), []
    for rank, host in enumerate(hosts):
        where = ["--nnodes", 2, "--nproc-per-node", 1, "--node-rank", rank, "--master-addr", ADDRESSES[0]]
        line = [*host, *TORCHRUN, *where, "--master-port", 29511, "-m", "dist_scvi.launch.torchrun", *words]
        found = started(folder / f"log{rank}", *line, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME=CABLE)
        commands.append(stack.enter_context(found))
    return stack, commands


@pytest.fixture
def local(run_yaml: Path, tmp_path: Path) -> Path:
    """The same run by two workers of one host."""
    words = [*TORCHRUN, "--standalone", "--nproc-per-node", 2, "-m", "dist_scvi.launch.torchrun"]
    run = tmp_path / "local"
    with started(tmp_path / "log", *words, run_yaml, EPOCHS, f"run={run}", OMP_NUM_THREADS="1") as command:
        assert command.exit_code() == 0, command.said
    return run


def test_a_run_over_a_cable_that_is_cut_goes_on_when_it_is_mended_and_changes_in_no_bit(
    hosts: list[tuple[str, ...]], run_yaml: Path, tmp_path: Path, local: Path
) -> None:
    run, words = tmp_path / "run", [run_yaml, EPOCHS, "train.collective_timeout_s=10"]
    stack, commands = both(hosts, tmp_path, *words)
    with stack:
        commands[0].reach(run, 20)
        switch(hosts[0], "down")
        for command in commands:
            assert command.exit_code(90) not in (0, 2), command.said
            command.leaves_nothing()
    assert 20 <= last_step(run) < 210
    switch(hosts[0], "up")
    stack, commands = both(hosts, tmp_path, *words)
    with stack:
        assert [command.exit_code() for command in commands] == [0, 0], commands[0].said
    assert same(run, local)


@pytest.mark.ray
@pytest.mark.thorough
def test_ray_joins_two_hosts_for_those_who_have_the_token(
    hosts: list[tuple[str, ...]], run_yaml: Path, tmp_path: Path, local: Path
) -> None:
    address = f"{ADDRESSES[0]}:6399"
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "GLOO_SOCKET_IFNAME": CABLE}
    with ExitStack() as stack:
        # short, for names of sockets
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
        head = ["--head", "--port", 6399, "--include-dashboard", "false", "--temp-dir", folder]
        nodes = []
        for rank, (host, place) in enumerate(zip(hosts, (head, ["--address", address]), strict=True)):
            words = [*host, *RAY, "start", *place, "--node-ip-address", ADDRESSES[rank], "--num-cpus", 1, "--block"]
            nodes.append(stack.enter_context(started(tmp_path / f"node{rank}", *words, **known)))
            until(lambda: nodes[-1].processes("raylet/raylet") or nodes[-1].ended, "a node of Ray")
            assert not nodes[-1].ended, nodes[-1].said
        train = [*hosts[0], *DIST_SCVI, "train", run_yaml, EPOCHS, "--workers", 2, "--address", address]
        with started(tmp_path / "train", *train, **known) as command:
            assert command.exit_code(200) == 0, command.said
        with started(tmp_path / "stranger", *train, **(known | {"RAY_AUTH_TOKEN": uuid.uuid4().hex})) as command:
            assert command.exit_code() not in (0, 75), command.said
        assert not any(node.ended for node in nodes)
    assert is_finished(LocalStorage(tmp_path / "run"))
    assert same(tmp_path / "run", local)
