"""The command ``launch``: a file for each target, printed or written, or one line that says what does not fit."""

import argparse
import shlex
from pathlib import Path

import pytest
import yaml

from dist_scvi.launch.clusters.command import add_launch, launch

TARGETS = {
    "slurm": "--partition gpu --time 1-00:00:00 --sbatch qos=high --setup 'module load x' --shared /scratch",
    "kuberay": "--image a/b:1 --node-selector spot=true --toleration spot=true:NoSchedule --secret keys --shm 1GiB "
    "--volume claim=/data --head-node-selector pool=steady --service-account me --time 10:00:00 --ttl-s 5",
    "ray-cluster": "--provider aws --region eu-west-1 --instance m7i.2xlarge --head-instance m7i.large --on-demand "
    "--install dist-scvi==1.0",
    "skypilot": "--infra gcp --on-demand --mount /atlas=gs://bucket --install git+https://example.org/x",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("run: s3://bucket/run\ndata: {uri: s3://bucket/atlas.zarr}\n")
    return path


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_launch(parser.add_subparsers(dest="name"))
    return parser.parse_args(["launch", *words])


def parsed(target: str, config: Path, more: str = "") -> argparse.Namespace:
    overrides, dashes, arguments = more.partition("--")
    words = shlex.split(f"--workers 2 {TARGETS[target]} {dashes}{arguments}")
    return options(target, str(config), "seed=3", *overrides.split(), *words)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_rendered_with_the_overrides(
    target: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(parsed(target, config)) == 0
    printed = capsys.readouterr().out
    assert "seed=3 --workers 2 --cpus-per-worker 4" in printed
    assert "s3://bucket/run" in printed.splitlines()[1 if target == "slurm" else 0]
    if target != "slurm":
        assert list(yaml.safe_load_all(printed))


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_written_is_what_is_printed_and_is_not_replaced_unasked(
    target: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out file"
    launch(parsed(target, config))
    printed = capsys.readouterr().out
    assert launch(parsed(target, config, f"--out '{out}'")) == 0
    assert (out.read_text(), capsys.readouterr().out) == (printed, "")
    with pytest.raises(FileExistsError, match="--overwrite"):
        launch(parsed(target, config, f"--out '{out}'"))
    assert launch(parsed(target, config, f"--out '{out}' --overwrite")) == 0


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("slurm", "--workers 3", "change train.lanes"),
        ("slurm", "--nodes 3", "same number of workers"),
        ("slurm", "--name A", "lower-case letter"),
        ("slurm", "logger=tensorboard", "where TensorBoard cannot write"),
        ("kuberay", "train.lanes=7 --workers 7", "must be a multiple of lanes=7"),
        ("skypilot", "run=https://host/run", "https://host/run cannot be written"),
        ("ray-cluster", "train.load_best=true train.train_size=1", "depends on validations"),
        ("slurm", "--time 00:02:00", "--time 0-00:02:00"),
        ("kuberay", "--node-selector 'a b=c'", "--node-selector: .*'a b'"),
        ("ray-cluster", "--install dist/a.whl", "--install 'dist/a.whl'"),
        ("skypilot", "--install .", "--install '.'"),
        ("skypilot", "--gpus-per-worker 1", "--accelerator"),
    ],
)
def test_what_does_not_fit_together_is_refused_and_nothing_is_written(
    target: str, more: str, message: str, config: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        launch(parsed(target, config, f"{more} --out {tmp_path / 'out'}"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("kuberay run.yaml", "--image"),
        ("kuberay run.yaml --image a --toleration spot:Never", "effects are NoSchedule"),
        ("kuberay run.yaml --image a --node-selector spot", "gke-spot=true"),
        ("slurm run.yaml --time 24", "24:00:00"),
        ("slurm run.yaml --spot", "unrecognized arguments: --spot"),
        ("ray-cluster run.yaml --provider azure", "invalid choice"),
        ("ray-cluster run.yaml --provider aws --region r --instance a --head-instance b", "required: --install"),
        ("skypilot run.yaml", "required: --install"),
        ("nomad run.yaml", "invalid choice"),
        ("slurm", "RUN.yaml"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        options(*words.split())
    assert message in capsys.readouterr().err


def test_a_machine_of_gcp_has_less_grace_by_default(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gcp = "--provider gcp --region r --zone z --project p --image i --instance a --head-instance b --install x"
    launch(options("ray-cluster", str(config), *gcp.split()))
    assert "drain_s=25\n" in capsys.readouterr().out
    launch(options("ray-cluster", str(config), *gcp.split(), "--on-demand"))
    assert "drain_s=100\n" in capsys.readouterr().out


def test_cells_that_this_machine_sees_are_checked_as_training_checks_them(tmp_path: Path, save, pristine) -> None:
    store = save(pristine)
    config = tmp_path / "run.yaml"
    config.write_text(f"run: {tmp_path}/run\ndata: {{uri: {store}, batch_key: plaec}}\ntrain: {{batch_size: 32}}\n")
    with pytest.raises(ValueError, match="plaec"):
        launch(options("slurm", str(config), "--shared", "/"))
    assert launch(options("slurm", str(config), "data.batch_key=place", "--shared", "/")) == 0
