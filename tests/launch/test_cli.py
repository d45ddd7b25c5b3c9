"""The command line: the whole way in five commands, and a user's mistake told in one line with its exit code."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from dist_scvi.launch.cli import main
from dist_scvi.metrics.metrics_file import read_metrics
from dist_scvi.storage.lease import Driver, claim
from dist_scvi.storage.run_storage import LocalStorage


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture
def short(run_yaml: Path) -> Path:
    config = yaml.safe_load(run_yaml.read_text())
    config["train"]["max_epochs"] = 1
    run_yaml.write_text(yaml.safe_dump(config))
    return run_yaml


def test_the_whole_way_from_simulated_counts_to_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, folder = tmp_path / "atlas.zarr", tmp_path / "run"
    assert run("simulate", store, "--cells", 600, "--genes", 60, "--seed", 3) == 0
    assert run("inspect", store, "--batch-key", "batch", "--labels-key", "cell_type", "--json") == 0
    settings = ["train.max_epochs=2", "train.batch_size=64", "train.lanes=2", "data.labels_key=cell_type"]
    assert run("train", f"data.uri={store}", f"run={folder}", "data.batch_key=batch", *settings) == 0
    assert run("minify", folder, "--obs-columns", "donor") == 0
    capsys.readouterr()
    assert run("query", folder / "atlas", "expression", "--genes", "gene0001,gene0007", "--by", "cell_type") == 0
    table = pd.read_csv(pd.io.common.StringIO(capsys.readouterr().out), index_col=0)
    assert list(table.columns) == ["n_cells", "gene0001", "gene0007"]
    assert table["n_cells"].sum() == 600
    assert run("query", folder / "atlas", "latent", "--where", "batch=batch01", "--out", tmp_path / "z.csv") == 0
    assert pd.read_csv(tmp_path / "z.csv", index_col=0).shape[1] == 10
    assert "donor" in ad.read_zarr(folder / "atlas" / "cells.zarr").obs


def test_a_run_says_at_the_start_whether_later_batches_can_be_mapped(
    short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", short, "--dry-run") == 0
    assert "unfit for mapping: encode_covariates=False" in capsys.readouterr().out
    assert run("train", short, "--dry-run", "--reference") == 0
    assert "fit for mapping later batches" in capsys.readouterr().out
    assert run("train", short, "--dry-run", "--reference", "model.encode_covariates=false") == 0
    assert "unfit for mapping" in capsys.readouterr().out


def test_a_dry_run_says_what_it_would_do_and_does_nothing(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", short, "--dry-run", "--workers", 2) == 0
    said = capsys.readouterr().out
    for words in ("cells  1501", "genes  40", "steps  21 of 64 cells", "2 for each of 2 workers", "memory for cells"):
        assert words in said
    assert not (short.parent / "run").exists()


def test_training_again_changes_nothing_and_resuming_goes_further(short: Path) -> None:
    folder = short.parent / "run"
    assert run("train", short) == 0
    model = (folder / "model" / "weights.safetensors").read_bytes()
    assert run("train", short) == 0
    assert (folder / "model" / "weights.safetensors").read_bytes() == model
    assert run("resume", folder, "train.max_epochs=2") == 0
    assert (folder / "model" / "weights.safetensors").read_bytes() != model
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 42


def test_a_run_that_is_told_to_end_saves_says_start_again_and_goes_on(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = short.parent / "whole"
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run("train", short, f"run={whole}", "train.max_epochs=9") == 0
    command = [sys.executable, "-m", "dist_scvi.launch.cli", "train", str(short), "train.max_epochs=9"]
    place = LocalStorage(short.parent / "run")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        steps = len(read_metrics(place))
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        deadline = time.monotonic() + 60
        while len(read_metrics(place)) < steps + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75, said
        assert "all of it is saved; start the same command again to continue" in said
        assert run("status", place.uri, "--exit-code") == 75
        last = max(int(name[-10:]) for name in place.names("checkpoints") if name.startswith("step-"))
        assert f"after step {last} of 189" in said
    assert run("train", short, "train.max_epochs=9") == 0
    assert run("status", place.uri, "--exit-code") == 0
    models = [(folder / "model" / "weights.safetensors").read_bytes() for folder in (whole, place.path)]
    assert models[0] == models[1]
    steps = [(row["step"], row["kind"], row["elbo"]) for row in read_metrics(place)]
    assert steps == [(row["step"], row["kind"], row["elbo"]) for row in read_metrics(LocalStorage(whole))]


def test_a_second_driver_is_refused_while_the_first_runs(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lease = claim(LocalStorage(short.parent / "run"), Driver.this())
    assert run("train", short) == 2
    assert "one run has one writer" in capsys.readouterr().err
    lease.release()
    assert run("train", short) == 0


def test_the_status_of_a_run_is_told_in_lines_or_as_json(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = short.parent / "run"
    assert run("status", folder) == 2
    assert run("train", short) == 0
    capsys.readouterr()
    assert run("status", folder) == 0
    assert "step 21 of 21, epoch 1 of 1" in capsys.readouterr().out
    assert run("status", folder, "--json", "--exit-code") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "finished"


def test_what_may_differ_on_resume_must_be_named(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = short.parent / "run"
    assert run("train", short, "train.n_steps_kl_warmup=5") == 0
    further = ["resume", folder, "train.max_epochs=2", "train.lr=0.002"]
    assert run(*further) == 2
    assert "train.lr was 0.001, is 0.002; undo the change" in capsys.readouterr().err
    assert run(*further, "--dry-run") == 2
    assert run(*further, "--allow", "train.lr") == 0
    rates = {row["lr"] for row in read_metrics(LocalStorage(folder)) if row["kind"] == "epoch"}
    assert rates == {0.001, 0.002}


def test_a_run_whose_checkpoints_are_gone_begins_anew_only_if_that_is_allowed(
    short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", short) == 0
    shutil.rmtree(short.parent / "run" / "checkpoints")
    assert run("train", short) == 2
    assert "was saved at step 21 and has no checkpoint now" in capsys.readouterr().err
    assert run("train", short, "--allow-fresh") == 0


def test_a_file_for_a_cluster_is_printed_or_written(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = ["run=s3://bucket/run", "data.uri=s3://bucket/cells.zarr", "train.max_epochs=7"]
    arguments = ["launch", "slurm", short, *far, "--workers", "1:2", "--time", "24:00:00"]
    assert run(*arguments, "--name", "atlas") == 0
    said = capsys.readouterr().out
    assert "#SBATCH --job-name=atlas" in said
    assert "train.max_epochs=7" in said
    assert run(*arguments, "--out", short.parent / "job.sh") == 0
    assert "#SBATCH --requeue" in (short.parent / "job.sh").read_text()
    assert run("launch", "slurm", short, "--workers", "0") == 2


@pytest.mark.parametrize(
    ("workers", "said"), [("2:1", "the smaller number comes first"), ("1:x", "a whole number from 1 on is needed")]
)
def test_a_range_of_workers_that_makes_no_sense_is_refused(
    short: Path, workers: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", short, "--dry-run", "--workers", workers) == 2
    assert said in capsys.readouterr().err


def test_of_a_range_as_many_workers_as_share_the_lanes_are_used(
    short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", short, "--dry-run", "--workers", "1:3") == 0
    assert "2 for each of 2 workers" in capsys.readouterr().out
    assert run("train", short, "--dry-run", "--workers", "3:3") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "there is no configuration file nowhere.yaml"),
        (["train", "data.uri=nowhere.zarr"], "nowhere.zarr does not exist"),
        (["train", "train.lr=1"], "data.uri is needed"),
        (["train", "data.uri=x", "train.max_epoch=3"], "there is no key train.max_epoch: did you mean max_epochs"),
        (["train", "a.yaml", "b.yaml"], "one configuration file is needed"),
        (["resume", "nowhere"], "nowhere is not a run"),
        (["minify", "nowhere"], "nowhere is not a run"),
        (["query", "nowhere", "latent"], "there is no minified atlas"),
        (["inspect", "ftp://host/atlas.zarr"], "a URL of s3, gs, http"),
        (["inspect", "nowhere.h5ad"], "nowhere.h5ad does not exist"),
        (["train", "data.uri=nowhere", "train.lr={"], "the value of 'train.lr' is not valid YAML"),
        (["train", "data.uri=nowhere", "--dry-run", "train.max_epochs=0"], "train.max_epochs=0 does not fit"),
        (["train", "data.uri=nowhere", "train.lr=.inf"], "train.lr=inf does not fit"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("dist-scvi: error: ")
    assert said.count("\n") == 1


def test_a_missing_column_is_refused_before_any_worker_starts(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", short, "data.batch_key=bach", "--workers", 2) == 2
    assert "no obs column 'bach': did you mean 'batch'?" in capsys.readouterr().err
    assert not (short.parent / "run").exists()


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--workers", "-1"], ["--cpus-per-worker", "0"], ["--odd"]])
def test_numbers_of_workers_that_make_no_sense_are_refused(
    short: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", short, "--dry-run", *arguments) == 2
    said = capsys.readouterr().err
    assert "a whole number from 1 on is needed" in said or "unrecognized arguments: --odd" in said


def test_workers_that_do_not_divide_the_lanes_are_refused(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", short, "--workers", 3) == 2
    assert "3 workers cannot share 4 lanes evenly: use 1, 2, 4" in capsys.readouterr().err


def test_an_atlas_is_not_overwritten_unless_asked(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = short.parent / "run"
    assert run("train", short) == 0
    assert run("minify", folder) == 0
    assert run("minify", folder, "--leaf-columns", "donor") == 2
    assert "allow it to be replaced" in capsys.readouterr().err
    assert run("minify", folder, "--overwrite") == 0


def test_minifying_again_what_is_minified_does_nothing_unless_the_run_went_on(
    short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = short.parent / "run"
    assert run("train", short) == 0
    assert run("minify", folder) == 0
    written_ns = (folder / "atlas" / "ATLAS.json").stat().st_mtime_ns
    capsys.readouterr()
    assert run("minify", folder) == 0
    assert "is there already, whole and of this run" in capsys.readouterr().out
    assert (folder / "atlas" / "ATLAS.json").stat().st_mtime_ns == written_ns
    assert run("resume", folder, "train.max_epochs=2") == 0
    assert run("minify", folder) == 2


def test_an_answer_does_not_change_when_it_is_asked_again(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = short.parent / "run"
    run("train", short)
    run("minify", folder)
    answers = []
    for _ in range(2):
        capsys.readouterr()
        run("query", folder / "atlas", "expression", "--genes", "gene3", "--cells", "cell9,cell2", "--n-samples", 4)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert [line.split(",")[0] for line in answers[0].splitlines()] == ["cell", "cell9", "cell2"]
    assert np.isfinite(float(answers[0].splitlines()[1].split(",")[1]))


def test_genes_that_only_some_stores_have_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = tmp_path / "few.zarr", tmp_path / "many.zarr"
    assert run("simulate", few, "--cells", 50, "--genes", 20) == 0
    assert run("simulate", many, "--cells", 50, "--genes", 30) == 0
    capsys.readouterr()
    assert run("inspect", few, many) == 0
    assert "many.zarr: 10 of 30 genes are left out" in capsys.readouterr().err
    assert run("pack", few, many, tmp_path / "packed.zarr", "--join", "outer") == 0
    assert "few.zarr: 10 genes are lacking and count as 0" in capsys.readouterr().err
    assert run("train", f"data.uri=[{few}, {many}]", f"run={tmp_path / 'run'}", "--dry-run") == 0
    assert "many.zarr: 10 of 30 genes are left out" in capsys.readouterr().out


def test_stores_that_have_a_source_column_are_packed_with_another_or_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for path in paths:
        obs = pd.DataFrame({"source": ["biopsy"] * 30}, index=[f"{path.stem}{row}" for row in range(30)])
        ad.AnnData(np.ones((30, 4), np.float32), obs=obs).write_h5ad(path)
    assert run("pack", *paths, tmp_path / "p.zarr") == 2
    assert "--source-key NAME" in capsys.readouterr().err
    for key, columns in (("file", ["source", "file", "source_row"]), ("", ["source", "source_row"])):
        assert run("pack", *paths, tmp_path / f"p{key}.zarr", "--source-key", key) == 0
        assert list(ad.read_zarr(tmp_path / f"p{key}.zarr").obs) == columns
    assert run("inspect", *paths, "--source-key", "file") == 0
    assert "file: 2 categories, a.h5ad (30), b.h5ad (30)" in capsys.readouterr().out


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_a_command_works_with_a_standard_stream_closed_and_no_file_takes_its_number(
    closed: str, tmp_path: Path
) -> None:
    command = f"{sys.executable} -m dist_scvi.launch.cli simulate {tmp_path}/a.zarr --cells 50 --genes 5 {closed}"
    ended = subprocess.run(["bash", "-c", command], timeout=120, capture_output=True, check=False)
    assert ended.returncode == 0
    assert ad.read_zarr(tmp_path / "a.zarr").shape == (50, 5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("workers", [1, 2])
def test_gpus_that_are_not_there_are_refused_before_anything_starts(
    workers: int, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", short, "--workers", workers, "--gpus-per-worker", 1) == 2
    assert f"{workers} workers need {workers} GPUs and PyTorch finds 0 on this machine" in capsys.readouterr().err
    assert not (short.parent / "run").exists()


def test_the_keys_of_a_configuration_are_printed_and_near_ones_suggested(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("config", "--explain", "train.lr") == 0
    assert capsys.readouterr().out.startswith("train.lr: ")
    assert run("config", "--template") == 0
    assert "max_epochs" in yaml.safe_dump(capsys.readouterr().out)
    assert run("config", "--explain", "train.lrr") == 2
    assert "did you mean train.lr" in capsys.readouterr().err


def test_verify_reads_runs_models_checkpoints_and_atlases_and_names_what_is_damaged(
    short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = short.parent / "run"
    assert run("train", short) == 0
    assert run("minify", folder) == 0
    [checkpoint] = sorted(folder.glob("checkpoints/step-*"))[-1:]
    whole = {folder: "run", folder / "model": "model", checkpoint: "checkpoint", folder / "atlas": "atlas"}
    for path, kind in whole.items():
        capsys.readouterr()
        assert run("verify", path) == 0
        assert capsys.readouterr().out == f"{path} is a whole {kind}\n"
    for file in (
        checkpoint / "model.safetensors",
        folder / "atlas" / "cells.zarr" / "obs" / "log_normalizer" / "c" / "0",
    ):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    for path in (folder, checkpoint, folder / "atlas"):
        assert run("verify", path) == 2
    found = capsys.readouterr().out
    assert "model.safetensors" in found
    assert "log_normalizer" in found
