"""The minified atlas: written once, queried without the counts."""

from dist_scvi.atlas.atlas import Atlas, open_atlas

__all__ = ["Atlas", "open_atlas"]
