"""Minified cells of scvi-tools, as its hub shares them, turned into a minified atlas.

Shape letters in this file
    n   cells
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_array

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.store.names import LIBRARY
from dist_scvi.atlas.writer.plan import Minified
from dist_scvi.atlas.writer.write_atlas import AtlasOptions, write_atlas
from dist_scvi.loaders.arrays.obs_columns import Ranges
from dist_scvi.loaders.data import CellData
from dist_scvi.loaders.stores.memory_store import MemoryStore
from dist_scvi.network.fit_data import open_for
from dist_scvi.scvi_tools.minified_h5ad import MinifiedCells, open_minified_h5ad
from dist_scvi.scvi_tools.model_folder import ScviModel, read_scvi_tools
from dist_scvi.world import World

_OWN = ("_scvi_", "_scanvi_", "_ldvae_")
"""Prefix of the columns that scvi-tools adds to obs."""


def import_minified(path: str | Path, out: str | Path, *, prefix: str = "", overwrite: bool = False) -> Atlas:
    """Write the atlas `out` from a folder with a model and minified cells of scvi-tools, and open it.

    The latent posterior, the covariates and the other columns of obs are carried over; obsm, uns and counts that were
    kept are not. The former are in memory for all cells together.

    Parameters
    ----------
    path
        Folder with ``model.pt`` and ``adata.h5ad``, as ``save(..., save_anndata=True)`` of a minified model writes it
        and ``HubModel.pull_from_huggingface_hub`` fetches it.
    out
        Folder of the atlas, which appears when it is complete, or not at all.
    prefix
        Prefix of the file names.
    overwrite
        Replace an atlas that is already there.

    Raises
    ------
    FileNotFoundError
        If there is no model.
    ValueError
        If there are no minified cells, they do not fit the model, a file is damaged, or `out` exists. No code in the
        files is executed.

    Notes
    -----
    scvi-tools 1.4.2, model/base/_base_model.py: minify_adata, and hub/_model.py.
    """
    folder, target = (Path(place).expanduser().resolve() for place in (path, out))
    found = read_scvi_tools(folder, prefix=prefix)
    data, cells = _open(found, folder, prefix)
    assert found.cells is not None  # `_open` has read it
    with found.cells.open("rb") as file:
        identity = {"of": hashlib.file_digest(file, "sha256").hexdigest()}
    lineage = {"scvi_tools_model": str(folder), **found.spec.lineage}
    write_atlas(
        target,
        found.build(),
        found.spec,
        data,
        partial(_rows, data, cells),
        has_counts=False,
        identity=identity,
        var=cells.var,
        options=AtlasOptions(),
        world=World(),
        lineage=lineage,
        overwrite=overwrite,
    )
    return open_atlas(target)


def _open(found: ScviModel, folder: Path, prefix: str) -> tuple[CellData, MinifiedCells]:
    """Open the cells of the folder of a model, without counts and with the codes of the model."""
    spec = found.spec
    if found.cells is None:
        raise ValueError(f"{folder} holds no {prefix}adata.h5ad: the minified cells are needed beside the model")
    if spec.own_library and spec.size_factor_key is None:
        raise ValueError(
            f"the model in {folder} has a latent library size, which minified cells lack: minify from "
            f"their counts, with {spec.model.model_name}.load(...).minify(...)"
        )
    cells = open_minified_h5ad(found.cells, spec)
    no_counts = csr_array((len(cells.obs), len(spec.var_names)), dtype=np.float32)
    own = [key for key in cells.obs if key == LIBRARY or str(key).startswith(_OWN)]
    store = MemoryStore(AnnData(no_counts, cells.obs.drop(columns=own), pd.DataFrame(index=list(spec.var_names))))
    store.uri = str(found.cells)
    return open_for(store, spec), cells


def _rows(data: CellData, cells: MinifiedCells, rows: Ranges) -> Iterator[Minified]:
    """Yield the kept data of ranges of rows, and refuse covariates that the model cannot decode."""
    for start, stop in rows:
        span, factor_n = slice(start, stop), data.columns_of([(start, stop)]).size_factor_n
        library_n = cells.library_n[span]
        yield Minified(cells.qzm_nk[span], cells.qzv_nk[span], library_n, library_n if factor_n is None else factor_n)
