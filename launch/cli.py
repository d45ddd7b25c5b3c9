"""The command line: ``dist-scvi simulate | inspect | verify | pack | train | resume | minify | query``.

Only this file prints, and torch, zarr and ray are imported by the command that needs them.
"""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import parse

if TYPE_CHECKING:
    from dist_scvi.config import RunConfig
    from dist_scvi.loaders import CellStore
    from dist_scvi.loaders.soma_store import SomaOptions
    from dist_scvi.world import World

_OK, _FAILED, _MISTAKE, _AGAIN, _INTERRUPTED = 0, 1, 2, 75, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    options = parse(arguments, COMMANDS)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in step with the progress on stderr, also in a file
    try:
        code = options.command(options)
        sys.stdout.flush()
    except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
        print(f"dist-scvi: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = _MISTAKE
    except TimeoutError as error:
        print(f"dist-scvi: {error}", file=sys.stderr)
        code = _AGAIN
    except BrokenPipeError:  # as in "| head"; what is still buffered must not fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _OK
    except OSError as error:
        print(f"dist-scvi: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = _FAILED
    except KeyboardInterrupt:
        print("dist-scvi: interrupted; the same command goes on where it was", file=sys.stderr)
        code = _INTERRUPTED
    sys.exit(code)


def _simulate(options: argparse.Namespace) -> int:
    from dist_scvi.loaders.simulate import simulate

    simulate(
        options.out,
        n_cells=options.cells,
        n_genes=options.genes,
        n_types=options.types,
        n_batches=options.batches,
        seed=options.seed,
        n_processes=options.processes,
        overwrite=options.overwrite,
        progress=_progress("simulated"),
    )
    print(f"wrote {options.cells} cells x {options.genes} genes to {options.out}")
    return _OK


def _source(options: argparse.Namespace) -> "Callable[..., CellStore]":
    """Give what opens the store, or stores, that a command names; it takes another layer."""
    from dist_scvi.loaders.store import open_store, read_names

    sources = options.sources if len(options.sources) > 1 else options.sources[0]
    genes = None if options.genes is None else read_names(options.genes)
    return partial(
        open_store,
        sources,
        layer=options.layer,
        genes=genes,
        join=options.join,
        soma=_soma(options),
        storage_options=dict(options.storage),
    )


def _tell_unmatched(store: "CellStore") -> None:
    """Say which genes of several stores do not match."""
    from dist_scvi.loaders.collection import Collection, format_unmatched

    if isinstance(store, Collection):
        print(format_unmatched(store.unmatched), file=sys.stderr)


def _soma(options: argparse.Namespace) -> "SomaOptions | None":
    from dist_scvi.loaders.soma_store import SomaOptions

    asked = {"measurement": options.soma_measurement, "obs_value_filter": options.soma_filter}
    asked = {key: value for key, value in asked.items() if value is not None}
    return SomaOptions(**asked) if asked else None


def _inspect(options: argparse.Namespace) -> int:
    from dist_scvi.loaders.scan import format_inspection, inspect_store

    opened = _source(options)
    store = opened()
    _tell_unmatched(store)
    inspection = inspect_store(
        store,
        batch_key=options.batch_key,
        labels_key=options.labels_key,
        open_layer=lambda layer: opened(layer=layer),
        progress=_progress("read"),
    )
    print(json.dumps(inspection.to_dict(), indent=1) if options.json else format_inspection(inspection))
    return _OK


def _verify(options: argparse.Namespace) -> int:
    from dist_scvi.loaders.verify import format_verification, verify_store

    found = verify_store(
        options.source,
        layer=options.layer,
        soma=_soma(options),
        storage_options=dict(options.storage),
        progress=_progress("verified"),
    )
    print(json.dumps(found.to_dict(), indent=1) if options.json else format_verification(found))
    return _OK if found.ok else _MISTAKE


def _pack(options: argparse.Namespace) -> int:
    from dist_scvi.loaders.genes import highly_variable_genes
    from dist_scvi.loaders.pack import pack_store

    opened = _source(options)
    genes = None
    if options.batch_key and not options.hvg:
        raise ValueError(f"--batch-key {options.batch_key} is for highly variable genes: add --hvg N, or leave it out")
    store = opened()
    _tell_unmatched(store)
    if options.hvg:
        found = highly_variable_genes(
            store, n_top_genes=options.hvg, batch_key=options.batch_key, progress=_progress("counted")
        )
        genes = [str(name) for name in store.var_names[found.highly_variable]]
    manifest = pack_store(
        opened,
        options.out,
        seed=None if options.keep_order else options.seed,
        group_by=options.group_by,
        genes=genes,
        obs_columns=options.obs_columns,
        codec=options.codec,
        as_annbatch=options.annbatch,
        memory_bytes=options.memory,
        processes=options.processes,
        overwrite=options.overwrite,
        progress=_progress("packed"),
    )
    print(f"packed {manifest.n_cells} cells x {manifest.n_genes} genes into {options.out}")
    return _OK


def _train(options: argparse.Namespace) -> int:
    from dist_scvi.config_file import load_config

    named = [word for word in options.words if "=" not in word]
    if len(named) > 1:
        raise ValueError(f"one configuration file is needed, found {', '.join(named)}; overrides are written key=value")
    overrides = [word for word in options.words if "=" in word]
    return _run(load_config(Path(named[0]) if named else None, overrides), options)


def _resume(options: argparse.Namespace) -> int:
    from dist_scvi.run import run_config

    return _run(run_config(options.run.resolve(), options.words), options)


def _run(config: "RunConfig", options: argparse.Namespace) -> int:
    """Check a run at the door, then start its workers."""
    from dist_scvi.loaders.plan import check_world_size
    from dist_scvi.run import METRICS, MODEL, preview, train_worker
    from dist_scvi.train import open_from

    check_world_size(config.train.lanes, options.workers)
    for key, value in preview(config, open_from(config.data), workers=options.workers).items():
        print(f"{key:>28}  {value}")
    if options.dry_run:
        return _OK
    code = _start(
        partial(train_worker, config), Path(config.run), options, config.train.collective_timeout_s, follow=METRICS
    )
    if code == _OK:
        print(f"model in {Path(config.run) / MODEL}; next: dist-scvi minify {config.run}")
    return code


def _minify(options: argparse.Namespace) -> int:
    from dist_scvi.run import ATLAS, minify_worker, run_config

    run = options.run.resolve()
    out = options.out.resolve() if options.out else run / ATLAS
    config = run_config(run)
    task = partial(minify_worker, run, out, obs_columns=options.obs_columns, overwrite=options.overwrite)
    if out.exists() and not options.overwrite:
        raise ValueError(f"{out} exists: give another path, or allow it to be replaced with --overwrite")
    code = _start(task, run, options, config.train.collective_timeout_s)
    if code == _OK:
        print(f"minified atlas in {out}; next: dist-scvi query {out} expression --genes GENE --by COLUMN")
    return code


def _start(
    task: "Callable[[World], None]",
    folder: Path,
    options: argparse.Namespace,
    timeout_s: float,
    *,
    follow: str | None = None,
) -> int:
    """Run `task` here for one worker, on Ray Train for more."""
    from dist_scvi.metrics import Progress
    from dist_scvi.world import World, worker_device

    from .follow import shown_progress

    path = folder / follow if follow else folder / ".none"
    with shown_progress(path, Progress()):
        if options.workers == 1:
            task(World(device=worker_device(0)))
            return _OK
        from .ray_train import WorkersFailedError, run_on_ray

        try:
            run_on_ray(
                task,
                workers=options.workers,
                folder=folder,
                cpus_per_worker=options.cpus_per_worker,
                gpus_per_worker=options.gpus_per_worker,
                timeout_s=timeout_s,
                max_failures=options.max_failures,
            )
        except WorkersFailedError as error:
            print(f"dist-scvi: {error}", file=sys.stderr)
            return _AGAIN
    return _OK


def _query(options: argparse.Namespace) -> int:
    from .query import query

    query(options).to_csv(options.out or sys.stdout, float_format="%.6g")
    return _OK


def _export(options: argparse.Namespace) -> int:
    from dist_scvi.run import MODEL
    from dist_scvi.scvi_files import write_scvi_tools
    from dist_scvi.spec import load_model

    folder = options.run / MODEL if (options.run / MODEL).is_dir() else options.run
    write_scvi_tools(options.out.resolve(), *load_model(folder), overwrite=options.overwrite)
    print(f"wrote {options.out}: scvi-tools 1.4.2 loads it with its cells")
    return _OK


def _progress(verb: str) -> "Callable[[int, int], None] | None":
    """Show how far a pass over cells is, and how long it will take, on a terminal."""
    if not sys.stderr.isatty():
        return None
    begun_s, first = time.monotonic(), 0

    def show(done: int, total: int) -> None:
        nonlocal first
        first = first or done  # what an earlier start had done says nothing of the speed
        passed_s = time.monotonic() - begun_s
        left = f", {(total - done) * passed_s / (done - first):.0f} s left" if done > first else ""
        end = "\n" if done >= total else ""
        print(f"\r{verb} {done:,} of {total:,} cells{left}    ", end=end, file=sys.stderr, flush=True)

    return show


COMMANDS = {
    "simulate": _simulate,
    "inspect": _inspect,
    "verify": _verify,
    "pack": _pack,
    "train": _train,
    "resume": _resume,
    "minify": _minify,
    "query": _query,
    "export": _export,
}


if __name__ == "__main__":
    main()
