"""The command ``dist-scvi card``: the card of a model, as scvi-hub shows it."""

import argparse
import os
from pathlib import Path

from dist_scvi.launch.exit_codes import OK
from dist_scvi.launch.standard_streams import print_text


def add_card(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the parser of the command, without what all commands on runs share."""
    card = commands.add_parser(
        "card",
        help="write the card of a finished run for scvi-hub: README.md with metrics, parameters, registry, and tags",
        epilog="'dist-scvi export ATLAS OUT --to scvi-hub --card README.md' writes the folder that hubs take.",
    )
    card.add_argument("--out", type=Path, metavar="FILE.md", help="file to write; without it the card is printed")
    card.add_argument("--description", metavar="TEXT", help="in place of what the run tells")
    card.add_argument("--references", metavar="TEXT", help="papers to cite")
    card.add_argument("--license", metavar="NAME", help="such as cc-by-4.0")
    card.add_argument("--tissue", action="append", default=[], metavar="NAME", help="may be repeated")
    card.add_argument("--modality", action="append", metavar="NAME", help="rna by default; may be repeated")
    card.add_argument("--training-data-url", metavar="URL", help="in place of the store of the run")
    card.add_argument("--training-code-url", metavar="URL", help="in place of the command and its configuration")
    card.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    return card


def card(options: argparse.Namespace) -> int:
    """Write or print a card."""
    from dist_scvi.config.load import absolute
    from dist_scvi.report.card import card_of
    from dist_scvi.report.subject import subject_of_run
    from dist_scvi.scvi_tools.hub_card import CardDetails
    from dist_scvi.storage.atomic_files import write_file
    from dist_scvi.storage.run_storage import open_run_storage

    out = options.out and options.out.resolve()
    if out and os.path.lexists(out) and not options.overwrite:
        raise FileExistsError(f"{out} exists: give another path, or allow it to be replaced (--overwrite)")
    details = CardDetails(
        description=options.description or "",
        references=options.references or "",
        license=options.license,
        tissues=options.tissue,
        modalities=options.modality or ("rna",),
        training_data=options.training_data_url or "",
        training_code=options.training_code_url or "",
    )
    run = open_run_storage(absolute(options.run), storage_options=dict(options.storage))
    text = card_of(subject_of_run(run), details)
    if out is None:
        print_text(text)
        return OK
    write_file(out, text.encode())
    print_text(f"card in {out}")
    return OK
