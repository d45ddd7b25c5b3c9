"""Checkpoints that are damaged, deleted or forged: the one before is used, and without any a run is not begun anew."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.fault_runs import STEP, Crew, Toy, assert_undisturbed, fault, finish_here, train_here

pytestmark = pytest.mark.timeout(240)

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


@pytest.fixture(scope="module")
def half(toy_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A run that was stopped after two checkpoints and more."""
    toy = Toy(toy_config, tmp_path_factory.mktemp("half"))
    assert train_here(toy, faults=[fault(STEP, "SIGTERM", 14)]).codes == [75]
    return toy


@pytest.fixture
def stopped(half: Toy, tmp_path: Path) -> Toy:
    shutil.copytree(half.folder, tmp_path, dirs_exist_ok=True)
    return Toy(half.config, tmp_path)


def newest(toy: Toy) -> Path:
    return toy.files / "checkpoints" / f"step-{toy.saved()[-1]:010d}"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def deleted(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncated, flipped, deleted])
def test_a_damaged_checkpoint_costs_what_was_done_since_the_one_before(
    name: str, damage: Callable[[Path], None], stopped: Toy, undisturbed: Callable[[int], Toy]
) -> None:
    damage(newest(stopped) / name)
    mark = "incomplete" if (name, damage) == ("MANIFEST.json", deleted) else "damaged"
    aside = f"{mark}-{newest(stopped).name}"
    finish_here(stopped)
    assert (stopped.files / "checkpoints" / aside).is_dir()
    assert_undisturbed(stopped, undisturbed(1))


class TestNoneLeft:
    def test_a_run_whose_checkpoints_are_all_damaged_begins_anew_only_when_told_to(
        self, stopped: Toy, undisturbed: Callable[[int], Toy]
    ) -> None:
        for path in (stopped.files / "checkpoints").glob("step-*"):
            flipped(path / "model.safetensors")
        for _ in range(2):
            ended = train_here(stopped)
            assert ended.codes == [2]
            assert "verifies (2 damaged): restore one from a copy" in ended.said
        finish_here(stopped, "--allow-fresh")
        assert_undisturbed(stopped, undisturbed(1))

    def test_workers_under_torchrun_are_told_alike(
        self, stopped: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
    ) -> None:
        shutil.rmtree(stopped.files / "checkpoints")
        assert crew.train(stopped).codes == [2, 2]
        crew.finish(stopped, "--allow-fresh")
        assert stopped.model == undisturbed(2).model

    def test_so_does_one_whose_checkpoints_are_gone(self, stopped: Toy, undisturbed: Callable[[int], Toy]) -> None:
        shutil.rmtree(stopped.files / "checkpoints")
        ended = train_here(stopped)
        assert ended.codes == [2]
        assert "has no checkpoint now" in ended.said
        assert "--allow-fresh" in ended.said
        finish_here(stopped, "--allow-fresh")
        assert_undisturbed(stopped, undisturbed(1))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)


def with_manifest(folder: Path, name: str, content: bytes) -> None:
    """Write a file and make the manifest say that it is right."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def outside(folder: Path) -> None:
    secret = folder.parents[2] / "secret"
    secret.write_bytes(b"secret")
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["files"]["../../../secret"] = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def pickled(folder: Path) -> None:
    with_manifest(folder, "model.safetensors", pickle.dumps(Evil()))


def absurd_header(folder: Path) -> None:
    with_manifest(folder, "optimizer.safetensors", (1 << 62).to_bytes(8, "little") + b"{}")


def absurd_size(folder: Path) -> None:
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["files"]["state.json"]["bytes"] = 1 << 60
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def nested(folder: Path) -> None:
    with_manifest(folder, "state.json", b"[" * 100_000)


@pytest.mark.parametrize("forge", [outside, pickled, absurd_header, absurd_size, nested])
def test_a_forged_checkpoint_is_set_aside_and_nothing_of_it_is_executed(
    forge: Callable[[Path], None],
    stopped: Toy,
    undisturbed: Callable[[int], Toy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    forge(newest(stopped))
    aside = f"damaged-{newest(stopped).name}"
    finish_here(stopped)
    assert (stopped.files / "checkpoints" / aside).is_dir()
    assert not (tmp_path / "executed").exists()
    assert_undisturbed(stopped, undisturbed(1))
