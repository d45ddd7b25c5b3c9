"""Common parts of all targets: the run, its machines, and whether the two fit together."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dist_scvi.launch.clusters.options import JobOptions

if TYPE_CHECKING:
    from dist_scvi.config.schema import RunConfig

_NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/local", "/localscratch")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
_GRACE_S, _GRACE_OF_GCP_SPOT_S = 120, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run and the machines it is trained on."""

    name: str
    options: JobOptions
    """Options as given; numbers of workers and nodes are the smallest and the largest."""
    config: Path
    """Absolute path of the configuration file."""
    run: str
    storage: tuple[str, ...]
    """Options of its storage, as ``key=value``."""
    paths: tuple[tuple[str, str], ...]
    """Keys of the configuration and the paths or URLs they name."""
    grace_s: int
    """Seconds from the notice of the end of a machine to its end."""

    @property
    def nodes(self) -> tuple[int, int]:
        """The smallest and the largest number of nodes."""
        return self.options.nodes or self.options.workers

    @property
    def workers_per_node(self) -> int:
        """Workers of each node."""
        return self.options.workers[1] // self.nodes[1]

    @property
    def cpus_per_node(self) -> int:
        """CPUs that the workers of a node need."""
        return self.workers_per_node * self.options.cpus_per_worker

    @property
    def gpus_per_node(self) -> int:
        """GPUs that the workers of a node need."""
        return self.workers_per_node * self.options.gpus_per_worker

    @property
    def memory_mib_per_node(self) -> int:
        """Memory that the workers of a node need, in MiB."""
        return self.workers_per_node * self.options.memory_bytes >> 20

    @property
    def elastic(self) -> bool:
        """Whether training continues with fewer nodes than the largest number."""
        return self.nodes[0] < self.nodes[1]

    @property
    def drain_s(self) -> int:
        """Seconds of the grace period for Ray to save and leave a node; the rest is for the end of its processes."""
        return self.grace_s - max(5, self.grace_s // 6)

    @property
    def train_options(self) -> list[str]:
        """Arguments of ``dist-scvi train`` after the configuration file."""
        return [
            *self.options.words,
            *("--workers", _span(self.options.workers), "--cpus-per-worker", str(self.options.cpus_per_worker)),
            *("--gpus-per-worker", str(self.options.gpus_per_worker)),
        ]

    @property
    def status(self) -> list[str]:
        """Command that reports the state of the run."""
        return ["dist-scvi", "status", self.run, *(word for each in self.storage for word in ("--storage", each))]


def job_of(options: JobOptions, *, spot_of_gcp: bool = False) -> Job:
    """Read a configuration, check it as training does, and check that the machines fit it.

    Parameters
    ----------
    spot_of_gcp
        Whether workers are on spot machines of gcp, which get a shorter notice.

    Raises
    ------
    FileNotFoundError
        If the configuration file does not exist.
    ValueError
        If training would refuse it, or workers, nodes, lanes or name do not fit.
    """
    from dist_scvi.config.load import load_config
    from dist_scvi.loaders.order.plan import usable_workers

    run = load_config(options.config, options.words)
    workers, nodes = options.workers, options.nodes or options.workers
    if any(w % n for w, n in zip(workers, nodes, strict=True)) or workers[0] * nodes[1] != workers[1] * nodes[0]:
        raise ValueError(
            f"--workers {_span(workers)} on --nodes {_span(nodes)}: every node needs the same number of workers"
        )
    paths = tuple(_paths(run))
    _check_as_training(run, paths, usable_workers(run.train.lanes, *workers))
    return Job(
        name=_checked_name(options.name) if options.name else _name_of(run.run),
        options=options,
        config=options.config.expanduser().resolve(),
        run=run.run,
        storage=tuple(f"{key}={value}" for key, value in run.storage_options.items()),
        paths=paths,
        grace_s=options.grace_s or (_GRACE_OF_GCP_SPOT_S if spot_of_gcp else _GRACE_S),
    )


def _check_as_training(config: "RunConfig", paths: Iterable[tuple[str, str]], workers: int) -> None:
    """Refuse a run that training would refuse hours later, after waiting for its machines.

    Cells are opened only if all are on this machine: a bucket may be accessible to the machines of the job only.
    """
    from dist_scvi.training.preview import preview
    from dist_scvi.training.resolve import check_config, open_from

    check_config(config)
    inputs = [path for key, path in paths if key != "run"]
    if not is_url(config.run) and all(
        not is_url(path) and Path(path.removeprefix("file://")).exists() for path in inputs
    ):
        preview(config, open_from(config.data), workers=workers)


def refuse_node_local(job: Job, shared: Iterable[str]) -> None:
    """Refuse paths that are usually on one machine only, unless they are below one of `shared`.

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
    """Refuse paths of this machine: remote machines can access URLs, and paths below one of `seen`.

    Raises
    ------
    ValueError
        With the key, the path, and the option that makes it accessible.
    """
    for key, path in job.paths:
        if not is_url(path) and not any(_below(path, folder) for folder in seen):
            raise ValueError(
                f"{key}={path}: a path of this machine, which the workers do not see: give a URL such as "
                f"s3://bucket/folder, or name the folder that they all see with {option}"
            )


def is_url(path: str) -> bool:
    """Return whether `path` is in an object store, which all machines can access."""
    return "://" in path and not path.startswith("file://")


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
