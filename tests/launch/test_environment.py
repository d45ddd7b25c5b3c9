"""Commands in poor surroundings: optimised Python, little memory, no home, no room for temporary files."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from dist_scvi.launch import process_environment
from dist_scvi.launch.process_environment import prepare_environment


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")  # so that the value is restored afterwards
    monkeypatch.delenv("NUMBA_CACHE_DIR")


def command(*words: object, env: Mapping[str, str | None] | None = None, memory: int | None = None, flag: str = "-B"):
    """Run a command in a process of its own, with a changed environment and a limit of its address space."""
    changed = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **(env or {})}

    def limit() -> None:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    return subprocess.run(
        [sys.executable, flag, "-m", "dist_scvi.launch.cli", *map(str, words)],
        env={name: value for name, value in changed.items() if value is not None},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_numba_gets_a_private_folder_where_it_can_write_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_environment, "_writable", lambda _: False)
    prepare_environment()
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()


def test_a_run_is_the_same_in_optimised_python_without_a_home_or_temporary_files(run_yaml: Path) -> None:
    """Assertions are for type checkers only: nothing that a command does depends on them."""
    env = {"HOME": None, "TMPDIR": "/proc", "XDG_CACHE_HOME": "/proc/none"}
    ended = command("train", run_yaml, "train.max_epochs=1", env=env, flag="-OO")
    assert ended.returncode == 0, ended.stderr
    assert (run_yaml.parent / "run" / "model" / "weights.safetensors").exists()
    refused = command("train", run_yaml, "data.batch_key=nowhere", f"run={run_yaml.parent}/x", env=env, flag="-OO")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, to mount")
def test_workers_on_ray_train_with_little_shared_memory(run_yaml: Path) -> None:
    line = f"mount -t tmpfs -o size=16m tmpfs /dev/shm || exit 99; exec {sys.executable} -m dist_scvi.launch.cli train"
    words = [run_yaml, "train.max_epochs=1", "--workers", 2]
    ended = subprocess.run(
        ["unshare", "--mount", "bash", "-c", f'{line} "$@"', "bash", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    if ended.returncode in (1, 99) and "unshare" in ended.stderr + "mount" * (ended.returncode == 99):
        pytest.skip("mounts are not allowed here")
    assert ended.returncode == 0, ended.stderr
    assert (run_yaml.parent / "run" / "model" / "weights.safetensors").exists()


def test_too_little_memory_ends_in_one_line(run_yaml: Path) -> None:
    ended = command("inspect", run_yaml.parent / "none.zarr", memory=400 << 20)
    assert "Traceback" not in ended.stderr
    assert ended.returncode in (1, 2)
    assert ended.stderr.startswith("dist-scvi: ")
