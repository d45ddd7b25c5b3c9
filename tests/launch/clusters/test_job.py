"""What all launch files share: machines that fit the run, paths that are seen, text that stays text."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from dist_scvi.launch.clusters.job import (
    Job,
    comment,
    dump,
    install,
    job_of,
    judge,
    refuse_local,
    refuse_node_local,
    saved_step,
    train_command,
    write_files,
)

NASTY = [
    "it's",
    'a "b"',
    "$(touch owned)",
    "`touch owned`",
    "two\nlines",
    "# no comment",
    "a: b",
    "-n",
    "${HOME}",
    "\\",
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run of 'mine'.yaml"
    path.write_text("run: s3://bucket/Run_1\ndata: {uri: s3://bucket/atlas.zarr}\ntrain: {lanes: 8}\n")
    return path


def job(
    config: Path,
    *words: str,
    name: str | None = None,
    workers: tuple[int, int] = (2, 2),
    nodes: tuple[int, int] | None = None,
) -> Job:
    return job_of(
        config,
        words,
        name=name,
        workers=workers,
        nodes=nodes,
        cpus_per_worker=3,
        gpus_per_worker=1,
        memory_bytes=4 << 30,
        grace_s=120,
        max_restarts=5,
    )


def test_a_node_has_what_its_workers_need(config: Path) -> None:
    four = job(config, workers=(2, 4), nodes=(1, 2))
    assert (four.workers_per_node, four.cpus_per_node, four.gpus_per_node) == (2, 6, 2)
    assert (four.memory_mib_per_node, four.elastic, four.drain_s) == (8192, True, 100)
    assert not job(config).elastic


@pytest.mark.parametrize(
    ("workers", "nodes", "message"),
    [
        ((4, 4), (3, 3), "same number of workers"),
        ((2, 4), (2, 2), "same number of workers"),
        ((3, 3), None, "use 1, 2, 4, 8, or change train.lanes"),
        ((5, 7), None, "use 1, 2, 4, 8, or change train.lanes"),
    ],
)
def test_workers_that_fit_neither_nodes_nor_lanes_are_refused(
    config: Path, workers: tuple[int, int], nodes: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        job(config, workers=workers, nodes=nodes)


def test_a_range_needs_one_number_that_divides_the_lanes(config: Path) -> None:
    assert job(config, workers=(3, 6)).workers == (3, 6)


def test_the_name_is_that_of_the_run_as_clusters_allow_it(config: Path) -> None:
    assert job(config).name == "run-1"
    assert job(config, "run=s3://bucket/" + "Ä " * 50).name == "dist-scvi"
    assert job(config, "run=s3://bucket/" + "x" * 90).name == "x" * 40
    assert job(config, "run=s3://bucket/2026.01").name == "run-2026-01"


@pytest.mark.parametrize("name", [*NASTY, "Upper", "-a", "1a", "a-", "a" * 48])
def test_a_name_that_clusters_do_not_allow_is_refused(config: Path, name: str) -> None:
    with pytest.raises(ValueError, match="lower-case letter,"):
        job(config, name=name)


def test_a_configuration_that_is_not_valid_is_refused(config: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.lans"):
        job(config, "train.lans=4")


@pytest.mark.parametrize("path", ["/tmp/run", "/dev/shm/run", "/local/run", "file:///tmp/run"])
def test_a_run_on_one_node_only_is_refused_unless_it_is_known_to_be_shared(config: Path, path: str) -> None:
    here = job(config, f"run={path}")
    with pytest.raises(ValueError, match=f"run={path}.*--shared"):
        refuse_node_local(here, [])
    refuse_node_local(here, [path.removeprefix("file://")])
    refuse_node_local(job(config, "run=/tmpfolder/run"), [])
    refuse_node_local(job(config), [])


@pytest.mark.parametrize("key", ["run", "data.uri", "data.genes", "start_from"])
def test_a_path_of_this_machine_is_refused_where_workers_do_not_see_it(config: Path, key: str) -> None:
    local = job(config, f"{key}=/home/me/x")
    with pytest.raises(ValueError, match=f"{key}=/home/me/x.*--volume"):
        refuse_local(local, ["/home/m"], "--volume")
    refuse_local(local, ["/home/me"], "--volume")


def test_the_command_says_what_was_said(config: Path) -> None:
    quoted = [yaml.safe_dump(text, default_style='"').strip() for text in NASTY]
    words = [f"data.labels_key={text}" for text in quoted]
    command = train_command(job(config, *words, workers=(2, 4)), "CONFIG", address='"$head"')
    script = f"dist-scvi() {{ printf '%s\\0' \"$@\"; }}; head='1.2.3.4:6379'; {command}"
    told = subprocess.run(["bash", "-uc", script], capture_output=True, text=True, check=True, cwd=config.parent).stdout
    assert told.split("\0")[:-1] == [
        *("train", "CONFIG", *words, "--workers", "2:4", "--cpus-per-worker", "3"),
        *("--gpus-per-worker", "1", "--address", "1.2.3.4:6379"),
    ]
    assert not (config.parent / "owned").exists()


@pytest.mark.parametrize(
    ("code", "status", "end"),
    [(0, 0, 0), (1, 0, 0), (0, 75, "again"), (1, 75, "again"), (2, 75, 2), (0, 3, 3), (1, 2, 2)],
)
def test_what_the_run_left_decides_and_not_the_exit_code(config: Path, code: int, status: int, end: int | str) -> None:
    script = f"dist-scvi() {{ return {status}; }}; code={code}\n{judge(job(config))}\necho again"
    told = subprocess.run(["bash", "-uc", script], capture_output=True, text=True, check=False)
    assert told.stdout.strip() == ("again" if end == "again" else "")
    assert told.returncode == (0 if end == "again" else end)


def test_the_step_that_was_saved_is_read_from_the_status(config: Path) -> None:
    script = 'dist-scvi() { printf \'{\\n "step": 14,\\n "saved_step": 12,\\n "x": 1}\'; }; ' + saved_step(job(config))
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout == "12\n"


def test_the_status_is_asked_of_the_same_storage(config: Path) -> None:
    far = job(config, "storage_options={endpoint: 'http://a b'}")
    assert "dist-scvi status s3://bucket/Run_1 --storage 'endpoint=http://a b' --exit-code\n" in judge(far)
    assert "dist-scvi status s3://bucket/Run_1 --storage 'endpoint=http://a b' --json |" in saved_step(far)


def test_files_arrive_as_they_are(tmp_path: Path) -> None:
    text = "\n".join(NASTY) + "\n\n"
    subprocess.run(["bash", "-uc", write_files({"run.yaml": text})], check=True, env={"HOME": str(tmp_path)})
    assert (tmp_path / "dist-scvi" / "run.yaml").read_text() == text


@pytest.mark.parametrize(
    "spec",
    [
        "dist-scvi==1.0",
        "dist-scvi[soma]",
        "git+https://host/repository@main",
        "dist-scvi @ https://host/a.whl",
        "https://host/a.whl",
        "/shared/a b.whl",
        "file:///shared/a.whl",
    ],
)
def test_what_machines_can_reach_is_installed_and_uv_in_one_version(spec: str) -> None:
    stubs = 'command() { false; }; curl() { echo "curl $*" >&2; }; uv() { printf \'%s\\n\' "$@"; }\n'
    told = subprocess.run(["bash", "-euc", stubs + install(spec)], capture_output=True, text=True, check=True)
    assert spec in told.stdout.splitlines()
    assert re.fullmatch(r"curl -LsSf https://astral\.sh/uv/\d+\.\d+\.\d+/install\.sh\n", told.stderr)


@pytest.mark.parametrize(
    "spec",
    ["", " ", "--pre", "-r/x", ".", "./dist", "~/a.whl", "dist/a.whl", "a.whl", "dist-scvi @ ./a", "dist-scvi @ "],
)
def test_what_only_this_machine_could_reach_is_not_installed(spec: str) -> None:
    with pytest.raises(ValueError, match=r"--install .* which the machines have"):
        install(spec)


def test_a_comment_shows_what_cannot_be_printed() -> None:
    assert comment(["run/a\nb  c\u2028\x07 ä"]) == "# run/a\\nb  c\\u2028\\x07 ä\n"
    assert comment(["  indented"]) == "#   indented\n"


@pytest.mark.parametrize("text", NASTY)
def test_yaml_gives_back_what_went_in_and_comments_stay_comments(text: str) -> None:
    written = comment([text, f"  {text}"]) + dump({"key": text, "several": f"{text}\n{text}\n"})
    assert yaml.safe_load(written) == {"key": text, "several": f"{text}\n{text}\n"}
