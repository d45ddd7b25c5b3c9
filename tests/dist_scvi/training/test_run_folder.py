"""The folder of a run: what was saved is found again or missed aloud, and a run has ended when its model is whole."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from dist_scvi.config.schema import DataConfig, RunConfig
from dist_scvi.errors import LostLeaseError
from dist_scvi.metrics.metrics_file import read_metrics
from dist_scvi.metrics.run_record import is_finished, result_of
from dist_scvi.model import SCVI
from dist_scvi.network.model_files import load_history, load_model
from dist_scvi.storage.lease import Driver, claim, holder_of
from dist_scvi.storage.run_storage import LocalStorage
from dist_scvi.training import run_folder
from dist_scvi.training.checkpoint import checkpoint_files
from dist_scvi.training.run_folder import RunFolder, check_folder_is_free, open_run_for_writing
from dist_scvi.world import World

pytestmark = pytest.mark.timeout(60)
CONFIG = RunConfig(data=DataConfig(uri="/cells.zarr"))


@pytest.fixture
def place(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "run")


def row(step: int, kind: str = "train") -> dict[str, object]:
    losses = {"loss": 3.0, "elbo": 3.0, "reconstruction": 2.0, "kl": 1.0}
    return {"kind": kind, "step": step, "epoch": 0, "kl_weight": 1.0, "lr": 0.1, **losses}


def files(step: int) -> dict[str, bytes]:
    module = torch.nn.Linear(1, 1)
    state = {"epoch": 0, "step": step, "config": CONFIG.model_dump(mode="json"), "data": {}}
    return checkpoint_files(module, torch.optim.Adam(module.parameters()), state)


def saved_at(place: LocalStorage, *steps: int) -> None:
    with open_run_for_writing(place, World()) as (writer, _):
        assert writer is not None
        writer.begin(CONFIG, 0, ended=False)
        for step in steps:
            writer.log_row(row(step))
            writer.save(step, files(step), keep=5)


def test_a_run_goes_on_where_it_was_saved_and_others_may_write_it_afterwards(place: LocalStorage) -> None:
    saved_at(place, 3, 6)
    with open_run_for_writing(place, World()) as (writer, checkpoint):
        assert checkpoint is not None
        assert (checkpoint.name, checkpoint.state["step"]) == ("step-0000000006", 6)
        with pytest.raises(ValueError, match="one run has one writer"), open_run_for_writing(place, World()):
            pass
        assert writer is not None
        assert writer.begin(CONFIG, 3, ended=False).rows == [row(3)]
    holder = holder_of(place)
    assert holder is not None
    assert (holder.released, holder.saved_step, holder.number) == (True, 6, 2)


def test_checkpoints_that_are_gone_are_missed_unless_a_fresh_start_is_allowed(place: LocalStorage) -> None:
    saved_at(place, 3)
    shutil.rmtree(place.path / "checkpoints")
    message = r"run was saved at step 3 and has no checkpoint now: restore checkpoints from a copy, .* --allow-fresh$"
    with pytest.raises(ValueError, match=message), open_run_for_writing(place, World()):
        pass
    with open_run_for_writing(place, World(), fresh=True) as (_, checkpoint):
        assert checkpoint is None


def test_damaged_checkpoints_are_given_up_only_if_a_fresh_start_is_allowed(place: LocalStorage) -> None:
    saved_at(place, 3)
    (place.path / "checkpoints" / "step-0000000003" / "state.json").write_text("{}")
    with (
        pytest.raises(ValueError, match=r"no checkpoint in .* verifies \(1 damaged\)"),
        open_run_for_writing(place, World()),
    ):
        pass
    with open_run_for_writing(place, World(), fresh=True) as (_, checkpoint):
        assert checkpoint is None


def test_no_checkpoint_is_ahead_of_the_metrics(place: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(run_folder.MetricsLog, "sync", lambda _: order.append("metrics"))
    monkeypatch.setattr(run_folder, "write_checkpoint", lambda *_, **__: order.append("checkpoint"))
    saved_at(place, 3)
    assert order == ["metrics", "checkpoint"]


def test_a_save_that_fails_is_told_at_the_next_line_and_the_one_before_stands(
    place: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_at(place, 3)
    with open_run_for_writing(place, World()) as (writer, _):
        assert writer is not None
        writer.begin(CONFIG, 3, ended=False)
        with monkeypatch.context() as broken:
            broken.setattr(LocalStorage, "write_folder", _full)
            writer.save(6, files(6), keep=1)
            with pytest.raises(OSError, match="No space left on device"):
                writer.wait()
        with pytest.raises(OSError, match="No space left on device"):
            writer.log_row(row(7))
    with open_run_for_writing(place, World()) as (_, checkpoint):
        assert checkpoint is not None
        assert checkpoint.state["step"] == 3


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_writer_that_was_taken_over_writes_no_checkpoint_and_no_model(place: LocalStorage, model: SCVI) -> None:
    driver = Driver.this()
    writer = RunFolder(place, claim(place, driver))
    writer.begin(CONFIG, 0, ended=False)
    later = claim(place, driver)
    with pytest.raises(LostLeaseError):
        writer.finish(model.module, model.spec, epoch=1, step=4, ends="max_epochs")
    writer.save(3, files(3), keep=1)
    with pytest.raises(LostLeaseError):
        writer.wait()
    writer.close()
    assert not (place.path / "checkpoints").exists()
    assert not (place.path / "model").exists()
    later.check()
    later.release()


def test_a_run_has_ended_when_its_record_and_its_model_belong_together_and_are_whole(
    place: LocalStorage, model: SCVI
) -> None:
    with open_run_for_writing(place, World()) as (writer, _):
        assert writer is not None
        writer.begin(CONFIG, 0, ended=False)
        writer.log_row(row(4))
        writer.log_row(row(4, "epoch"))
        assert not is_finished(place)
        writer.finish(model.module, model.spec, epoch=1, step=4, ends="early_stopping")
    result = result_of(place)
    assert result is not None
    assert (result["step"], result["ended_by"], result["starts"]) == (4, "early_stopping", 1)
    assert load_model(place.path / "model")[1] == model.spec
    assert load_history(place.path / "model")[0]["elbo_train"]["data"] == [[3.0]]
    weights = place.path / "model" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert not is_finished(place)
    weights.write_bytes(whole)
    assert is_finished(place)
    (place.path / "RESULT.json").write_text("[]")
    assert not is_finished(place)


def test_a_run_that_goes_on_has_not_ended(place: LocalStorage, model: SCVI) -> None:
    with open_run_for_writing(place, World()) as (writer, _):
        assert writer is not None
        writer.begin(CONFIG, 0, ended=False)
        writer.finish(model.module, model.spec, epoch=1, step=4, ends="max_epochs")
    with open_run_for_writing(place, World()) as (writer, _):
        assert writer is not None
        writer.begin(CONFIG, 0, ended=True)
        assert is_finished(place)
        writer.begin(CONFIG, 0, ended=False)
    assert not is_finished(place)


def test_the_best_model_is_kept_with_the_one_before_it(place: LocalStorage, model: SCVI) -> None:
    with open_run_for_writing(place, World()) as (writer, _):
        assert writer is not None
        writer.begin(CONFIG, 0, ended=False)
        for step in (2, 4, 6):
            writer.save_best(step, model.module, model.spec, keep=1)
        writer.wait()
        assert place.names("checkpoints") == ["best-0000000004", "best-0000000006"]
        best = writer.best(4)
        for name, value in model.module.state_dict().items():
            assert torch.equal(best[name], value)
        with pytest.raises(
            ValueError, match=r"the best model so far, of step 2, cannot be read .*load_best=false --all"
        ):
            writer.best(2)


def test_metrics_are_told_to_who_looks_from_outside(place: LocalStorage) -> None:
    saved_at(place, 3)
    assert read_metrics(place) == [row(3)]
    holder = holder_of(place)
    assert holder is not None
    assert holder.row == row(3)
    json.dumps(holder.row)


def test_a_store_an_atlas_a_model_and_another_run_are_no_folders_for_a_run(tmp_path: Path) -> None:
    for mark in ("zarr.json", ".zgroup", "__group", "ATLAS.json", "MANIFEST.json"):
        folder = tmp_path / f"holds {mark}"
        folder.mkdir()
        check_folder_is_free(folder)
        (folder / mark).write_text("")
        with pytest.raises(ValueError, match=rf"is not free: it holds {re.escape(mark)} of a store"):
            check_folder_is_free(folder)
        with pytest.raises(ValueError, match=r"is in .*, which is not free"):
            check_folder_is_free(folder / "deep" / "run")
    saved_at(LocalStorage(tmp_path / "run"), 3)
    check_folder_is_free(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds metrics\.jsonl"):
        check_folder_is_free(tmp_path / "run" / "checkpoints")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: a run needs a folder"):
        check_folder_is_free(tmp_path / "file")
