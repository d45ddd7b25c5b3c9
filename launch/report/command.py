"""The command ``dist-scvi report``: a page that says how good a trained model is, and what to do next."""

import argparse
import json
from pathlib import Path

from dist_scvi.launch.argument_types import at_least
from dist_scvi.launch.exit_codes import OK
from dist_scvi.launch.standard_streams import print_text


def add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the parser of the command, without what all commands on runs share."""
    report = commands.add_parser(
        "report",
        help="write a page about a finished run: losses, map, integration, labels, checks, and a verdict",
        epilog="Everything is computed from samples of stated sizes: minutes for any number of cells.",
    )
    report.add_argument("--out", type=Path, metavar="FILE.html", help="page to write; RUN/report.html by default")
    report.add_argument(
        "--columns", action="append", metavar="A,B", help="obs columns that colour the map; may be repeated"
    )
    report.add_argument("--fast", action="store_true", help="smaller samples, without kBET and expression: seconds")
    report.add_argument("--multiqc", action="store_true", help="write FILE_mqc.json for MultiQC too")
    report.add_argument("--seed", type=at_least(0), default=0, help="of the samples and the map, 0 by default")
    report.add_argument("--json", action="store_true", help="print the verdict as JSON")
    return report


def report(options: argparse.Namespace) -> int:
    """Write a report and print its verdict."""
    from dist_scvi.config.load import absolute
    from dist_scvi.loaders.name_lookup import split_names
    from dist_scvi.report.measure import known_columns
    from dist_scvi.report.subject import subject_of_run
    from dist_scvi.report.write_report import write_report
    from dist_scvi.storage.run_storage import LocalStorage, open_run_storage

    run = open_run_storage(absolute(options.run), storage_options=dict(options.storage))
    out = options.out
    if out is None:
        if not isinstance(run, LocalStorage):
            raise ValueError(f"{run.uri} is a URL: name the page to write on this machine with --out FILE.html")
        out = Path(run.uri) / "report.html"
    subject = subject_of_run(run)
    columns = split_names(options.columns, known_columns(subject)) if options.columns else []
    written = write_report(
        subject, out.resolve(), columns=columns, fast=options.fast, multiqc=options.multiqc, seed=options.seed
    )
    verdict = written.verdict
    if options.json:
        record = json.loads(written.json.read_text())["verdict"]
        print_text(json.dumps({"report": str(written.html), **record}, indent=1))
        return OK
    lines = [verdict.text, *(f"  {one.name}: {one.value} ({one.explanation})" for one in verdict.numbers)]
    lines += [f"  {one.text} {one.advice}".rstrip() for one in verdict.findings if one.level != "good"]
    print_text("\n".join([*lines, f"report in {written.html}"]))
    return OK
