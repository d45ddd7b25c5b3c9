"""What all launch files have in common: what is trained, on how much, and the script that starts it and judges the end.

A launch file holds texts of its user. They enter shell only through `shlex.quote`, YAML only through its dumper, and
comments only as printable characters.
"""

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from dist_scvi.config.schema import RunConfig

AGAIN, MISTAKE = 75, 2
"""Exit codes of dist-scvi: start the same command again; the input has to be changed first."""

FOLDER = "$HOME/dist-scvi"
"""Where machines of our own keep the environment, the configuration and the script; for shell, in double quotes."""

_NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/local", "/localscratch")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
_UV = "0.13.8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run and the machines it is trained on. Numbers of workers and nodes are the least and the most."""

    name: str
    config: Path
    """The configuration file, absolute."""
    words: tuple[str, ...]
    """Overrides, as they were given."""
    run: str
    storage: tuple[str, ...]
    """Options of its storage, as ``key=value``."""
    paths: tuple[tuple[str, str], ...]
    """Keys of the configuration and the paths or URLs they name."""
    workers: tuple[int, int]
    nodes: tuple[int, int]
    cpus_per_worker: int
    gpus_per_worker: int
    memory_bytes: int
    """Of each worker."""
    grace_s: int
    """Time that a machine has between word of its end and its end."""
    max_restarts: int
    """Restarts without a new checkpoint after which a human is asked."""

    @property
    def workers_per_node(self) -> int:
        """Workers of each node."""
        return self.workers[1] // self.nodes[1]

    @property
    def cpus_per_node(self) -> int:
        """CPUs that the workers of a node need."""
        return self.workers_per_node * self.cpus_per_worker

    @property
    def gpus_per_node(self) -> int:
        """GPUs that the workers of a node need."""
        return self.workers_per_node * self.gpus_per_worker

    @property
    def memory_mib_per_node(self) -> int:
        """Memory that the workers of a node need."""
        return self.workers_per_node * self.memory_bytes >> 20

    @property
    def elastic(self) -> bool:
        """Whether fewer machines than the most will do."""
        return self.nodes[0] < self.nodes[1]

    @property
    def drain_s(self) -> int:
        """What Ray may take of the time of grace to save and to leave a node."""
        return self.grace_s - max(5, self.grace_s // 6)


def job_of(
    config: Path,
    words: Sequence[str],
    *,
    name: str | None,
    workers: tuple[int, int],
    nodes: tuple[int, int] | None,
    cpus_per_worker: int,
    gpus_per_worker: int,
    memory_bytes: int,
    grace_s: int,
    max_restarts: int,
) -> Job:
    """Read a configuration and check that the machines asked for fit it.

    Parameters
    ----------
    name
        By default that of the folder of the run.
    nodes
        By default one for each worker.

    Raises
    ------
    FileNotFoundError
        If there is no configuration file.
    ValueError
        If it is not valid, or workers, nodes, lanes or name do not fit.
    """
    from dist_scvi.config.load import load_config
    from dist_scvi.loaders.order.plan import usable_workers

    run = load_config(config, words)
    nodes = nodes or workers
    if any(w % n for w, n in zip(workers, nodes, strict=True)) or workers[0] * nodes[1] != workers[1] * nodes[0]:
        raise ValueError(
            f"--workers {_span(workers)} on --nodes {_span(nodes)}: every node needs the same number of workers"
        )
    usable_workers(run.train.lanes, *workers)
    return Job(
        name=_checked_name(name) if name else _name_of(run.run),
        config=config.expanduser().resolve(),
        words=tuple(words),
        run=run.run,
        storage=tuple(f"{key}={value}" for key, value in run.storage_options.items()),
        paths=tuple(_paths(run)),
        workers=workers,
        nodes=nodes,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        memory_bytes=memory_bytes,
        grace_s=grace_s,
        max_restarts=max_restarts,
    )


def refuse_node_local(job: Job, shared: Iterable[str]) -> None:
    """Refuse paths that usually lie on one machine only, unless they are below one of `shared`.

    Raises
    ------
    ValueError
        With the key and the path.
    """
    for key, path in job.paths:
        folder = next((folder for folder in _NODE_LOCAL if _below(path, folder)), None)
        if folder and not any(_below(path, seen) for seen in shared):
            raise ValueError(
                f"{key}={path}: {folder} is another folder on every node, and empty after a restart: name a folder "
                f"that all nodes share or a URL such as s3://bucket/folder; if they do share it, say --shared {folder}"
            )


def refuse_local(job: Job, seen: Iterable[str], option: str) -> None:
    """Refuse paths of this machine: remote machines see URLs, and what is below one of `seen`.

    Raises
    ------
    ValueError
        With the key, the path, and the option that makes it seen.
    """
    for key, path in job.paths:
        if not is_url(path) and not any(_below(path, folder) for folder in seen):
            raise ValueError(
                f"{key}={path}: a path of this machine, which the workers do not see: give a URL such as "
                f"s3://bucket/folder, or name the folder that they all see with {option}"
            )


def is_url(path: str) -> bool:
    """Say whether `path` is in an object store, the same from everywhere."""
    return "://" in path and not path.startswith("file://")


def train_command(job: Job, config: str, *, address: str | None) -> str:
    """Write the shell command that trains.

    Parameters
    ----------
    config, address
        The configuration file, and Ray's address (None to start Ray on this machine), both as shell text.
    """
    words = [
        *("dist-scvi train", config, *map(shlex.quote, job.words)),
        *("--workers", _span(job.workers), "--cpus-per-worker", str(job.cpus_per_worker)),
        *("--gpus-per-worker", str(job.gpus_per_worker)),
        *(("--address", address) if address else ()),
    ]
    return " ".join(words)


def judge(job: Job) -> str:
    """Write the shell that ends with the exit code of the run, given that of the command in ``$code``.

    Only 75 comes back, as ``$status``: the run is whole but not finished. An exit code of 0 is not believed, because
    launchers swallow those of what they start; the run's final manifest is.
    """
    return f"""\
{_status(job)} --exit-code
status=$?
if [ "$status" -eq 0 ]; then exit 0; fi
if [ "$code" -eq {MISTAKE} ]; then exit {MISTAKE}; fi  # the input has to be changed, another start would not help
if [ "$status" -ne {AGAIN} ]; then exit "$status"; fi
"""


def saved_step(job: Job) -> str:
    """Write the shell command that prints the step of the newest checkpoint, or nothing."""
    return f"{_status(job)} --json | sed -n 's/.*\"saved_step\": *\\([0-9]*\\).*/\\1/p'"


def _status(job: Job) -> str:
    storage = [word for option in job.storage for word in ("--storage", option)]
    return shlex.join(["dist-scvi", "status", job.run, *storage])


def write_files(files: Mapping[str, str]) -> str:
    """Write the shell that writes files into `FOLDER`."""
    lines = [f'printf %s {shlex.quote(text)} > "{FOLDER}/{name}"' for name, text in files.items()]
    return "\n".join([f'mkdir -p "{FOLDER}"', *lines]) + "\n"


def install(spec: str, *more: str) -> str:
    """Write the shell that installs `spec`, the Ray of this machine and `more`, into an environment of its own.

    uv brings Python along: images of clouds have one that is too old.

    Raises
    ------
    ValueError
        If `spec` is an option, or a path that depends on the folder.
    """
    where = spec.rpartition(" @ ")[2].strip()
    path = "://" not in where and ("/" in where or where.startswith((".", "~")) or where.endswith(".whl"))
    if not where or spec.startswith("-") or (path and not where.startswith("/")):
        raise ValueError(
            f"--install {spec!r}: a URL such as https://host/dist_scvi.whl or git+https://host/repository, a "
            "requirement such as dist-scvi==1.0, or a path from / on, which the machines have, is needed"
        )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = shlex.join([spec, f"ray[default,train]=={version('ray')}", *more])
    return f"""\
export PATH="$HOME/.local/bin:$PATH"
command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/{_UV}/install.sh | sh
[ -x "{FOLDER}/venv/bin/python" ] || uv venv --python {python} "{FOLDER}/venv"
uv pip install --python "{FOLDER}/venv/bin/python" {packages}
"""


def comment(lines: Iterable[str]) -> str:
    """Write lines of comment, each one line whatever stands in it: what is no printable character is escaped."""
    return "".join(f"# {''.join(map(_printable, line))}\n" for line in lines)


def dump(*documents: object) -> str:
    """Write YAML documents; texts of several lines as they are."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _span(span: tuple[int, int]) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}:{span[1]}"


def _below(path: str, folder: str) -> bool:
    return not is_url(path) and PurePosixPath(path.removeprefix("file://")).is_relative_to(folder)


def _paths(config: "RunConfig") -> Iterable[tuple[str, str]]:
    uri, genes = config.data.uri, config.data.genes
    yield "run", config.run
    yield from (("data.uri", each) for each in ([uri] if isinstance(uri, str) else uri))
    if isinstance(genes, str):
        yield "data.genes", genes
    if config.start_from:
        yield "start_from", config.start_from


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"--name {name!r}: a lower-case letter, then up to 46 of them, digits and dashes are needed, as in atlas-1"
        )
    return name


def _name_of(run: str) -> str:
    last = run.rstrip("/").rsplit("/", maxsplit=1)[-1].lower()
    name = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:40].strip("-") or "dist-scvi"
    return name if name[0].isalpha() else f"run-{name}"
