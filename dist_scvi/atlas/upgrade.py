"""Convert an atlas of format 1 to format 2, without the counts.

Shape letters in this file
    n   cells
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_array

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.store.names import OWN_COLUMNS
from dist_scvi.atlas.writer.plan import Minified
from dist_scvi.atlas.writer.write_atlas import AtlasOptions, write_atlas
from dist_scvi.loaders.arrays.obs_columns import Ranges
from dist_scvi.loaders.stores.memory_store import MemoryStore
from dist_scvi.network.fit_data import open_for
from dist_scvi.world import World


def upgrade_atlas(
    path: str | Path,
    out: str | Path,
    *,
    options: AtlasOptions = AtlasOptions(),  # noqa: B008 - a frozen record
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Atlas:
    """Write the atlas `out` of format 2 from one of format 1, and open it.

    The counts are not needed. So their sums by leaf are not in it; all else is: quantiles, normalizers, neighbourhoods.
    obs of all cells is in memory.

    Raises
    ------
    ValueError
        If `path` is no atlas of format 1, is damaged, or `out` exists.
    """
    old = open_atlas(path)
    if old.format != 1:
        raise ValueError(f"{old.uri} has format 2 already: nothing is to be done")
    obs = old.obs.to_pandas()
    obs = obs.drop(columns=[key for key in obs.columns if key in OWN_COLUMNS])
    names = list(old.var_names)
    size_factor = old.spec.size_factor_key
    if size_factor is not None and size_factor not in obs:
        obs[size_factor] = old.read_factor()
    counts = csr_array((old.n_cells, len(names)), dtype="float32")
    store = MemoryStore(AnnData(counts, obs=obs, var=pd.DataFrame(index=names)))
    store.uri = old.uri

    def rows_of(ranges: Ranges) -> Iterator[Minified]:
        for start, stop in ranges:
            rows = slice(start, stop)
            yield Minified(*old.read_latent(rows), old.read_library(rows), old.read_factor(rows))

    write_atlas(
        out,
        old.module,
        old.spec,
        open_for(store, old.spec),
        rows_of,
        has_counts=False,
        identity={"of": "format 1", "manifest": old.manifest["described"]},
        var=pd.DataFrame(index=names),
        options=options,
        world=World(),
        lineage={"upgraded_from": old.uri, **old.manifest.get("lineage", {})},
        overwrite=overwrite,
        on_progress=on_progress,
    )
    return open_atlas(out)
