"""Checkpoints: bit for bit what was saved, the newest good one, and only into the run they belong to."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from dist_scvi.config.load import parse_config
from dist_scvi.config.schema import RunConfig
from dist_scvi.loaders import CellData, open_data
from dist_scvi.storage.atomic_files import read_folder, write_folder
from dist_scvi.storage.run_storage import LocalStorage
from dist_scvi.training.checkpoint import (
    Checkpoint,
    check_same_run,
    checkpoint_files,
    fingerprint,
    newest_checkpoint,
    restore,
    write_checkpoint,
)

DATA = {"n_cells": 9, "batch": {"key": "donor", "categories": ["d0", "d1"]}}


def config_of(**sections: dict[str, Any]) -> RunConfig:
    return parse_config({"data": {"uri": "/cells.zarr"}} | sections)


def network(width: int = 5, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    return module, torch.optim.Adam(module.parameters(), lr=0.1, fused=True)


def take_steps(module: nn.Module, optimizer: torch.optim.Optimizer, n_steps: int = 3) -> None:
    for step in range(n_steps):
        optimizer.zero_grad()
        module(torch.arange(12.0).reshape(4, 3).add(step).sin()).square().sum().backward()
        optimizer.step()


def save(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, keep: int = 2) -> None:
    config = config_of(train={"keep_checkpoints": keep}).model_dump(mode="json")
    state = {"epoch": step // 10, "step": step % 10, "config": config, "data": DATA}
    write_checkpoint(LocalStorage(folder), step, checkpoint_files(module, optimizer, state), keep=keep)


def newest(folder: Path) -> Checkpoint | None:
    return newest_checkpoint(LocalStorage(folder))


def everything(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[bytes]:
    moments = [
        value for _, slots in sorted(optimizer.state_dict()["state"].items()) for _, value in sorted(slots.items())
    ]
    return [value.numpy().tobytes() for value in [*module.state_dict().values(), *moments]]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Three checkpoints, of steps 5, 7 and 12."""
    module, optimizer = network()
    for step in (5, 7, 12):
        take_steps(module, optimizer)
        save(tmp_path, module, optimizer, step, keep=3)
    return tmp_path


def test_a_restored_run_is_bit_for_bit_the_saved_one(tmp_path: Path) -> None:
    module, optimizer = network()
    take_steps(module, optimizer)
    save(tmp_path, module, optimizer, 23)
    again, its_optimizer = network(seed=1)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    restore(checkpoint, again, its_optimizer)
    assert (checkpoint.state["epoch"], checkpoint.state["step"]) == (2, 3)
    for _ in range(2):
        assert everything(again, its_optimizer) == everything(module, optimizer)
        take_steps(module, optimizer)
        take_steps(again, its_optimizer)


def test_there_is_none_before_the_first(tmp_path: Path) -> None:
    assert newest(tmp_path / "checkpoints") is None


def test_the_newest_is_taken(saved: Path) -> None:
    checkpoint = newest(saved)
    assert checkpoint is not None
    assert (checkpoint.name, checkpoint.state["epoch"], checkpoint.state["step"]) == ("step-0000000012", 1, 2)


def test_only_the_newest_are_kept(saved: Path) -> None:
    save(saved, *network(), 13, keep=2)
    assert sorted(path.name for path in saved.iterdir()) == ["step-0000000012", "step-0000000013"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(
    saved: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (saved / "step-0000000012" / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        checkpoint = newest(saved)
    assert checkpoint is not None
    assert checkpoint.name == "step-0000000007"
    assert "set aside" in caplog.text
    assert name in caplog.text
    assert sorted(path.name for path in saved.iterdir()) == [
        "damaged-step-0000000012",
        "step-0000000005",
        "step-0000000007",
    ]


def test_a_half_written_one_is_passed_over(saved: Path) -> None:
    (saved / ".partial-step-0000000014").mkdir()
    checkpoint = newest(saved)
    assert checkpoint is not None
    assert checkpoint.name == "step-0000000012"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_afresh(saved: Path) -> None:
    for path in saved.iterdir():
        (path / "state.json").unlink()
    for _ in range(2):  # also once they are set aside
        with pytest.raises(ValueError, match=r"^no checkpoint in .* verifies \(3 damaged\): restore one from a copy"):
            newest(saved)


def test_a_pickle_is_refused_and_nothing_is_executed(saved: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (saved / "executed",)

    path = saved / "step-0000000012"
    write_folder(path, read_folder(path) | {"model.safetensors": pickle.dumps(Bomb())})
    checkpoint = newest(saved)
    assert checkpoint is not None
    assert checkpoint.name == "step-0000000007"
    assert not (saved / "executed").exists()


def test_a_file_that_verifies_but_is_lacking_is_as_bad_as_damage(saved: Path) -> None:
    path = saved / "step-0000000012"
    files = read_folder(path)
    write_folder(path, {"state.json": files["state.json"]})
    checkpoint = newest(saved)
    assert checkpoint is not None
    assert checkpoint.name == "step-0000000007"


def test_another_model_is_refused_before_anything_is_installed(saved: Path) -> None:
    module, optimizer = network(width=6)
    before = everything(module, optimizer)
    checkpoint = newest(saved)
    assert checkpoint is not None
    with pytest.raises(ValueError, match=r"step-0000000012 holds another model: 0\.bias, 0\.weight, .* differ"):
        restore(checkpoint, module, optimizer)
    assert everything(module, optimizer) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight/exp_avg": torch.zeros(2)}, r"optimizer state 0\.weight/exp_avg of shape \(2,\): no such weight"),
        ({"9.weight/exp_avg": torch.zeros(2)}, r"optimizer state 9\.weight/exp_avg of shape \(2,\): no such weight"),
        ({"0.bias/step": None, "0.bias/exp_avg": None, "0.bias/exp_avg_sq": None}, r"lacks .* state of 0\.bias$"),
    ],
)
def test_another_optimizer_state_is_refused_before_anything_is_installed(
    saved: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    path = saved / "step-0000000012"
    files = read_folder(path)
    moments = safetensors.torch.load(files["optimizer.safetensors"]) | change
    kept = {name: value for name, value in moments.items() if value is not None}
    write_folder(path, files | {"optimizer.safetensors": safetensors.torch.save(kept)})
    module, optimizer = network(seed=1)
    before = everything(module, optimizer)
    checkpoint = newest(saved)
    assert checkpoint is not None
    with pytest.raises(ValueError, match=message):
        restore(checkpoint, module, optimizer)
    assert everything(module, optimizer) == before


def test_another_run_is_refused_with_every_difference(saved: Path) -> None:
    checkpoint = newest(saved)
    assert checkpoint is not None
    config = config_of(train={"keep_checkpoints": 3, "lr": 0.5}, model={"n_latent": 4})
    data = {"n_cells": 8, "batch": {"key": "donor", "categories": ["d0", "d2"]}}
    with pytest.raises(ValueError, match="belongs to another run") as refused:
        check_same_run(checkpoint, config, data)
    for difference in (
        "data.batch.categories was ['d0', 'd1'], is ['d0', 'd2']",
        "data.n_cells was 9, is 8",
        "model.n_latent was 10, is 4",
        "train.lr was 0.001, is 0.5",
    ):
        assert difference in str(refused.value)


def test_keys_that_change_no_number_may_change(saved: Path) -> None:
    checkpoint = newest(saved)
    assert checkpoint is not None
    free = {"max_epochs": 9, "save_every_n_steps": 3, "keep_checkpoints": 7, "log_every_n_steps": 2}
    where = {"uri": "/elsewhere.zarr", "memory_mib": 64, "timeout_s": 5}
    config = config_of(train=free | {"check_val_every_n_epoch": 4, "collective_timeout_s": 3}, data=where)
    check_same_run(checkpoint, config.model_copy(update={"run": "/other"}), DATA)


def test_when_the_learning_rate_depends_on_validations_these_may_not_change(saved: Path) -> None:
    module, optimizer = network()
    config = config_of(train={"reduce_lr_on_plateau": True}).model_dump(mode="json")
    state = {"epoch": 2, "step": 0, "config": config, "data": DATA}
    write_checkpoint(LocalStorage(saved), 20, checkpoint_files(module, optimizer, state), keep=1)
    checkpoint = newest(saved)
    assert checkpoint is not None
    check_same_run(checkpoint, config_of(train={"reduce_lr_on_plateau": True, "early_stopping": True}), DATA)
    with pytest.raises(ValueError, match=r"train\.check_val_every_n_epoch was 1, is 2"):
        check_same_run(checkpoint, config_of(train={"reduce_lr_on_plateau": True, "check_val_every_n_epoch": 2}), DATA)


def test_what_else_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    module, optimizer = network()
    kept = {"schedule": {"lr": 0.1 * 0.6, "best": None}, "epoch_sums": [1 / 3, 2e300]}
    state = {"epoch": 0, "step": 3, "config": config_of().model_dump(mode="json"), "data": DATA, **kept}
    write_checkpoint(LocalStorage(tmp_path), 3, checkpoint_files(module, optimizer, state), keep=1)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.state["schedule"] == kept["schedule"]
    assert checkpoint.state["epoch_sums"] == kept["epoch_sums"]


def test_the_best_model_is_not_taken_for_a_checkpoint(saved: Path) -> None:
    write_folder(saved / "best", {"weights.safetensors": b""})
    save(saved, *network(), 13, keep=1)
    assert sorted(path.name for path in saved.iterdir()) == ["best", "step-0000000013"]


def test_the_fingerprint_tells_genes_columns_and_categories_apart(adata: Any, data: CellData) -> None:
    here = fingerprint(data)
    assert (here["n_genes"], here["n_cells"], here["batch"]["categories"]) == (50, 403, ["b0", "b1"])
    assert fingerprint(open_data(adata[:, ::-1].copy()))["var_names_sha256"] != here["var_names_sha256"]
    assert fingerprint(open_data(adata, batch_key="site"))["batch"] != here["batch"]


@pytest.mark.parametrize(
    "state", [b"[]", b"{}", b'{"epoch": "1", "step": 0, "config": {}, "data": {}}', b"[" * 100_000]
)
def test_a_state_that_makes_no_sense_is_set_aside(saved: Path, state: bytes) -> None:
    path = max(saved.glob("step-*"))
    write_folder(path, read_folder(path) | {"state.json": state})
    checkpoint = newest(saved)
    assert checkpoint is not None
    assert checkpoint.name < path.name
    assert (saved / f"damaged-{path.name}").exists()


def test_differences_that_are_named_are_allowed_and_the_others_are_not(saved: Path) -> None:
    checkpoint = newest(saved)
    assert checkpoint is not None
    config = config_of(train={"keep_checkpoints": 3, "lr": 0.5, "batch_size": 64})
    with pytest.raises(ValueError, match=r"train\.batch_size was 1024, is 64; undo the change") as refused:
        check_same_run(checkpoint, config, DATA, allowed=["train.lr"])
    assert "--allow" not in str(refused.value)
    config = config_of(train={"lr": 0.5, "weight_decay": 0.0})
    with pytest.raises(ValueError, match=r"allow it with --allow train\.lr,train\.weight_decay, or train into"):
        check_same_run(checkpoint, config, DATA)
    check_same_run(checkpoint, config, DATA, allowed=["train.lr", "train.weight_decay"])
    with pytest.raises(ValueError, match=r"^train\.batch_size cannot be allowed to change in a run: train\.lr, "):
        check_same_run(checkpoint, config, DATA, allowed=["train.batch_size"])


def test_another_minor_version_is_warned_about_unless_versions_are_strict(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved / "step-0000000012"
    files = read_folder(path)
    state = json.loads(files["state.json"])
    state["versions"] |= {"torch": "2.0.0", "numpy": "2.99.1"}
    del state["config"]["train"]["strict_versions"]  # of a version that does not know the key
    write_folder(path, files | {"state.json": json.dumps(state).encode()})
    checkpoint = newest(saved)
    assert checkpoint is not None
    check_same_run(checkpoint, config_of(), DATA)
    assert "step-0000000012 was written with torch 2.0.0, this is " in caplog.text
    assert "written with numpy 2.99.1" in caplog.text
    strict = config_of(train={"strict_versions": True})
    with pytest.raises(ValueError, match=r"versions\.numpy was '2\.99\.1', is .*; versions\.torch was"):
        check_same_run(checkpoint, strict, DATA)


def test_other_versions_of_packages_are_refused_unless_named(saved: Path) -> None:
    path = saved / "step-0000000012"
    files = read_folder(path)
    state = json.loads(files["state.json"])
    assert state["versions"]["torch"] == torch.__version__
    state["versions"]["torch"] = "1.13.0"
    write_folder(path, files | {"state.json": json.dumps(state).encode()})
    checkpoint = newest(saved)
    assert checkpoint is not None
    with pytest.raises(ValueError, match=r"versions\.torch was '1\.13\.0', is '.*--allow versions\.torch"):
        check_same_run(checkpoint, config_of(), DATA)
    check_same_run(checkpoint, config_of(), DATA, allowed=["versions.torch"])


def test_who_does_not_write_the_run_sets_nothing_aside(saved: Path) -> None:
    (saved / "step-0000000012" / "state.json").unlink()
    checkpoint = newest_checkpoint(LocalStorage(saved), mend=False)
    assert checkpoint is not None
    assert checkpoint.name == "step-0000000007"
    assert (saved / "step-0000000012").exists()


def test_one_without_a_manifest_is_set_aside_as_incomplete_and_is_no_lost_run(saved: Path) -> None:
    for path in saved.glob("step-*"):
        (path / "MANIFEST.json").unlink()
    for _ in range(2):
        assert newest(saved) is None
    assert len(list(saved.glob("incomplete-step-*"))) == 3
