"""An output written in shards is complete or absent, and what was done before a kill is neither lost nor done again."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from dist_scvi.inference import resumable_zarr
from dist_scvi.inference.resumable_zarr import Shards, written_in_shards
from dist_scvi.loaders.arrays.anndata_layout import new_array, new_root, new_strings
from dist_scvi.world import World
from tests.dist_scvi.kill_writers import KilledWriters
from tests.dist_scvi.workers import together

N_CELLS, SHARD = 100, 16
STARTS = list(range(0, N_CELLS, SHARD))


def create(path: Path) -> None:
    root = new_root(path, ["g0"])
    new_array(root, "obsm/z", (N_CELLS, 2), np.float32, chunk_rows=8, shard_rows=SHARD)
    new_strings(root, "obs/_index", N_CELLS, chunk_rows=SHARD)


def arrays(start: int, stop: int, times: int = 1) -> dict[str, Any]:
    row_n = np.arange(start, stop)
    names = np.array([f"c{row}" for row in row_n], dtype=object)
    return {"obsm/z": times * np.stack([row_n, -row_n], axis=1).astype(np.float32), "obs/_index": names}


def write(
    path: Path,
    world: Any = None,
    *,
    times: int = 1,
    before: Callable[[int], None] = lambda _: None,
    finish: Callable[[Path], None] = lambda _: None,
) -> list[int]:
    """Write all that is left, and give the first rows of the shards that this worker wrote."""

    def check_free() -> None:
        if path.exists():
            raise ValueError(f"{path} exists")

    with written_in_shards(
        path,
        {"times": times},
        create,
        n_cells=N_CELLS,
        shard_cells=SHARD,
        world=world or World(),
        check_free=check_free,
        finish=finish,
    ) as mine:
        for start, stop in mine.spans:
            before(start)
            mine.write(start, stop, arrays(start, stop, times))
        return [start for start, _ in mine.spans]


def stop_at(start: int) -> Callable[[int], None]:
    def check(at: int) -> None:
        if at == start:
            raise RuntimeError("the power is gone")

    return check


def cut_off(path: Path, start: int, **options: Any) -> None:
    with pytest.raises(RuntimeError, match="the power is gone"):
        write(path, before=stop_at(start), **options)
    assert not path.exists()


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    assert write(tmp_path / "whole") == STARTS
    return files(tmp_path / "whole")


@pytest.fixture(scope="module")
def writers() -> Iterator[KilledWriters]:
    started = KilledWriters()
    yield started
    started.close()


@pytest.fixture(scope="module")
def undisturbed(writers: KilledWriters, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    for what in ("minify", "rows"):
        (ended,) = writers.write(folder / what, what=what)
        assert ended["error"] is None
    return {what: files(folder / what) for what in ("minify", "rows")}


def test_the_output_holds_all_that_was_written_and_nothing_else(whole: dict[str, bytes], tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "whole", mode="r")
    for name, values in arrays(0, N_CELLS).items():
        np.testing.assert_array_equal(root[name], values)
    kept = {name.partition("/c/")[0] for name in whole if not name.endswith("zarr.json")}
    assert kept == {"obsm/z", "obs/_index", "var/_index"}
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_what_was_done_is_not_done_again(whole: dict[str, bytes], tmp_path: Path) -> None:
    cut_off(tmp_path / "out", STARTS[3])
    cut_off(tmp_path / "out", STARTS[5])
    assert write(tmp_path / "out") == STARTS[5:]
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize(("size", "then"), [(1, 3), (3, 2), (2, 1)])
def test_what_is_left_is_dealt_out_evenly_to_any_number_of_workers(
    whole: dict[str, bytes], tmp_path: Path, size: int, then: int
) -> None:
    with pytest.raises((RuntimeError, threading.BrokenBarrierError)):
        together(size, lambda world: write(tmp_path / "out", world, before=stop_at(STARTS[2])))
    done = len(list((tmp_path / ".partial-out").glob("*/done/*")))
    assert done < len(STARTS)
    written = together(then, lambda world: write(tmp_path / "out", world))
    assert sum(map(len, written)) == len(STARTS) - done
    assert max(map(len, written)) - min(map(len, written)) <= 1
    assert files(tmp_path / "out") == whole


def test_workers_wait_for_each_other_after_each_round(tmp_path: Path) -> None:
    done: dict[int, set[str]] = {}

    def look(start: int) -> None:
        if start == 0:
            time.sleep(0.3)  # long enough for the others to run ahead
        done[start] = {mark.name for mark in (tmp_path / ".partial-out").glob("*/done/*")}

    together(3, lambda world: write(tmp_path / "out", world, before=look))
    assert all(done[start] >= {f"{number:08d}" for number in range(3)} for start in STARTS[3:])


def test_another_question_begins_anew(tmp_path: Path) -> None:
    cut_off(tmp_path / "out", STARTS[4])
    assert write(tmp_path / "out", times=2) == STARTS
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "out")["obsm/z"], arrays(0, N_CELLS, 2)["obsm/z"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_another_version_left_unfinished_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".partial-out/cells.zarr").mkdir(parents=True)
    (tmp_path / ".partial-out/ATLAS.json").write_text("{}")
    cut_off(tmp_path / "out", STARTS[1])
    (work,) = (tmp_path / ".partial-out").glob("[!.]*")
    assert {path.name for path in work.iterdir()} == {"output", "done", "question.json"}


def test_a_start_that_was_killed_before_it_began_is_begun_anew(whole: dict[str, bytes], tmp_path: Path) -> None:
    cut_off(tmp_path / "out", STARTS[2])
    (identity,) = (tmp_path / ".partial-out").glob("*/question.json")
    identity.unlink()
    assert write(tmp_path / "out") == STARTS
    assert files(tmp_path / "out") == whole


def test_torn_files_of_a_shard_that_was_not_done_are_replaced(whole: dict[str, bytes], tmp_path: Path) -> None:
    cut_off(tmp_path / "out", STARTS[2])
    (output,) = (tmp_path / ".partial-out").glob("*/output")
    for torn in ("obsm/z/c/2/0", "obsm/z/c/2/0.12ab.partial", "obs/_index/c/6", "obs/_index/c/6.34cd.partial"):
        (output / torn).parent.mkdir(exist_ok=True)
        (output / torn).write_bytes(b"torn" * 20)
    assert write(tmp_path / "out") == STARTS[2:]
    assert files(tmp_path / "out") == whole


def test_a_shard_that_a_worker_left_over_has_just_done_is_left_alone(tmp_path: Path) -> None:
    def done_by_another(start: int) -> None:
        if start == STARTS[1]:
            (marks,) = (tmp_path / ".partial-out").glob("*/done")
            (marks / "00000001").touch()

    write(tmp_path / "out", before=done_by_another)
    found = zarr.open_group(tmp_path / "out")["obsm/z"][:]
    assert np.isnan(found[16:32]).all()  # nobody has, in this test
    assert np.isfinite(found[32:]).all()


def test_a_shard_counts_as_done_only_when_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(str(file).partition("/output/")[2])
        sync(descriptor)

    def mark(path: Path, content: bytes) -> None:
        if path.name == f"{1:08d}":
            needed = {"obsm/z/c/1", "obsm/z/c/1/0", "obsm/z/c", "obs/_index/c/1", "obs/_index/c"}
            assert needed <= set(synced[before[0] :])
        before[0] = len(synced)
        put(path, content)

    before, put = [0], resumable_zarr.write_file
    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(resumable_zarr, "write_file", mark)
    write(tmp_path / "out")
    assert before[0] > len(STARTS)


def test_a_second_writer_of_the_same_output_is_refused(whole: dict[str, bytes], tmp_path: Path) -> None:
    def start_another(start: int) -> None:
        if start == STARTS[2]:
            for times in (1, 2):
                with pytest.raises(ValueError, match=r"another process is writing in .*\.partial-out: wait for it"):
                    write(tmp_path / "out", times=times)

    write(tmp_path / "out", before=start_another)
    assert files(tmp_path / "out") == whole


def test_an_output_that_appeared_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    taken, path = iter([False, True]), tmp_path / "out"

    def check_free() -> None:
        if next(taken):
            raise ValueError("out exists")

    options = {"n_cells": N_CELLS, "shard_cells": SHARD, "world": World(), "finish": lambda _: None}
    with (
        pytest.raises(ValueError, match="out exists"),
        written_in_shards(path, {}, create, check_free=check_free, **options),
    ):
        pytest.fail("nothing is to be written")


@pytest.mark.parametrize("at", ["create", "finish"])
def test_what_fails_on_the_first_worker_is_raised_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    errors: list[BaseException] = []

    def work(world: Any) -> None:
        try:
            write(tmp_path / "out", world, finish=fail if at == "finish" else lambda _: None)
        except OSError as error:
            errors.append(error)

    if at == "create":
        monkeypatch.setitem(globals(), "create", fail)
    together(3, work)
    assert len(errors) == 3
    assert all("Read-only file system while writing" in str(error) for error in errors)


def test_workers_that_ask_different_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="worker 2 has another model, other cells or other arguments than worker 0"):
        together(3, lambda world: write(tmp_path / "out", world, times=1 + world.rank // 2))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_keeps_what_is_done(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Shards._put

    def no_room(mine: Shards, rows: slice, *arguments: Any) -> None:
        if rows.start == STARTS[4]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(mine, rows, *arguments)

    monkeypatch.setattr(Shards, "_put", no_room)
    with pytest.raises(OSError, match=r"No space left on device while writing .*\.partial-out.*make room") as raised:
        write(tmp_path / "out")
    assert raised.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert write(tmp_path / "out") == STARTS[4:]
    assert files(tmp_path / "out") == whole


def test_a_file_that_the_system_does_not_let_grow_is_told_and_the_same_call_goes_on(
    writers: KilledWriters, undisturbed: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    (ended,) = writers.write(tmp_path / "atlas", what="minify", most_bytes=5000)  # less than the weights
    assert "OSError: [Errno 27] File too large while writing" in ended["error"]
    assert "/weights.safetensors: make room there" in ended["error"]
    assert not (tmp_path / "atlas").exists()
    (ended,) = writers.write(tmp_path / "atlas", what="minify")
    assert ended["told"] == [[80, 80]]
    assert files(tmp_path / "atlas") == undisturbed["minify"]


def test_an_atlas_whose_writer_is_killed_again_and_again_is_that_of_an_undisturbed_one(
    writers: KilledWriters, undisturbed: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    kills, before = (40, 13, 25, 13), []
    for kill_at in kills:
        (ended,) = writers.write(tmp_path / "atlas", what="minify", killed=(0, kill_at))
        assert ended == {"signal": 9}
        assert not (tmp_path / "atlas").exists()
        before.append(len(list((tmp_path / ".partial-atlas").glob("*/pieces/*/index.npz"))))
    assert before == sorted(before)
    assert 0 < before[1] < before[-1] < 5
    (ended,) = writers.write(tmp_path / "atlas", what="minify")
    done = before[-1] * 16
    assert ended["told"][0] == [done, 80]
    assert files(tmp_path / "atlas") == undisturbed["minify"]


def test_a_writer_killed_at_any_change_while_it_finishes_leaves_nothing_or_all(
    writers: KilledWriters, undisturbed: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    (ended,) = writers.write(tmp_path / "atlas", what="minify", most_bytes=5000)  # all but the end
    kills = 0
    while not (tmp_path / "atlas").exists():
        kills += 7  # prime to the period of the changes, so that each kind of them is met
        (ended,) = writers.write(tmp_path / "atlas", what="minify", killed=(0, kills))
        assert ended == {"signal": 9}
    assert kills > 10
    assert files(tmp_path / "atlas") == undisturbed["minify"]


@pytest.mark.parametrize("what", ["minify", "rows"])
def test_workers_of_which_one_is_killed_go_on_in_another_number(
    writers: KilledWriters, undisturbed: dict[str, dict[str, bytes]], tmp_path: Path, what: str
) -> None:
    out = tmp_path / "out"
    for rank, kill_at in ((1, 25), (0, 15)):
        ended = writers.write(out, what=what, workers=2, killed=(rank, kill_at))
        assert ended[rank] == {"signal": 9}
        assert ended[1 - rank]["error"] is not None
        assert not out.exists()
    ended = writers.write(out, what=what, workers=3)
    assert [worker["error"] for worker in ended] == [None] * 3
    assert ended[0]["told"][0][0] > 0
    assert files(out) == undisturbed[what]
