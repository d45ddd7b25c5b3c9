"""``dist-scvi map``: make the map of the cells of an atlas."""

import argparse
import shlex

from dist_scvi.launch.exit_codes import OK
from dist_scvi.launch.standard_streams import print_text


def make_map(options: argparse.Namespace) -> int:
    """Make the map, or find it there, and print a line about it.

    Raises
    ------
    ValueError
        If the atlas has fewer than 4 cells or is of format 1.
    """
    from dist_scvi.atlas.atlas import open_atlas
    from dist_scvi.atlas.cell_map.cell_map import MAP, open_map
    from dist_scvi.atlas.cell_map.landmarks import MapOptions
    from dist_scvi.atlas.cell_map.write_map import write_map
    from dist_scvi.progress_reporter import ProgressReporter

    atlas = open_atlas(options.atlas, storage_options=dict(options.storage) if "://" in options.atlas else None)
    folder = options.out or f"{atlas.uri}/{MAP}"
    if not options.overwrite:
        try:
            open_map(atlas, options.out)
        except (FileNotFoundError, ValueError):  # none, or one that would be refused
            pass
        else:
            print_text(f"{folder} is the map of this atlas already: --overwrite makes it again")
            return OK
    asked = MapOptions(n_landmarks=options.landmarks, seed=options.seed)
    found = write_map(atlas, options.out, asked, on_progress=ProgressReporter("placed"))
    landmarks = found.record.options["n_landmarks"]
    print_text(
        f"map of {found.n_cells:,} cells in {folder}, by UMAP of {landmarks:,}; next: "
        f"dist-scvi serve {shlex.quote(atlas.uri)}"
    )
    return OK
