"""Storage that is full, must not be written, or fails: the run ends with the path, and goes on when it is mended."""

import re
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from dist_scvi.loaders.arrays import remote
from dist_scvi.metrics.metrics_file import MetricsLog
from dist_scvi.storage.run_storage import LocalStorage
from dist_scvi.training import run_folder
from tests.launch.fault_runs import (
    STEP,
    Crew,
    Toy,
    assert_at_most_one_save_lost,
    assert_undisturbed,
    fault,
    finish_here,
    train_here,
)
from tests.loaders.object_server import Fault, ObjectServer

pytestmark = pytest.mark.timeout(240)


class TestDisk:
    @pytest.mark.parametrize(
        ("harm", "words"),
        [("EIO", "Input/output error"), ("ENOSPC", "No space left on device"), ("EROFS", "Read-only file system")],
    )
    @pytest.mark.parametrize("call", ["os.fsync", "os.mkdir"])
    def test_a_disk_that_fails_in_a_save_is_named_and_what_was_saved_stays(
        self, call: str, harm: str, words: str, toy: Toy, undisturbed: Callable[[int], Toy]
    ) -> None:
        at = {"os.fsync": 14, "os.mkdir": 3}[call]
        ended = train_here(toy, faults=[fault(call, harm, at, times=99, thread="saver")])
        assert ended.codes == [1], ended.said
        assert words in ended.said
        assert f"{toy.run}/" in ended.said.splitlines()[-1]
        assert toy.saved()[0] == 4
        assert not list(toy.files.glob("checkpoints/.*"))
        finish_here(toy)
        assert_undisturbed(toy, undisturbed(1))

    def test_files_may_be_too_large_for_a_limit(self, toy: Toy, undisturbed: Callable[[int], Toy]) -> None:
        with largest_file(9000):
            ended = train_here(toy)
        assert ended.codes == [1]
        assert "File too large" in ended.said
        assert f"{toy.run}/checkpoints/.partial-step-0000000004/" in ended.said
        finish_here(toy)
        assert_undisturbed(toy, undisturbed(1))

    def test_full_metrics_are_named(self, tmp_path: Path) -> None:
        log = MetricsLog(LocalStorage(tmp_path), step=0)
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/metrics.jsonl'"):
            log.write({"kind": "train", "step": 1})

    @pytest.mark.parametrize("room", [16, 60, 120])
    def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
        self, room: int, toy: Toy, undisturbed: Callable[[int], Toy]
    ) -> None:
        with disk(toy.files, f"size={room}k") as remount:
            ended = train_here(toy)
            assert ended.codes == [1], ended.said
            assert "No space left on device" in ended.said
            assert f"{toy.run}/" in ended.said.splitlines()[-1]
            remount("size=9m")
            finish_here(toy)
            assert_undisturbed(toy, undisturbed(1))

    def test_a_disk_that_must_not_be_written_is_named(self, toy: Toy, undisturbed: Callable[[int], Toy]) -> None:
        with disk(toy.files, "size=9m") as remount:
            assert train_here(toy, faults=[fault(STEP, "SIGTERM", 7)]).codes == [75]
            remount("ro")
            ended = train_here(toy)
            assert ended.codes == [1]
            assert "Read-only file system" in ended.said
            assert f"{toy.run}/" in ended.said.splitlines()[-1]
            remount("rw")
            finish_here(toy)
            assert_undisturbed(toy, undisturbed(1))


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def disk(path: Path, options: str) -> Iterator[Callable[[str], None]]:
    """Mount a disk of its own at `path`; its options may be changed."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], check=False).returncode:
        pytest.skip("no disk may be mounted here")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", str(path)], check=True)


class TestObjectStorage:
    def test_a_run_in_object_storage_is_the_one_on_a_disk(
        self, stored: Toy, server: ObjectServer, undisturbed: Callable[[int], Toy]
    ) -> None:
        finish_here(stored, *told(server))
        assert_undisturbed(stored, undisturbed(1))

    @pytest.mark.parametrize(("at", "when"), [(5, "before"), (11, "after"), (15, "before"), (16, "after")])
    def test_killed_in_a_save_it_goes_on_as_if_it_had_not(
        self, at: int, when: str, stored: Toy, server: ObjectServer, crew: Crew, undisturbed: Callable[[int], Toy]
    ) -> None:
        kill = fault("dist_scvi.loaders.arrays.remote.RemoteObjects.write", "SIGKILL", at, when=when, thread="saver")
        assert crew.train(stored, *told(server), workers=1, faults={0: [kill]}).codes == [-9]
        assert_at_most_one_save_lost(stored)
        finish_here(stored, *told(server))
        assert_undisturbed(stored, undisturbed(1))

    @pytest.mark.parametrize(
        "faults", [[503, 500, "cut", 503], [None, 429, "silent"], [None, "stall", None, 503, "slow", "cut"]]
    )
    def test_a_server_that_fails_for_a_while_in_a_save_is_asked_again(
        self,
        faults: list[Fault | None],
        stored: Toy,
        server: ObjectServer,
        undisturbed: Callable[[int], Toy],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.02)
        at_save(monkeypatch, 8, lambda: server.inflict(faults))
        finish_here(stored, *told(server), "storage_options.read_timeout=2s")
        assert_undisturbed(stored, undisturbed(1))

    @pytest.mark.parametrize("fails", [503, "cut"])
    def test_a_server_that_fails_for_good_ends_the_run_and_one_that_is_mended_lets_it_go_on(
        self,
        fails: Fault,
        stored: Toy,
        server: ObjectServer,
        undisturbed: Callable[[int], Toy],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.02)
        with monkeypatch.context() as patched:
            at_save(patched, 8, lambda: server.inflict(repeat(fails)))
            ended = train_here(stored, *told(server))
        assert ended.codes == [1], ended.said
        assert re.search(r"error: s3://bucket/run/\S+ was not \w+ in 6 tries over", ended.said)
        server.inflict([])
        assert_at_most_one_save_lost(stored)
        finish_here(stored, *told(server))
        assert_undisturbed(stored, undisturbed(1))

    def test_a_server_that_does_not_answer_is_named_before_anything_is_done(
        self, stored: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.02)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            nobody = {"endpoint": f"http://127.0.0.1:{free.getsockname()[1]}", "skip_signature": "true"}
            ended = train_here(stored, *(f"storage_options.{key}={value!r}" for key, value in nobody.items()))
        assert ended.codes == [1]
        assert re.search(r"error: s3://bucket/run/\S+ was not \w+ in 6 tries over .*connect", ended.said)
        assert not stored.steps_taken()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObjectServer]:
    (tmp_path / "storage" / "bucket").mkdir(parents=True)
    with ObjectServer(tmp_path / "storage") as server:
        yield server


@pytest.fixture
def stored(toy: Toy, server: ObjectServer) -> Toy:
    return replace(toy, run="s3://bucket/run", files=server.root / "bucket" / "run")


def told(server: ObjectServer) -> list[str]:
    return [f"storage_options.{key}={value!r}" for key, value in server.s3_options.items()]


def at_save(monkeypatch: pytest.MonkeyPatch, done: int, act: Callable[[], None]) -> None:
    """Do something just before the checkpoint after `done` steps is written."""
    write = run_folder.write_checkpoint

    def written(place: Any, step: int, *args: Any, **kwargs: Any) -> None:
        if step == done:
            act()
        write(place, step, *args, **kwargs)

    monkeypatch.setattr(run_folder, "write_checkpoint", written)
