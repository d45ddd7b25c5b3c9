"""The command line: ``dist-scvi simulate | inspect | train | resume | minify | query``.

Only this file prints, and torch, zarr and ray are imported by the command that needs them.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from dist_scvi.config import RunConfig
    from dist_scvi.world import World

    _Commands = _SubParsersAction[argparse.ArgumentParser]

_OK, _FAILED, _MISTAKE, _AGAIN, _INTERRUPTED = 0, 1, 2, 75, 130
_EPILOG = (
    "exit codes: 0 done; 2 a mistake in the input, named in one line; 75 workers were lost, start the same command "
    "again to go on; 1 anything else; 130 interrupted"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    options = _parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in step with the progress on stderr, also in a file
    try:
        code = options.command(options)
    except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
        print(f"dist-scvi: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = _MISTAKE
    except TimeoutError as error:
        print(f"dist-scvi: {error}", file=sys.stderr)
        code = _AGAIN
    except BrokenPipeError:
        code = _OK
    except OSError as error:
        print(f"dist-scvi: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = _FAILED
    except KeyboardInterrupt:
        print("dist-scvi: interrupted; a run goes on with the same command", file=sys.stderr)
        code = _INTERRUPTED
    sys.exit(code)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; overrides may also stand behind options, which argparse alone does not allow."""
    parser = _parser()
    options, behind = parser.parse_known_args(arguments)
    words = getattr(options, "words", None)
    strange = [word for word in behind if words is None or word.startswith("-")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if words is not None:
        words.extend(behind)
    return options


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


def _inspect(options: argparse.Namespace) -> int:
    from dist_scvi.loaders.scan import format_inspection, inspect_store
    from dist_scvi.loaders.store import open_store

    store = open_store(options.source, layer=options.layer)
    inspection = inspect_store(
        store, batch_key=options.batch_key, labels_key=options.labels_key, progress=_progress("read")
    )
    print(json.dumps(inspection.to_dict(), indent=1) if options.json else format_inspection(inspection))
    return _OK


def _train(options: argparse.Namespace) -> int:
    from dist_scvi.config import load_config

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
    import pandas as pd

    from dist_scvi.atlas import open_atlas

    atlas = open_atlas(options.atlas)
    indices = None
    if options.cells:
        indices = atlas.find(options.cells)
    elif options.where:
        indices = atlas.select(**dict(_pair(text) for text in options.where))
    if options.what == "latent":
        latent = atlas.get_latent_representation(indices)
        names = [f"latent_{k}" for k in range(atlas.spec.model.n_latent)]
        answer = pd.DataFrame(latent, index=atlas.obs_names(indices), columns=names)
    else:
        asked: dict[str, Any] = {
            "gene_list": options.genes,
            "indices": indices,
            "transform_batch": options.transform_batch,
            "library_size": "latent" if options.library_size == "latent" else float(options.library_size),
            "n_samples": options.n_samples,
            "seed": options.seed,
        }
        if options.by:
            answer = atlas.mean_expression(options.by, **asked)
            answer.insert(0, "n_cells", atlas.group_sizes(options.by, indices).loc[answer.index])
        else:
            answer = atlas.get_normalized_expression(**asked)
    answer.to_csv(options.out or sys.stdout, float_format="%.6g")
    return _OK


def _pair(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found:
        raise ValueError(f"--where {text!r}: write COLUMN=VALUE, for example --where cell_type=B")
    return key, value


def _progress(verb: str) -> "Callable[[int, int], None] | None":
    """Show how far a pass over cells is, on a terminal."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        print(f"\r{verb} {done} of {total} cells", end=end, file=sys.stderr, flush=True)

    return show


def _at_least(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number from {low} on is needed")
        return int(text)

    return number


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dist-scvi",
        description="Train SCVI on stores of raw counts larger than memory, with many workers, and ask the result.",
        epilog=_EPILOG,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for add in (_add_simulate, _add_inspect, _add_train, _add_resume, _add_minify, _add_query):
        add(commands)
    return parser


def _add_simulate(commands: "_Commands") -> None:
    simulate = commands.add_parser("simulate", help="write a synthetic atlas")
    simulate.add_argument("out", type=Path, help="Zarr folder to write")
    simulate.add_argument("--cells", type=_at_least(1), default=20_000)
    simulate.add_argument("--genes", type=_at_least(1), default=2_000)
    simulate.add_argument("--types", type=_at_least(1), default=8, help="cell types")
    simulate.add_argument("--batches", type=_at_least(1), default=4)
    simulate.add_argument("--seed", type=_at_least(0), default=0)
    simulate.add_argument(
        "--processes", type=_at_least(1), default=1, help="processes to draw cells in; the atlas is the same"
    )
    simulate.add_argument("--overwrite", action="store_true")
    simulate.set_defaults(command=_simulate)


def _add_inspect(commands: "_Commands") -> None:
    inspect = commands.add_parser("inspect", help="read a store once and say what is in it and what to fix")
    inspect.add_argument("source", help="Zarr folder or .h5ad file")
    inspect.add_argument("--layer", help="read layers/LAYER instead of X")
    inspect.add_argument("--batch-key", help="obs column of batches")
    inspect.add_argument("--labels-key", help="obs column of labels")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(command=_inspect)


def _add_train(commands: "_Commands") -> None:
    train = commands.add_parser("train", help="train a model; goes on where an earlier start of the run was stopped")
    train.add_argument("words", nargs="+", metavar="RUN.yaml | key=value", help="configuration file and overrides")
    _add_workers(train)
    train.add_argument("--dry-run", action="store_true", help="print cells, genes, steps and memory, and stop")
    train.set_defaults(command=_train)


def _add_resume(commands: "_Commands") -> None:
    resume = commands.add_parser("resume", help="continue a run from its folder")
    resume.add_argument("run", type=Path, help="folder of the run")
    resume.add_argument("words", nargs="*", metavar="key=value", help="for example train.max_epochs=40")
    _add_workers(resume)
    resume.add_argument("--dry-run", action="store_true", help="print cells, genes, steps and memory, and stop")
    resume.set_defaults(command=_resume)


def _add_minify(commands: "_Commands") -> None:
    minify = commands.add_parser("minify", help="encode all cells of a finished run into an atlas without counts")
    minify.add_argument("run", type=Path, help="folder of the run")
    minify.add_argument("out", type=Path, nargs="?", help="folder to write; RUN/atlas by default")
    minify.add_argument("--obs-columns", type=_words, default=[], metavar="A,B", help="obs columns to carry over")
    minify.add_argument("--overwrite", action="store_true", help="replace an atlas that is there")
    _add_workers(minify)
    minify.set_defaults(command=_minify)


def _add_query(commands: "_Commands") -> None:
    query = commands.add_parser("query", help="ask a minified atlas; prints CSV")
    query.add_argument("atlas", type=Path, help="folder of the atlas")
    query.add_argument("what", choices=["latent", "expression"])
    query.add_argument("--genes", type=_words, metavar="A,B", help="genes; all by default")
    query.add_argument("--by", metavar="COLUMN", help="average over the cells of each category of an obs column")
    query.add_argument("--cells", type=_words, metavar="A,B", help="cells by name")
    query.add_argument("--where", action="append", metavar="COLUMN=VALUE", help="cells by obs column; may be repeated")
    query.add_argument("--transform-batch", type=_words, metavar="A,B", help="decode as of these batches, and average")
    query.add_argument("--library-size", default="1", metavar="NUMBER|latent", help="factor, or each cell's own total")
    query.add_argument("--n-samples", type=int, help="draws of the posterior; by default its mean is decoded")
    query.add_argument("--seed", type=int, default=0, help="seed of the draws")
    query.add_argument("--out", type=Path, help="write CSV here")
    query.set_defaults(command=_query)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_at_least(1), default=1, help="more than one are started with Ray Train")
    parser.add_argument("--cpus-per-worker", type=_at_least(1), help="by default an equal share of this machine's")
    parser.add_argument("--gpus-per-worker", type=_at_least(0), default=0)
    parser.add_argument("--max-failures", type=_at_least(0), default=3, help="how often lost workers are replaced")


if __name__ == "__main__":
    main()
