"""The command line ``dist-scvi``: one function for each command.

torch, zarr and ray are imported by the command that needs them: each takes long to import.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dist_scvi.launch.annotate.command import annotate
from dist_scvi.launch.arguments import parse
from dist_scvi.launch.cell_map import make_map
from dist_scvi.launch.clusters.command import launch
from dist_scvi.launch.exit_codes import AGAIN, MISTAKE, OK, exit_code
from dist_scvi.launch.process_environment import prepare_environment
from dist_scvi.launch.report.card import card
from dist_scvi.launch.report.command import report
from dist_scvi.launch.serve.command import serve
from dist_scvi.launch.standard_streams import open_closed_streams, print_text
from dist_scvi.progress_reporter import ProgressReporter

if TYPE_CHECKING:
    from dist_scvi.config.schema import RunConfig, TrainConfig
    from dist_scvi.loaders import CellStore
    from dist_scvi.loaders.stores.soma_store import SomaOptions
    from dist_scvi.storage.run_storage import RunStorage
    from dist_scvi.training.save_requests import SaveRequests
    from dist_scvi.world import World


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    open_closed_streams()
    options = parse(arguments, COMMANDS)
    sys.exit(exit_code(partial(_run_command, options)))


def _run_command(options: argparse.Namespace) -> int:
    prepare_environment()
    code: int = options.command(options)
    return code


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
        progress=ProgressReporter("simulated"),
    )
    print_text(f"wrote {options.cells} cells x {options.genes} genes to {options.out}")
    return OK


def _source(options: argparse.Namespace) -> "Callable[..., CellStore]":
    """Return a function of the layer that opens the store, or stores, that a command names."""
    from dist_scvi.loaders.stores.open import open_store, read_names

    sources = options.sources if len(options.sources) > 1 else options.sources[0]
    genes = None if options.genes is None else read_names(options.genes)
    return partial(
        open_store,
        sources,
        layer=options.layer,
        genes=genes,
        join=options.join,
        source_key=options.source_key or None,
        allow_fractional=options.allow_fractional,
        skip_missing=options.skip_missing,
        soma=_soma(options),
        storage_options=dict(options.storage),
    )


def _tell_unmatched(store: "CellStore") -> None:
    """Report which genes of several stores do not match."""
    from dist_scvi.loaders.stores.collection import Collection, format_unmatched

    if isinstance(store, Collection):
        print_text(format_unmatched(store.unmatched), to_stderr=True)


def _soma(options: argparse.Namespace) -> "SomaOptions | None":
    from dist_scvi.loaders.stores.soma_store import SomaOptions

    given = {"measurement": options.soma_measurement, "obs_value_filter": options.soma_filter}
    given = {key: value for key, value in given.items() if value is not None}
    return SomaOptions(**given) if given else None


def _inspect(options: argparse.Namespace) -> int:
    from dist_scvi.loaders.checks.scan import format_inspection, inspect_store

    opened = _source(options)
    store = opened()
    _tell_unmatched(store)
    inspection = inspect_store(
        store,
        batch_key=options.batch_key,
        labels_key=options.labels_key,
        open_layer=lambda layer: opened(layer=layer),
        progress=ProgressReporter("read"),
    )
    print_text(json.dumps(inspection.to_dict(), indent=1) if options.json else format_inspection(inspection))
    return OK


def _verify(options: argparse.Namespace) -> int:
    from dist_scvi.launch.verify import verify_written
    from dist_scvi.loaders.checks.verify import format_verification, verify_store

    written = verify_written(options.source, dict(options.storage))
    if written is not None:
        kind, problems = written
        record = {"kind": kind, "source": options.source, "ok": not problems, "problems": problems}
        text = "\n".join(problems) or f"{options.source} is a whole {kind}"
        print_text(json.dumps(record, indent=1) if options.json else text)
        return MISTAKE if problems else OK
    found = verify_store(
        options.source,
        layer=options.layer,
        soma=_soma(options),
        storage_options=dict(options.storage),
        allow_fractional=options.allow_fractional,
        progress=ProgressReporter("verified"),
    )
    print_text(json.dumps(found.to_dict(), indent=1) if options.json else format_verification(found))
    return OK if found.ok else MISTAKE


def _pack(options: argparse.Namespace) -> int:
    from dist_scvi.loaders.genes import highly_variable_genes
    from dist_scvi.loaders.name_lookup import split_names
    from dist_scvi.loaders.pack.pack import pack_store

    opened = _source(options)
    genes = None
    if options.batch_key and not options.hvg:
        raise ValueError(f"--batch-key {options.batch_key} is for highly variable genes: add --hvg N, or leave it out")
    store = opened()
    _tell_unmatched(store)
    if options.hvg:
        found = highly_variable_genes(
            store, n_top_genes=options.hvg, batch_key=options.batch_key, progress=ProgressReporter("counted")
        )
        genes = [str(name) for name in store.var_names[found.highly_variable]]
    manifest = pack_store(
        opened,
        options.out,
        seed=None if options.keep_order else options.seed,
        group_by=options.group_by,
        genes=genes,
        obs_columns=options.obs_columns and split_names(options.obs_columns, store.obs_columns()),
        codec=options.codec,
        as_annbatch=options.annbatch,
        memory_bytes=options.memory,
        processes=options.processes,
        overwrite=options.overwrite,
        progress=ProgressReporter("packed"),
    )
    print_text(f"packed {manifest.n_cells} cells x {manifest.n_genes} genes into {options.out}")
    return OK


def _config(options: argparse.Namespace) -> int:
    from dist_scvi.config.explain import config_schema, config_template, explain_key

    if options.template:
        print_text(config_template())
    elif options.schema:
        print_text(json.dumps(config_schema(), indent=1))
    else:
        print_text(explain_key(options.explain))
    return OK


def _train(options: argparse.Namespace) -> int:
    from dist_scvi.config.load import load_config
    from dist_scvi.config.schema import REFERENCE

    named = [word for word in options.words if "=" not in word]
    if len(named) > 1:
        raise ValueError(f"one configuration file is needed, found {', '.join(named)}; overrides are written key=value")
    overrides = [word for word in options.words if "=" in word] + ["data.skip_missing=true"] * options.skip_missing
    if options.reference:  # before the user's own, which may change them
        overrides = [*(f"model.{key}={str(value).lower()}" for key, value in REFERENCE.items()), *overrides]
    return _run(load_config(Path(named[0]) if named else None, overrides), options)


def _resume(options: argparse.Namespace) -> int:
    from dist_scvi.metrics.run_record import run_config, workers_of_run

    run = _run_of(options)
    recorded = workers_of_run(run)
    options.workers = options.workers or (recorded and (recorded, recorded))
    return _run(run_config(run, options.words), options)


def _run_of(options: argparse.Namespace) -> "RunStorage":
    """Open the folder of the run that a command names."""
    from dist_scvi.config.load import absolute
    from dist_scvi.storage.run_storage import open_run_storage

    return open_run_storage(absolute(options.run), storage_options=dict(options.storage))


def _run(config: "RunConfig", options: argparse.Namespace) -> int:
    """Check a run, then start its workers."""
    from dist_scvi.loaders.order.plan import usable_workers
    from dist_scvi.metrics.run_record import MODEL
    from dist_scvi.storage.lease import Driver
    from dist_scvi.training.preview import preview
    from dist_scvi.training.resolve import open_from
    from dist_scvi.training.worker import storage_of_run, train_worker

    options.workers = options.workers or (1, 1)
    workers = usable_workers(config.train.lanes, *options.workers)
    devices = _devices(options)
    # In this process, so that errors in the data or the settings are reported before any worker starts.
    found = preview(config, open_from(config.data), workers=workers, allow=options.allow, fresh=options.allow_fresh)
    for key, value in {**found, "device": devices}.items():
        print_text(f"{key:>28}  {value}")
    if options.dry_run:
        return OK
    place = storage_of_run(config)
    # The lease names this process and not a worker: workers that Ray restarts then take it over without waiting.
    task = partial(train_worker, config, driver=Driver.this(), allow=options.allow, fresh=options.allow_fresh)
    _start(task, options, config.train, shown=place)
    print_text(f"model in {place.uri}/{MODEL}; next: dist-scvi minify {shlex.quote(config.run)}")
    return OK


def _devices(options: argparse.Namespace) -> str:
    """Describe the devices of the workers.

    Raises
    ------
    ValueError
        If this machine lacks the GPUs that are requested for workers on it: they would wait for them, or use the CPU.
    """
    import torch

    if options.address is not None:
        each = options.gpus_per_worker
        return f"{each} GPU for each worker, of the cluster" if each else "CPUs of the cluster"
    there, needed = torch.cuda.device_count(), options.gpus_per_worker * options.workers[0]
    if needed > there:
        raise ValueError(
            f"--gpus-per-worker {options.gpus_per_worker}: {options.workers[0]} workers need {needed} GPUs and PyTorch "
            f"finds {there} on this machine: leave the option out to train on the CPU, or give a cluster with --address"
        )
    uses_gpu = options.gpus_per_worker or (options.workers == (1, 1) and there)
    return f"GPU ({torch.cuda.get_device_name(0)})" if uses_gpu else "CPU"


def _status(options: argparse.Namespace) -> int:
    from dist_scvi.metrics.status import format_status, status_of

    try:
        status = status_of(_run_of(options))
    except FileNotFoundError as error:
        if not options.exit_code:
            raise
        print_text(str(error), to_stderr=True)
        return AGAIN
    print_text(json.dumps(status.to_dict(), indent=1) if options.json else format_status(status))
    if not options.exit_code or status.state == "finished":
        return OK
    return MISTAKE if status.state == "damaged" else AGAIN


def _minify(options: argparse.Namespace) -> int:
    from dist_scvi.atlas.atlas import describe_writing
    from dist_scvi.atlas.worker import ATLAS, is_atlas_of, minify_worker
    from dist_scvi.atlas.writer.write_atlas import AtlasOptions, atlas_uri, check_free
    from dist_scvi.loaders.name_lookup import split_names
    from dist_scvi.metrics.run_record import run_config
    from dist_scvi.training.resolve import open_from

    run = _run_of(options)
    config = run_config(run)
    out = atlas_uri(options.out or f"{run.uri}/{ATLAS}")
    obs_columns, leaf_columns = options.obs_columns or [], options.leaf_columns
    if any("," in text for text in (*obs_columns, *(leaf_columns or ()))):
        known = open_from(config.data).store.obs_columns()
        obs_columns = split_names(obs_columns, known)
        leaf_columns = split_names(leaf_columns, known) if leaf_columns else leaf_columns
    storage = config.storage_options
    if not options.overwrite:
        if is_atlas_of(run, out, obs_columns, leaf_columns, storage_options=storage):
            print_text(f"{out} is there already, whole and of this run")
            return OK
        check_free(out, overwrite=False, storage_options=storage)
    atlas_options = AtlasOptions(obs_columns, leaf_columns, options.leaf_budget, options.seed)
    task = partial(minify_worker, run, out, options=atlas_options, overwrite=options.overwrite)
    if options.workers in (None, (1, 1)) and options.address is None:  # workers of Ray have no terminal
        task = partial(task, on_progress=ProgressReporter("minified"))
    _start(task, options, config.train)
    print_text(describe_writing(out, storage_options=storage))
    atlas = shlex.quote(out)
    print_text(f"minified atlas in {out}; next: dist-scvi query {atlas} expression --genes GENE --by COLUMN")
    return OK


def _start(
    task: "Callable[[World, SaveRequests], None]",
    options: argparse.Namespace,
    settings: "TrainConfig",
    *,
    shown: "RunStorage | None" = None,
) -> None:
    """Run `task` here for one worker, on Ray Train for more; show the metrics of the run in `shown`."""
    from dist_scvi.launch.follow_metrics import show_progress
    from dist_scvi.launch.signals import call_on_signal
    from dist_scvi.metrics.reporter import MetricsReporter
    from dist_scvi.training.save_requests import SaveRequests
    from dist_scvi.world import World, worker_device

    with show_progress(shown, MetricsReporter()):
        least, most = options.workers = options.workers or (1, 1)
        if most == 1 and options.address is None:
            requests = SaveRequests()
            with call_on_signal(requests.stop):
                task(World(device=worker_device(0)), requests)
            return
        from dist_scvi.launch.ray_train import run_on_ray

        run_on_ray(
            task,
            workers=most if least == most else (least, most),
            lanes=settings.lanes,
            address=options.address,
            cpus_per_worker=options.cpus_per_worker,
            gpus_per_worker=options.gpus_per_worker,
            timeout_s=settings.collective_timeout_s,
            max_failures=options.max_failures,
        )


def _query(options: argparse.Namespace) -> int:
    from dist_scvi.launch.query import check_options, query, read_questions, write_answer

    if (options.what is None) == (options.questions is None):
        raise ValueError("name one query, as in 'dist-scvi query ATLAS markers --by cell_type', or --questions FILE")
    queries = [options]
    if options.questions is not None:
        queries = [parse(words, COMMANDS) for words in read_questions(options.questions, options.atlas)]
    for one in queries:  # all of them before the first is computed
        check_options(one)
    for one in queries:
        answer = query(one)
        if isinstance(answer, str):
            print_text(answer)
        else:
            write_answer(answer, one)
    return OK


def _export(options: argparse.Namespace) -> int:
    from dist_scvi.launch.export import export

    print_text(export(options))
    return OK


COMMANDS = {
    "simulate": _simulate,
    "inspect": _inspect,
    "verify": _verify,
    "pack": _pack,
    "config": _config,
    "train": _train,
    "resume": _resume,
    "status": _status,
    "minify": _minify,
    "query": _query,
    "map": make_map,
    "annotate": annotate,
    "export": _export,
    "report": report,
    "card": card,
    "serve": serve,
    "launch": launch,
}


if __name__ == "__main__":
    main()
