"""Training: the same on disk and in memory, resumable anywhere, every cell once, nothing saved after a bad loss."""

import json
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
import yaml
from scipy import sparse

from dist_scvi.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from dist_scvi.loaders import open_data
from dist_scvi.loaders.reader_threads import reader_threads
from dist_scvi.metrics.metrics_file import Row
from dist_scvi.network.vae import VAE
from dist_scvi.training.evaluate import evaluate
from dist_scvi.training.resolve import resolve
from dist_scvi.training.step import Step, take_step
from dist_scvi.training.train import Trained, train
from dist_scvi.world import World
from tests.loaders.order.lane_rows import minibatch_rows


class Stopped(Exception):  # noqa: N818
    """Stands for the end of the process."""


def config_of(store: Path, **train_options: object) -> RunConfig:
    options = {"max_epochs": 3, "batch_size": 64, "lanes": 4, "micro_cells": 16, "log_every_n_steps": 1}
    return RunConfig(
        data=DataConfig(uri=str(store), batch_key="batch"),
        train=TrainConfig.model_validate(options | {"save_every_n_steps": 2} | train_options),
    )


def stop_at(step: int) -> object:
    def on_metrics(row: Row) -> None:
        if row["step"] == step:
            raise Stopped

    return on_metrics


def weights(trained: Trained) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trained.module.state_dict().items()}


def told(path: Path) -> list[dict[str, object]]:
    """The metrics of a run without what a clock or the machine says."""
    noisy = {"cells_per_s", "steps_per_s", "wait_share", "memory_mib", "crc32"}
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in noisy} for row in rows]


def test_an_anndata_in_memory_and_the_store_give_the_same_losses(store: Path, adata: ad.AnnData) -> None:
    config = config_of(store)
    on_disk = train(config)
    in_memory = train(config, data=open_data(adata, batch_key="batch"))
    assert [row["elbo"] for row in on_disk.history] == [row["elbo"] for row in in_memory.history]
    assert weights(on_disk) == weights(in_memory)


def test_readers_leave_the_processors_that_compute_alone_while_training(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    seen: set[int] = set()
    train(config_of(store, max_epochs=1), on_metrics=lambda _: seen.add(reader_threads()))
    assert (seen, reader_threads()) == ({6 - torch.get_num_threads()}, 6)


def test_the_loss_falls(store: Path) -> None:
    history = [row for row in train(config_of(store, max_epochs=20)).history if row["kind"] == "validation"]
    assert history[-1]["elbo"] < 0.9 * history[0]["elbo"]


@pytest.mark.parametrize(
    ("step", "kernels"), [(1, "torch"), (2, "torch"), (5, "torch"), (6, "torch"), (7, "compiled"), (17, "compiled")]
)
def test_a_run_stopped_at_any_step_ends_at_the_weights_of_one_that_was_not(
    store: Path, tmp_path: Path, step: int, kernels: str
) -> None:
    config = config_of(store, kernels=kernels)
    whole = train(config, folder=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, folder=tmp_path / "stopped", on_metrics=stop_at(step))
    resumed = train(config, folder=tmp_path / "stopped")
    assert weights(resumed) == weights(whole)
    assert told(tmp_path / "stopped") == told(tmp_path / "whole")


def test_a_step_trains_on_the_cells_of_the_plan(store: Path) -> None:
    config = config_of(store, max_epochs=2)
    data = open_data(store, batch_key="batch")
    _, plan = resolve(config, data)
    rows = [row for row in train(config).history if row["kind"] == "train"]
    assert len(rows) == 2 * plan.steps_per_epoch
    for row in rows:
        step = row["step"] - 1 - row["epoch"] * plan.steps_per_epoch
        cells = np.concatenate([minibatch_rows(plan, row["epoch"], step, lane) for lane in range(plan.lanes)])
        assert row["cells"] == len(cells)
        _, columns = data.read([(0, data.n_cells)], cells, hashed=True)
        assert row["cells_hash"] == int((columns.hash_n >> np.uint64(40)).sum())


def test_a_run_ends_after_max_steps_and_goes_on_from_there(store: Path, tmp_path: Path) -> None:
    fixed = {"n_steps_kl_warmup": 5}
    whole = train(config_of(store, **fixed), folder=tmp_path / "whole")
    short = train(config_of(store, max_steps=8, **fixed), folder=tmp_path / "cut")
    assert [row["step"] for row in short.history if row["kind"] == "train"][-1] == 8
    assert json.loads((tmp_path / "cut" / "RESULT.json").read_text())["ended_by"] == "max_steps"
    with pytest.raises(ValueError, match=r"is already at step 8, beyond max_steps=7: raise train\.max_steps"):
        train(config_of(store, max_steps=7, **fixed), folder=tmp_path / "cut")
    resumed = train(config_of(store, **fixed), folder=tmp_path / "cut")
    assert weights(resumed) == weights(whole)


def test_a_longer_run_goes_on_from_the_end_of_a_shorter_one(store: Path, tmp_path: Path) -> None:
    warmup = {"n_steps_kl_warmup": 5}
    whole = train(config_of(store, max_epochs=4, **warmup))
    train(config_of(store, max_epochs=2, **warmup), folder=tmp_path)
    assert weights(train(config_of(store, max_epochs=4, **warmup), folder=tmp_path)) == weights(whole)


def test_the_record_of_a_run_leaves_nothing_to_defaults(store: Path, tmp_path: Path) -> None:
    train(config_of(store), folder=tmp_path)
    recorded = RunConfig.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text()))
    assert recorded.train.n_steps_kl_warmup == 6
    assert recorded.train.validation_size == 0.1
    assert recorded.data.block_cells is not None
    assert recorded.data.window_cells is not None


def test_a_damaged_checkpoint_costs_one_interval_and_not_the_run(store: Path, tmp_path: Path) -> None:
    config = config_of(store)
    whole = train(config)
    with pytest.raises(Stopped):
        train(config, folder=tmp_path, on_metrics=stop_at(7))
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1] / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert weights(train(config, folder=tmp_path)) == weights(whole)
    assert len(list((tmp_path / "checkpoints").glob("damaged-*"))) == 1


def test_a_changed_configuration_is_refused_key_by_key(store: Path, tmp_path: Path) -> None:
    train(config_of(store, max_epochs=1), folder=tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another run: train\.lr was 0\.001, is 0\.01"):
        train(config_of(store, max_epochs=1, lr=0.01), folder=tmp_path)


def test_changed_data_is_refused(store: Path, adata: ad.AnnData, tmp_path: Path) -> None:
    config = config_of(store, max_epochs=1)
    train(config, folder=tmp_path)
    fewer = open_data(adata[:400].copy(), batch_key="batch")
    with pytest.raises(ValueError, match=r"data\.n_cells was 403, is 400"):
        train(config, data=fewer, folder=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(store: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"the loss became .* in step \d+ of epoch 1, at 64 of 64 cells"):
        train(config_of(store, lr=1e30, log_every_n_steps=100, save_every_n_steps=100), folder=tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_the_cells_at_which_the_loss_was_not_finite_are_named_and_the_checkpoints_before_kept(
    adata: ad.AnnData, tmp_path: Path
) -> None:
    extreme = adata.copy()
    config, data = config_of(Path("memory")), open_data(adata, batch_key="batch")
    _, plan = resolve(config, data)
    third = np.concatenate([minibatch_rows(plan, 0, 2, lane) for lane in range(plan.lanes)])
    rows = np.sort(third[[5, 20, 50]])
    extreme.obs["factor"] = np.where(np.isin(np.arange(403), rows), 3e38, 1.0)
    data = open_data(extreme, batch_key="batch", size_factor_key="factor")
    config = config.model_copy(update={"model": ModelConfig(gene_likelihood="poisson")})
    with pytest.raises(FloatingPointError) as stopped:
        train(config, data=data, folder=tmp_path)
    listed = ", ".join(map(str, rows))
    assert f"the loss became nan in step 3 of epoch 1, at 3 of 64 cells (rows {listed}): lower" in str(stopped.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000000002"]


def test_weights_that_are_not_finite_are_not_saved_even_where_the_loss_is(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: object, module: VAE, *args: object, **options: object) -> Step:
        step = take_step(model, module, *args, **options)
        if step.step == 3:
            module.px_r.data[5] = float("nan")
        return step

    monkeypatch.setattr("dist_scvi.training.train.take_step", spoil)
    with pytest.raises(FloatingPointError, match=r"step 4 left weights that are not finite \(px_r\)"):
        train(config_of(store), folder=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000000002"]


def test_counts_that_turn_out_bad_leave_no_run_behind(adata: ad.AnnData, tmp_path: Path) -> None:
    bad = adata.copy()
    bad.X = sparse.csr_matrix(bad.X)
    bad.X.data[:] += 0.5
    bad.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(ValueError, match=r"X of .*bad\.h5ad holds .* at row 0, gene .*: SCVI needs raw counts"):
        train(config_of(tmp_path / "bad.h5ad"), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cell_without_counts_trains_with_every_likelihood(adata: ad.AnnData) -> None:
    empty = adata.copy()
    empty.X = sparse.csr_matrix(np.vstack([np.zeros((1, adata.n_vars)), adata.X[1:].toarray()]))
    for likelihood in ("zinb", "nb", "poisson"):
        config = config_of(Path("memory"), max_epochs=1, train_size=1.0)
        config = config.model_copy(update={"model": config.model.model_copy(update={"gene_likelihood": likelihood})})
        trained = train(config, data=open_data(empty, batch_key="batch"))
        assert all(torch.isfinite(value).all() for value in trained.module.state_dict().values())


def test_validation_is_the_mean_over_the_held_out_cells_whatever_the_chunks(store: Path) -> None:
    trained = train(config_of(store, max_epochs=1))
    _, plan = resolve(trained.config, trained.data)
    answer = evaluate(trained.module, trained.data, plan, "validation", World(), trained.config)
    assert answer["cells"] == plan.split_cells("validation")
    assert answer["elbo"] == pytest.approx(trained.history[-1]["elbo"], rel=1e-12)


def test_a_run_that_is_past_the_epochs_asked_for_is_not_passed_off_as_shorter(store: Path, tmp_path: Path) -> None:
    warmup = {"n_steps_kl_warmup": 5}
    train(config_of(store, max_epochs=3, **warmup), folder=tmp_path)
    with pytest.raises(ValueError, match=r"is already in epoch 3, beyond max_epochs=2: raise train\.max_epochs"):
        train(config_of(store, max_epochs=2, **warmup), folder=tmp_path)


DRAWN = DataConfig(uri="", batch_key="batch", holdout_key="site", weight_key="weight", balance_key="label")


def drawn(config: RunConfig, store: Path) -> RunConfig:
    return config.model_copy(update={"data": DRAWN.model_copy(update={"uri": str(store)})})


@pytest.fixture(scope="module")
def weighted(adata: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weighted") / "cells.h5ad"
    adata = adata.copy()
    adata.obs["weight"] = np.arange(adata.n_obs) % 4 / 2
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize("step", [1, 8])
def test_a_run_whose_cells_are_drawn_by_columns_goes_on_as_if_it_had_not_stopped(
    weighted: Path, tmp_path: Path, step: int
) -> None:
    config = drawn(config_of(weighted), weighted)
    whole = train(config, folder=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, folder=tmp_path / "cut", on_metrics=stop_at(step))
    assert weights(train(config, folder=tmp_path / "cut")) == weights(whole)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")


def test_other_weights_of_the_same_cells_are_refused_on_resume(weighted: Path, tmp_path: Path) -> None:
    config = drawn(config_of(weighted), weighted)
    with pytest.raises(Stopped):
        train(config, folder=tmp_path / "run", on_metrics=stop_at(4))
    changed = ad.read_h5ad(weighted)
    changed.obs["weight"] = changed.obs["weight"].to_numpy()[::-1].copy()
    changed.write_h5ad(tmp_path / "changed.h5ad")
    with pytest.raises(ValueError, match=r"belongs to another run: data\.drawn was"):
        train(drawn(config, tmp_path / "changed.h5ad"), folder=tmp_path / "run")
