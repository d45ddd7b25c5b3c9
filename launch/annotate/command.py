"""``dist-scvi annotate``: label new cells by an atlas, a run, or a model."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dist_scvi.launch.argument_types import at_least, pair
from dist_scvi.launch.exit_codes import OK
from dist_scvi.launch.query import check_output, write_answer
from dist_scvi.launch.standard_streams import print_text
from dist_scvi.loaders.arrays.printable import printable

if TYPE_CHECKING:
    from dist_scvi.atlas.atlas import Atlas
    from dist_scvi.atlas.queries.answer import Answer


def add_annotate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "annotate",
        help="label new cells; prints CSV, or writes CSV, JSON or parquet",
        description="Label new cells by their raw counts. An atlas calibrates probabilities and prediction sets on "
        "held-out donors; a model alone gives uncalibrated probabilities.",
    )
    parser.add_argument("source", help="an atlas, its URL, a run that has an atlas, or the folder of a SCANVI model")
    parser.add_argument("new", help="raw counts: Zarr, .h5ad, annbatch, TileDB-SOMA, or a URL")
    parser.add_argument("--label", metavar="COLUMN", help="obs column of the atlas; the labels of the model by default")
    parser.add_argument("--method", choices=["classifier", "neighbors"], help="the classifier if there is one")
    parser.add_argument("--coverage", type=float, metavar="SHARE", help="of prediction sets, 0.9 by default")
    parser.add_argument("--where", metavar="FILTER", help="labelled cells of the atlas to use")
    parser.add_argument("--k", type=at_least(1), metavar="N", help="neighbours, 30 by default")
    parser.add_argument("--replicate", metavar="COLUMN", help="donors to hold out; the batches of the model by default")
    parser.add_argument("--layer", help="layer of the raw counts, or raw/X")
    parser.add_argument("--min-overlap", type=float, metavar="SHARE", help="least share of genes, 0.5 by default")
    parser.add_argument("--seed", type=at_least(0), help="seed of the choice of calibration cells, 0 by default")
    parser.add_argument("--explain", action="store_true", help="print cells, bytes, seconds and method, and stop")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write .csv, .json or .parquet here")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    parser.add_argument("--safe-csv", action="store_true", help="write texts that begin with = + - @ behind a quote")
    parser.add_argument(
        "--storage",
        action="append",
        type=pair("region=eu-west-1"),
        default=[],
        metavar="KEY=VALUE",
        help="option of a URL's storage",
    )


_OF_MODEL = ("layer", "min_overlap")
_OF_ATLAS = ("label", "method", "coverage", "where", "k", "replicate", "seed")


def annotate(options: argparse.Namespace) -> int:
    """Run the command."""
    check_output(options)
    answer = _answer(options)
    if isinstance(answer, str):
        print_text(answer)
        return OK
    report = answer.parameters.get("calibration")
    if report:
        sys.stderr.write(
            f"calibrated on {report['cells']:,} cells of {report['replicates']} held out "
            f"{printable(report['replicate'] or 'cells')}: accuracy {report['accuracy']:.3f}, calibration error "
            f"{report['calibration_error_before']:.3f} before and {report['calibration_error']:.3f} after\n"
        )
    write_answer(answer, options)
    return OK


def _answer(options: argparse.Namespace) -> "Answer | str":
    given = {key: getattr(options, key) for key in (*_OF_MODEL, *_OF_ATLAS) if getattr(options, key) is not None}
    atlas = _atlas(options)
    if atlas is None:
        return _by_model(options, given)
    if options.explain:
        return str(atlas.explain("annotate", new_counts=options.new, **given))
    return atlas.annotate(options.new, **given)


def _atlas(options: argparse.Namespace) -> "Atlas | None":
    """Open the atlas that is named, or that of the run; None if there is none."""
    from dist_scvi.atlas.atlas import open_atlas
    from dist_scvi.atlas.store.names import MANIFEST
    from dist_scvi.atlas.worker import ATLAS
    from dist_scvi.storage.atomic_files import resolve_replaced

    if "://" in options.source:
        return open_atlas(options.source, storage_options=dict(options.storage))
    folder = Path(options.source).expanduser().resolve()
    for place in (folder, folder / ATLAS):
        if (resolve_replaced(place) / MANIFEST).is_file():
            return open_atlas(place)
    return None


def _by_model(options: argparse.Namespace, given: dict[str, object]) -> "Answer":
    from dist_scvi.atlas.annotation.annotate import annotate_by_model
    from dist_scvi.metrics.run_record import MODEL
    from dist_scvi.network.model_files import has_model, load_model

    folder = Path(options.source).expanduser().resolve()
    found = [place for place in (folder, folder / MODEL) if has_model(place)]
    if not found:
        raise ValueError(
            f"{options.source} holds neither an atlas nor a model: name an atlas, a run, or the folder of a model"
        )
    unused = [f"--{key}" for key in _OF_ATLAS if key in given] + ["--explain"] * options.explain
    if unused:
        raise ValueError(
            f"{', '.join(unused)} needs an atlas, and {options.source} has none: make it with 'dist-scvi minify RUN'"
        )
    module, spec = load_model(found[0])
    return annotate_by_model(
        module, spec, str(found[0]), options.new, layer=options.layer, min_overlap=options.min_overlap or 0.5
    )
