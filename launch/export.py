"""``dist-scvi export``: a model, or the cells of an atlas, in a format that others read."""

import argparse
from dataclasses import replace
from pathlib import Path

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.export import write_h5ad, write_parquet
from dist_scvi.atlas.export_hub import write_scvi_hub
from dist_scvi.atlas.export_soma import write_soma
from dist_scvi.config.load import read_text
from dist_scvi.metrics.run_record import CONFIG, MODEL
from dist_scvi.network.model_files import load_model
from dist_scvi.report.card import card_of
from dist_scvi.report.subject import subject_of_run
from dist_scvi.scvi_tools.model_folder import write_scvi_tools
from dist_scvi.storage.run_storage import open_run_storage

_ONLY = {"card": "scvi-hub", "measurement": "soma", "obs_names_column": "soma"}
"""The format that accepts an option; the others refuse it."""


def export(options: argparse.Namespace) -> str:
    """Write what `options` name, and return a line about it.

    Raises
    ------
    ValueError, FileExistsError
        If an option does not belong to the format, or as the functions that write raise.
    """
    for key, only in _ONLY.items():
        if getattr(options, key) is not None and options.to != only:
            raise ValueError(f"--{key.replace('_', '-')} belongs to 'export --to {only}', not to '--to {options.to}'")
    if options.to == "scvi-tools":
        folder = options.run / MODEL if (options.run / MODEL).is_dir() else options.run
        write_scvi_tools(Path(options.out).resolve(), *load_model(folder), overwrite=options.overwrite)
        return f"wrote {options.out}: scvi-tools 1.4.2 loads it with its cells"
    atlas = open_atlas(options.run)
    if options.to == "soma":
        write_soma(
            atlas,
            options.out,
            measurement=options.measurement or "RNA",
            obs_names_column=options.obs_names_column,
            overwrite=options.overwrite,
        )
        return f"added latent mean and variance, and obs columns, to {options.out}"
    out = Path(options.out).resolve()
    if options.to == "scvi-hub":
        card = _card_of_run(atlas) if options.card is None else read_text(options.card)
        write_scvi_hub(atlas, out, card=card, overwrite=options.overwrite)
        return f"wrote {options.out}: scvi.hub.HubModel of scvi-tools 1.4.2 opens it"
    (write_h5ad if options.to == "h5ad" else write_parquet)(atlas, out, overwrite=options.overwrite)
    return f"wrote {options.out}"


def _card_of_run(atlas: Atlas) -> str | None:
    """Return the card of the run in whose folder an atlas is, with its metrics; None if it is in none."""
    folder = Path(atlas.uri).parent
    if "://" in atlas.uri or not (folder / CONFIG).is_file():
        return None
    return card_of(replace(subject_of_run(open_run_storage(folder)), atlas=atlas))
