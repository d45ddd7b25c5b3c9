"""What all launch files share: machines that fit the run, paths that are seen, text that stays text."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from dist_scvi.launch.clusters.documents import comment, dump
from dist_scvi.launch.clusters.install import install_script
from dist_scvi.launch.clusters.job import Job, job_of, refuse_local, refuse_node_local
from dist_scvi.launch.clusters.options import JobOptions
from dist_scvi.launch.clusters.templates import render_script

ROOT = Path(__file__).parents[3]
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
        JobOptions(
            config=config,
            words=words,
            name=name,
            workers=workers,
            nodes=nodes,
            cpus_per_worker=3,
            gpus_per_worker=1,
            memory_bytes=4 << 30,
            grace_s=120,
            max_restarts=5,
        )
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
    assert job(config, workers=(3, 6)).nodes == (3, 6)


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


@pytest.mark.parametrize("path", ["/tmp/run", "/dev/shm/run", "/local/run"])
def test_a_run_on_one_node_only_is_refused_unless_it_is_known_to_be_shared(config: Path, path: str) -> None:
    here = job(config, f"run={path}")
    with pytest.raises(ValueError, match=f"run={path}.*--shared"):
        refuse_node_local(here, [])
    refuse_node_local(here, [path])
    refuse_node_local(job(config, "run=/tmpfolder/run"), [])
    refuse_node_local(job(config), [])


@pytest.mark.parametrize("key", ["run", "data.uri", "data.genes", "start_from"])
def test_a_path_of_this_machine_is_refused_where_workers_do_not_see_it(config: Path, key: str) -> None:
    local = job(config, f"{key}=/home/me/x")
    with pytest.raises(ValueError, match=f"{key}=/home/me/x.*--volume"):
        refuse_local(local, ["/home/m"], "--volume")
    refuse_local(local, ["/home/me"], "--volume")


def test_the_command_has_every_word_as_it_was_given(config: Path) -> None:
    quoted = [yaml.safe_dump(text, default_style='"').strip() for text in NASTY]
    words = [f"data.labels_key={text}" for text in quoted]
    values = {"train_options": job(config, *words, workers=(2, 4)).train_options}
    script = render_script(values) + """\nprintf '%s\\0' "${train_options[@]}\""""
    printed = subprocess.run(
        ["bash", "-uc", script], capture_output=True, text=True, check=True, cwd=config.parent
    ).stdout
    assert printed.split("\0")[:-1] == [
        *(*words, "--workers", "2:4", "--cpus-per-worker", "3"),
        *("--gpus-per-worker", "1"),
    ]
    assert not (config.parent / "owned").exists()


def run_state(config: Path, stub: str, command: str) -> "subprocess.CompletedProcess[str]":
    script = render_script({"status": job(config, "storage_options={endpoint: 'http://a b'}").status}, "run_state")
    return subprocess.run(
        ["bash", "-uc", f"dist-scvi() {{ {stub}; }}\n{script}\n{command}"], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("code", "state", "end"),
    [(0, 0, 0), (1, 0, 0), (0, 75, "again"), (1, 75, "again"), (2, 75, 2), (0, 3, 3), (1, 2, 2)],
)
def test_the_state_of_the_run_decides_and_not_the_exit_code(
    config: Path, code: int, state: int, end: int | str
) -> None:
    ended = run_state(config, f"return {state}", f"exit_unless_unfinished {code}; echo again")
    assert ended.stdout.strip() == ("again" if end == "again" else "")
    assert ended.returncode == (0 if end == "again" else end)


def test_the_saved_step_is_read_from_the_status(config: Path) -> None:
    stub = 'printf \'{\\n "step": 14,\\n "saved_step": 12,\\n "x": 1}\''
    assert run_state(config, stub, "saved_step").stdout == "12\n"
    assert run_state(config, "return 1", "saved_step").stdout == "none\n"


def test_the_status_is_read_with_the_options_of_the_storage(config: Path) -> None:
    words = ["status", "s3://bucket/Run_1", "--storage", "endpoint=http://a b", "--exit-code"]
    printed = run_state(config, "printf '%s\\n' \"$@\"; return 75", "exit_unless_unfinished 1").stdout
    assert printed.splitlines() == words


def test_files_arrive_as_they_are(tmp_path: Path) -> None:
    text = "\n".join(NASTY) + "\n\n"
    script = render_script({"file_names": ["run.yaml", "x"], "file_texts": [text, ""]}, "write_files")
    subprocess.run(["bash", "-uc", script], check=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert (tmp_path / "dist-scvi" / "run.yaml").read_text() == text
    assert (tmp_path / "dist-scvi" / "x").read_text() == ""


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
def test_what_machines_can_reach_is_installed_with_the_pinned_versions(spec: str, tmp_path: Path) -> None:
    stubs = 'command() { false; }; curl() { echo "curl $*" >&2; }; uv() { printf \'%s\\n\' "$@"; }\n'
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    script = stubs + install_script(spec, files={})
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True, env=home)
    words = done.stdout.splitlines()
    assert spec in words
    assert words[words.index("--constraint") + 1] == str(tmp_path / "dist-scvi" / "constraints.txt")
    assert (tmp_path / "dist-scvi" / "constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()
    assert re.fullmatch(r"curl -LsSf https://astral\.sh/uv/\d+\.\d+\.\d+/install\.sh\n", done.stderr)


@pytest.mark.parametrize(
    "spec",
    ["", " ", "--pre", "-r/x", ".", "./dist", "~/a.whl", "dist/a.whl", "a.whl", "dist-scvi @ ./a", "dist-scvi @ "],
)
def test_what_only_this_machine_could_reach_is_not_installed(spec: str) -> None:
    with pytest.raises(ValueError, match=r"--install .* which the machines have"):
        install_script(spec, files={})


def test_a_comment_shows_what_cannot_be_printed() -> None:
    assert comment(["run/a\nb  c\u2028\x07 ä"]) == "# run/a\\nb  c\\u2028\\x07 ä\n"
    assert comment(["  indented"]) == "#   indented\n"


@pytest.mark.parametrize("text", NASTY)
def test_yaml_gives_back_what_went_in_and_comments_stay_comments(text: str) -> None:
    written = comment([text, f"  {text}"]) + dump({"key": text, "several": f"{text}\n{text}\n"})
    assert yaml.safe_load(written) == {"key": text, "several": f"{text}\n{text}\n"}
