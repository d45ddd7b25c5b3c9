"""Minify: encode every cell once and write an atlas that answers queries without the counts.

Shape letters in this file
    n   cells
    k   latent dimensions
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dist_scvi.atlas.writer.plan import Minified
from dist_scvi.atlas.writer.write_atlas import DEFAULT_LEAF_BUDGET, AtlasOptions, write_atlas
from dist_scvi.inference.encode_decode import latent_cells
from dist_scvi.loaders import CellData
from dist_scvi.loaders.arrays.obs_columns import Ranges
from dist_scvi.loaders.stream import row_stream
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.world import World


def minify(
    module: VAE,
    spec: ModelSpec,
    data: CellData,
    path: str | Path,
    *,
    obs_columns: Sequence[str] = (),
    leaf_columns: Sequence[str] | None = None,
    leaf_budget_bytes: int = DEFAULT_LEAF_BUDGET,
    seed: int = 0,
    world: World | None = None,
    lineage: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode every cell of `data` once and write the minified atlas `path`.

    Every worker calls it with the same arguments, except for its rank in `world`; each encodes a part. Memory does not
    grow with the number of cells. The atlas appears when it is complete, or not at all. After a kill or an error the
    same call, by any number of workers, continues; unfinished work is next to the atlas in ``.partial-NAME`` (in object
    storage, below ``NAME.partial``). The atlas is the same to the last byte for any number of workers.

    Parameters
    ----------
    path
        Folder on a disk that all workers share, or a URL (``s3://``, ``gs://``).
    obs_columns
        obs columns to keep although they have more than 1,000 categories. All others are kept: see
        `dist_scvi.atlas.writer.columns.choose_columns`.
    leaf_columns
        obs columns whose observed combinations are the leaves, for which sums of counts and quantiles of the scale are
        kept. By default label, batch, and as many others as the budget allows.
    leaf_budget_bytes
        Bound of the size of all leaves: 104 bytes for each gene of a leaf.
    seed
        Seed of the neighbourhoods and of the order of the cells in them.
    world
        Rank of this process among the workers.
    lineage
        Plain values that describe the origin of the model; kept in the manifest.
    overwrite
        Replace an atlas that is already there.
    storage_options
        Options of a URL; see `dist_scvi.loaders.arrays.remote.RemoteObjects`.
    on_progress
        Called on rank 0 with the cells done before and by this worker, and these with its share of those left.

    Raises
    ------
    ValueError
        If `data` does not fit the model, a column is missing, the leaves exceed the budget, `path` exists, or another
        process is writing it.
    OSError
        If the disk is full, fails or may not be written.

    Notes
    -----
    ``obsm/scvi_latent_qzm``, ``obsm/scvi_latent_qzv`` and ``obs/observed_lib_size`` are the names of scvi-tools 1.4.2,
    model/_scvi.py. Rows are ordered by neighbourhood in the latent space; ``obs/source_row`` is their row in `data`.
    """
    data = fit_to_spec(data, spec)
    module.eval()

    def encoded(rows: Ranges) -> Iterator[Minified]:
        for minibatch in row_stream(data, iter(rows)):
            cells = latent_cells(module, minibatch)
            library_n = minibatch.library_n.astype(np.float32)
            yield Minified(cells.qzm_nk, cells.qzv_nk, library_n, cells.library_n, minibatch.counts)

    write_atlas(
        path,
        module,
        spec,
        data,
        encoded,
        has_counts=True,
        identity={"of": "counts"},
        var=data.store.read_var(),
        options=AtlasOptions(obs_columns, leaf_columns, leaf_budget_bytes, seed),
        world=world or World(),
        lineage=lineage,
        overwrite=overwrite,
        storage_options=storage_options,
        on_progress=on_progress,
    )
