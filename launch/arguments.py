"""The arguments of the command line, by command."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dist_scvi.launch.annotate.command import add_annotate
from dist_scvi.launch.argument_types import at_least, pair, size_bytes, span
from dist_scvi.launch.clusters.command import add_launch
from dist_scvi.launch.exit_codes import MEANINGS
from dist_scvi.launch.query import QUERIES
from dist_scvi.launch.report.card import add_card
from dist_scvi.launch.report.command import add_report
from dist_scvi.launch.serve.command import add_serve
from dist_scvi.launch.serve.rayservice import add_rayservice

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    _Commands = _SubParsersAction[argparse.ArgumentParser]

_PAIR = pair("KEY=VALUE, for example cell_type=B")
_EPILOG = "exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in MEANINGS.items())


def parse(
    arguments: Sequence[str] | None, commands: Mapping[str, Callable[[argparse.Namespace], int]]
) -> argparse.Namespace:
    """Parse the arguments; ``command`` of the result is the one of `commands` that was named.

    Overrides may also follow options, which argparse alone does not allow.
    """
    parser = argparse.ArgumentParser(
        prog="dist-scvi",
        description="Train SCVI and SCANVI on stores of raw counts larger than memory, and query the result.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"dist_scvi {version('dist_scvi')}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in (
        _simulate,
        _inspect,
        _verify,
        _pack,
        _config,
        _train,
        _resume,
        _status,
        _minify,
        _query,
        _map,
        _export,
        add_annotate,
        _report,
        add_serve,
    ):
        add(subparsers)
    add_launch(subparsers, add_rayservice)
    options, behind = parser.parse_known_args(arguments)
    words = getattr(options, "words", None)
    strange = [word for word in behind if words is None or word.startswith("-")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if words is not None:
        words.extend(behind)
    options.command = commands[options.command]
    return options


def _words(text: str) -> list[str]:
    return [word for word in _names(text).split(",") if word]


def _names(text: str) -> str:
    """Check a list of names, which `split_names` splits once the known ones are read: a name may contain commas."""
    if not text.strip(","):
        raise argparse.ArgumentTypeError(f"{text!r}: one name or several, with commas between them, are needed")
    return text


def _add_names(parser: "argparse.ArgumentParser | argparse._ArgumentGroup", option: str, help: str) -> None:
    """Add an option that takes names and may be repeated."""
    parser.add_argument(
        option, action="append", type=_names, metavar="A,B", help=f"{help}; may be repeated, for names with commas"
    )


def _size(text: str) -> float | str:
    if text == "latent":
        return text
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not (math.isfinite(size) and size > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0 is needed, or 'latent'")
    return size


def _simulate(commands: "_Commands") -> None:
    simulate = commands.add_parser("simulate", help="write a synthetic atlas")
    simulate.add_argument("out", type=Path, help="Zarr folder to write")
    simulate.add_argument("--cells", type=at_least(1), default=20_000)
    simulate.add_argument("--genes", type=at_least(1), default=2_000)
    simulate.add_argument("--types", type=at_least(1), default=8, help="cell types")
    simulate.add_argument("--batches", type=at_least(1), default=4)
    simulate.add_argument("--seed", type=at_least(0), default=0)
    simulate.add_argument(
        "--processes", type=at_least(1), default=1, help="processes to draw cells in; the atlas is the same"
    )
    simulate.add_argument("--overwrite", action="store_true")


def _inspect(commands: "_Commands") -> None:
    inspect = commands.add_parser("inspect", help="read a store once and print what is in it and what to fix")
    _add_sources(inspect)
    inspect.add_argument("--batch-key", help="obs column of batches")
    inspect.add_argument("--labels-key", help="obs column of labels")
    inspect.add_argument("--json", action="store_true", help="print JSON")


def _verify(commands: "_Commands") -> None:
    verify = commands.add_parser(
        "verify", help="read all of a store, run, model or atlas and print what is lost or damaged"
    )
    verify.add_argument("source", help="store, run, checkpoint, model folder or atlas")
    _add_reading(verify)
    verify.add_argument("--json", action="store_true", help="print JSON")


def _pack(commands: "_Commands") -> None:
    pack = commands.add_parser("pack", help="rewrite stores as one that is shuffled, small and fast to read")
    _add_sources(pack)
    pack.add_argument("out", type=Path, help="Zarr folder to write")
    pack.add_argument("--seed", type=at_least(0), default=0, help="seed of the order of the cells")
    pack.add_argument("--keep-order", action="store_true", help="keep the order of the source")
    pack.add_argument("--group-by", metavar="COLUMN", help="keep the cells of a category together, shuffled in each")
    pack.add_argument("--hvg", type=at_least(1), metavar="N", help="keep N highly variable genes (seurat_v3)")
    pack.add_argument("--batch-key", metavar="COLUMN", help="find highly variable genes within these batches")
    _add_names(pack, "--obs-columns", "obs columns to keep; all by default")
    pack.add_argument("--codec", choices=["lz4hc", "lz4", "zstd"], default="lz4hc", help="compressor of the counts")
    pack.add_argument("--annbatch", action="store_true", help="write a collection that annbatch reads")
    pack.add_argument("--memory", type=size_bytes, default=2 << 30, metavar="SIZE", help="bound for all, 2GiB")
    pack.add_argument("--processes", type=at_least(1), default=1)
    pack.add_argument("--overwrite", action="store_true", help="replace a Zarr folder that is there")


def _config(commands: "_Commands") -> None:
    config = commands.add_parser("config", help="print the keys of a configuration, with types, defaults and meanings")
    what = config.add_mutually_exclusive_group(required=True)
    what.add_argument("--template", action="store_true", help="print a YAML file with every key")
    what.add_argument("--schema", action="store_true", help="print the JSON schema, for editors")
    what.add_argument("--explain", metavar="KEY", help="print one key, as train.lr, or a section, as train")


def _train(commands: "_Commands") -> None:
    train = commands.add_parser(
        "train",
        help="train a model; continues where an earlier start of the run was stopped",
        epilog="'dist-scvi config --template' prints every key with its meaning and default.",
    )
    train.add_argument("words", nargs="+", metavar="RUN.yaml | key=value", help="configuration file and overrides")
    train.add_argument("--skip-missing", action="store_true", help="the same as data.skip_missing=true")
    train.add_argument(
        "--reference",
        action="store_true",
        help="options of a model onto which later batches are mapped: the batch in the encoder, layer normalisation",
    )
    add_permissions(train)
    _add_workers(train)
    train.add_argument("--dry-run", action="store_true", help="print cells, genes, steps and memory, and stop")


def _resume(commands: "_Commands") -> None:
    resume = commands.add_parser("resume", help="continue a run from its folder")
    _add_run(resume)
    resume.add_argument("words", nargs="*", metavar="key=value", help="for example train.max_epochs=40")
    add_permissions(resume)
    _add_workers(resume)
    resume.add_argument("--dry-run", action="store_true", help="print cells, genes, steps and memory, and stop")


def _status(commands: "_Commands") -> None:
    status = commands.add_parser("status", help="print the state of a run: progress, speed, last checkpoint, restarts")
    _add_run(status)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument(
        "--exit-code", action="store_true", help="exit with 0 only if the run is finished, with 75 if it is not"
    )


def _minify(commands: "_Commands") -> None:
    minify = commands.add_parser("minify", help="encode all cells of a finished run into an atlas without counts")
    _add_run(minify)
    minify.add_argument("out", nargs="?", help="folder or URL (s3://, gs://) to write; RUN/atlas by default")
    _add_names(minify, "--obs-columns", "obs columns to keep despite more than 1,000 categories")
    _add_names(
        minify,
        "--leaf-columns",
        "obs columns for whose observed combinations sums and quantiles are kept; by the budget",
    )
    minify.add_argument(
        "--leaf-budget", type=int, default=1 << 30, metavar="BYTES", help="bytes that these may take, 1 GiB by default"
    )
    minify.add_argument("--seed", type=int, default=0, help="of neighbourhoods and of the order of their cells")
    minify.add_argument("--overwrite", action="store_true", help="replace an atlas that is there")
    _add_workers(minify)


def _map(commands: "_Commands") -> None:
    cell_map = commands.add_parser("map", help="lay out the cells of an atlas by UMAP, for its page and its report")
    cell_map.add_argument("atlas", help="folder of the atlas, or its URL")
    cell_map.add_argument("--out", metavar="FOLDER", help="folder or URL of the map; map in the atlas by default")
    cell_map.add_argument(
        "--landmarks",
        type=at_least(4),
        default=50_000,
        metavar="N",
        help="cells that UMAP lays out, 50,000 by default; the others are placed among them",
    )
    cell_map.add_argument("--seed", type=at_least(0), default=0, help="seed of the sample and of UMAP, 0 by default")
    cell_map.add_argument("--overwrite", action="store_true", help="make it again if it exists")
    _add_storage(cell_map)


def _export(commands: "_Commands") -> None:
    export = commands.add_parser("export", help="write a model, or the cells of an atlas, in a format that others read")
    export.add_argument("run", type=Path, help="folder of a run, of a model, or of an atlas")
    export.add_argument("out", help="folder or file to write; for soma the experiment to add to, or its URL")
    export.add_argument(
        "--to",
        choices=["scvi-tools", "h5ad", "scvi-hub", "parquet", "soma"],
        default="scvi-tools",
        help="scvi-tools (default): the model as scvi-tools 1.4.2 loads it; h5ad: the cells of an atlas as scvi-tools "
        "minifies them; scvi-hub: a folder of its hub, model and cells; parquet: their names, obs and latent means; "
        "soma: latent mean, variance and obs columns added to a TileDB-SOMA experiment of the same cells",
    )
    export.add_argument("--card", type=Path, metavar="FILE", help="scvi-hub: text of the model card, Markdown")
    export.add_argument("--measurement", metavar="NAME", help="soma: measurement that receives them, RNA by default")
    export.add_argument("--obs-names-column", metavar="COLUMN", help="soma: column of obs with the names of cells")
    export.add_argument("--overwrite", action="store_true", help="replace what an earlier export wrote")


def _report(commands: "_Commands") -> None:
    _add_run(add_report(commands))
    _add_run(add_card(commands))


def _query(commands: "_Commands") -> None:
    query = commands.add_parser(
        "query",
        help="query a minified atlas; prints CSV, or writes CSV, JSON or parquet",
        epilog="filters are written as \"tissue == 'lung' and cell_type in ['T', 'NK'] and n_counts > 500\"",
    )
    query.add_argument("atlas", help="folder of the atlas, or its URL")
    query.add_argument("what", choices=QUERIES, nargs="?", help="what to compute")
    query.add_argument("--questions", type=Path, metavar="FILE", help="YAML list of queries, answered one by one")
    _add_names(query, "--genes", "genes, by name or symbol; all by default")
    query.add_argument("--skip-missing", action="store_true", help="leave out genes that the atlas does not have")
    _add_names(query, "--by", "group the cells by these obs columns")
    cells = query.add_mutually_exclusive_group()
    _add_names(cells, "--cells", "cells by name")
    cells.add_argument(
        "--where", action="append", metavar="FILTER", help="cells that pass a filter, or COLUMN=VALUE; may be repeated"
    )
    query.add_argument("--soft", action="store_true", help="print the probability of each label")
    _add_names(query, "--transform-batch", "decode as of these batches, and average")
    query.add_argument(
        "--library-size", type=_size, metavar="NUMBER|latent", help="factor, 1 by default, or each cell's own total"
    )
    query.add_argument("--n-samples", type=at_least(1), help="draws of a cell, or cells of a group, by query")
    query.add_argument("--seed", type=at_least(0), help="seed of the draws, 0 by default")
    _add_group_options(query)
    _add_sample_options(query)
    _add_cell_options(query)
    query.add_argument("--explain", action="store_true", help="print cells, bytes, seconds and engine, and stop")
    query.add_argument("--out", type=Path, metavar="FILE", help="write .csv, .json or .parquet here")
    query.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    query.add_argument("--safe-csv", action="store_true", help="write texts that begin with = + - @ behind a quote")
    _add_storage(query)


def _add_group_options(query: argparse.ArgumentParser) -> None:
    """Add the options of queries that compare groups of cells."""
    query.add_argument("--group1", metavar="FILTER", help="first group of cells")
    query.add_argument("--group2", metavar="FILTER", help="second group; all other cells by default")
    query.add_argument("--batch", metavar="own|NAME|average", help="batch that cells are decoded with")
    query.add_argument("--threshold", type=float, help="report the fraction of cells above it")
    query.add_argument("--mode", choices=["vanilla", "change"], help="of scvi-tools; vanilla by default")
    query.add_argument("--delta", type=float, help="least log2 fold change that counts, 0.25 by default")
    query.add_argument("--fdr", type=float, help="false discovery rate of the genes flagged, 0.05 by default")
    query.add_argument("--batch-correction", action="store_true", help="decode the cells with all batches")
    query.add_argument("--replicate", metavar="COLUMN", help="independent samples, such as donors: adds their test")
    query.add_argument(
        "--engine", choices=["auto", "leaves", "sketch", "pairs", "index", "exact"], help="how to compute"
    )
    query.add_argument("--n-genes", type=at_least(1), metavar="N", help="genes of each group, 100 by default")


def _add_sample_options(query: argparse.ArgumentParser) -> None:
    """Add the options of queries about samples and conditions."""
    _add_names(query, "--groups", "abundance: obs columns of the groups; the labels of the model by default")
    _add_names(query, "--contrast", "abundance: obs column, tested category, reference, as in condition,stim,ctrl")
    query.add_argument("--level", type=float, help="confidence level of intervals, 0.95 by default")
    query.add_argument(
        "--from", dest="from_", action="append", metavar="NAME", help="counterfactual: cells of this category"
    )
    query.add_argument("--to", metavar="NAME", help="counterfactual: as of this category")
    query.add_argument("--key", metavar="COLUMN", help="counterfactual: covariate of the model; its batch by default")


def _add_cell_options(query: argparse.ArgumentParser) -> None:
    """Add the options of queries about single cells."""
    query.add_argument(
        "--query", metavar="FILTER|STORE", help="neighbors: cells of the atlas, or a store of new counts"
    )
    query.add_argument("--k", type=at_least(1), metavar="N", help="neighbors of each cell, 15 by default")
    query.add_argument("--metric", choices=["euclidean", "posterior"], help="neighbors: euclidean by default")
    query.add_argument("--layer", help="neighbors: layer of new counts, or raw/X")
    query.add_argument(
        "--min-overlap", type=float, metavar="SHARE", help="neighbors: least share of genes of new counts"
    )
    query.add_argument("--n", type=at_least(1), metavar="N", help="sample: cells to draw")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="stores: Zarr, .h5ad, annbatch, TileDB-SOMA, URL")
    parser.add_argument("--genes", type=Path, metavar="FILE", help="keep the genes listed in a file, one per line")
    parser.add_argument("--join", choices=["inner", "outer"], default="inner", help="genes of several stores")
    parser.add_argument(
        "--source-key",
        default="source",
        metavar="NAME",
        help="obs column, added to those of several stores, that names the store of each cell; '' for none",
    )
    parser.add_argument("--skip-missing", action="store_true", help="leave out listed genes that are in no store")
    _add_reading(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layer", help="read layers/LAYER instead of X, or raw/X")
    parser.add_argument("--allow-fractional", action="store_true", help="read counts that are not whole as they are")
    parser.add_argument("--soma-measurement", metavar="NAME", help="of TileDB-SOMA; RNA by default")
    parser.add_argument("--soma-filter", metavar="FILTER", help="cells of TileDB-SOMA, as \"tissue == 'lung'\"")
    _add_storage(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of the run, or its URL")
    _add_storage(parser)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage", action="append", type=_PAIR, default=[], metavar="KEY=VALUE", help="option of a URL's storage"
    )


def add_permissions(parser: argparse.ArgumentParser) -> None:
    """Add the options that allow a run to continue although something differs."""
    parser.add_argument(
        "--allow", type=_words, default=[], metavar="KEY,KEY", help="continue although these differ from the checkpoint"
    )
    parser.add_argument("--allow-fresh", action="store_true", help="start over if all checkpoints are lost or damaged")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=span,
        metavar="N | MIN:MAX",
        help="more than one run on Ray Train; of a range, as many as there is room for; resume: those of the run",
    )
    parser.add_argument(
        "--address",
        help="of a running Ray cluster, or auto; by default a cluster is started on this machine for the command",
    )
    parser.add_argument("--cpus-per-worker", type=at_least(1), help="by default an equal share of this machine")
    parser.add_argument(
        "--gpus-per-worker", type=at_least(0), default=0, help="refused where the machine has fewer than all need"
    )
    parser.add_argument("--max-failures", type=at_least(0), default=3, help="how often lost workers are replaced")
