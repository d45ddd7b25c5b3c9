"""Workers that are killed, wherever they are: the run started again ends as one to which nothing happened."""

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_scvi.config.load import load_config
from dist_scvi.storage.lease import Driver
from dist_scvi.storage.run_storage import LocalStorage
from dist_scvi.training.checkpoint import newest_checkpoint
from dist_scvi.training.run_folder import RunFolder
from dist_scvi.training.worker import train_worker
from dist_scvi.world import World
from tests.launch.fault_runs import (
    EPOCHS,
    STEP,
    STEPS,
    Crew,
    Toy,
    assert_at_most_one_save_lost,
    assert_undisturbed,
    fault,
)

pytestmark = pytest.mark.timeout(240)

BACKWARD, REDUCE = "torch.autograd.backward", "torch.distributed.all_reduce"
FILE, FOLDER = "dist_scvi.storage.atomic_files._write_synced", "dist_scvi.training.run_folder.write_checkpoint"

KILLS = {
    "first step": (0, fault(STEP, "SIGKILL", 1)),
    "mid-epoch": (1, fault(STEP, "SIGKILL", 7)),
    "last step of an epoch": (1, fault(STEP, "SIGKILL", STEPS)),
    "first step of the next epoch": (0, fault(STEP, "SIGKILL", STEPS + 1)),
    "last step of all": (0, fault(STEP, "SIGKILL", EPOCHS * STEPS)),
    "while the sums are added up": (1, fault(REDUCE, "SIGKILL", 9, when="while")),
    "while the gradients are averaged": (0, fault(BACKWARD, "SIGKILL", 6, when="while")),
    "in a save, between files": (0, fault(FILE, "SIGKILL", 6, thread="saver")),
    "in a save, before it is put in place": (0, fault("os.rename", "SIGKILL", 2, thread="saver")),
    "in a save, after that": (0, fault("os.rename", "SIGKILL", 3, when="after", thread="saver")),
    "right after a save": (0, fault(FOLDER, "SIGKILL", 2, when="after", thread="saver")),
    "a worker that does not save, in a save": (1, fault("dist_scvi.training.train.check_weights", "SIGKILL", 2)),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_run_one_of_whose_workers_was_killed_ends_as_if_it_had_not(
    kill: str, toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
) -> None:
    rank, harm = KILLS[kill]
    ended = crew.train(toy, faults={rank: [harm]})
    assert ended.codes[rank] == -9
    assert ended.codes[1 - rank] not in (0, 2, -9), ended.said
    assert_at_most_one_save_lost(toy)
    crew.finish(toy)
    assert_undisturbed(toy, undisturbed(2))


def test_a_crash_costs_no_more_where_storage_is_slower_than_training(
    toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
) -> None:
    slow, kill = fault(FOLDER, "slow", times=99, thread="saver"), fault(STEP, "SIGKILL", EPOCHS * STEPS)
    assert crew.train(toy, workers=1, faults={0: [slow, kill]}).codes == [-9]
    assert_at_most_one_save_lost(toy)
    crew.finish(toy, workers=1)
    assert_undisturbed(toy, undisturbed(1))


def test_a_run_killed_at_any_write_of_a_checkpoint_goes_on_as_if_it_had_not(
    toy: Toy, undisturbed: Callable[[int], Toy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk holds before each change that a save makes is what a kill there would leave."""
    torch.set_num_threads(1)
    left, driver, config = [], Driver.this(), load_config(toy.config, [f"run={toy.run}"])

    def watched(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name == "saver" and watching.is_set():
                left.append(tmp_path / f"left-{len(left)}")
                watching.clear()
                shutil.copytree(toy.run, left[-1], ignore=shutil.ignore_patterns(".partial-0*"))  # of leases
                watching.set()
            return change(*args, **kwargs)

        return changed

    def watching_while(save: Callable[..., None], last: str) -> Callable[..., None]:
        def saved(folder: RunFolder, name: int | str, *args: Any) -> None:
            watching.set() if str(name).endswith(last) else watching.clear()
            save(folder, name, *args)
            watching.clear()

        return saved

    watching = threading.Event()
    with monkeypatch.context() as patched:
        for save in ("_save", "_save_best"):
            patched.setattr(RunFolder, save, watching_while(getattr(RunFolder, save), "10"))
        for change in ("fsync", "rename", "replace", "mkdir", "link", "unlink", "rmdir"):
            patched.setattr(os, change, watched(getattr(os, change)))
        train_worker(config, World(), driver=driver)
    assert len(left) > 20
    for folder in left:
        newest = newest_checkpoint(LocalStorage(folder / "checkpoints"), mend=False)
        assert newest is not None
        assert newest.name in ("step-0000000008", "step-0000000010")
        train_worker(config.model_copy(update={"run": str(folder)}), World(), driver=driver)
        here = replace(toy, run=str(folder), files=folder)
        assert here.model == undisturbed(1).model, folder
        assert here.metrics == undisturbed(1).metrics
        assert not [path for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
