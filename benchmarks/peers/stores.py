"""The same synthetic cells, written in the formats that the programs read.

Formats of other programs are written by them: the collection of annbatch in the environment of annbatch.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from dist_scvi.loaders.pack.pack import pack_store
from dist_scvi.loaders.stores.open import open_store

from .cells import N_GENES, N_LABELS, Cells, load_cells, tahoe_like

_ANNBATCH = """
import sys, annbatch
annbatch.DatasetCollection(sys.argv[2]).add_adatas([sys.argv[1]])
"""


def make_stores(folder: Path, n_cells: int, annbatch_python: Path, *, label_sorted: bool) -> dict[str, Path]:
    """Write the stores that are not there yet and return where each lies."""
    folder = folder / f"tahoe-like-{n_cells}-{'sorted' if label_sorted else 'mixed'}"
    names = {"h5ad": "cells.h5ad", "zarr": "plain.zarr", "packed": "packed.zarr", "annbatch": "annbatch.zarr"}
    paths = {kind: folder / name for kind, name in names.items()} | {"soma": folder / "soma"}
    if not (folder / "cells").exists():
        _finish(folder / "cells", lambda path: tahoe_like(n_cells, label_sorted=label_sorted).save(path))
    adata = _anndata(load_cells(folder / "cells")) if any(not path.exists() for path in paths.values()) else None
    writers: dict[str, Callable[[Path], object]] = {
        "h5ad": lambda path: adata.write_h5ad(path, compression="gzip"),  # as atlases are delivered
        "zarr": lambda path: _zarr(adata, path),
        "packed": lambda path: pack_store(partial(open_store, paths["zarr"]), path),
        "annbatch": lambda path: subprocess.run([annbatch_python, "-c", _ANNBATCH, paths["h5ad"], path], check=True),
        "soma": lambda path: _soma(adata, path),
    }
    for kind, path in paths.items():
        if not path.exists():
            print(f"writing {path}", file=sys.stderr)
            _finish(path, writers[kind])
    os.sync()
    return {**paths, "cells": folder / "cells", "genes": folder / "genes.npy"}


def _finish(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a path that appears whole or not at all."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    if unfinished.exists():
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    write(unfinished)
    unfinished.rename(path)


def _anndata(cells: Cells) -> anndata.AnnData:
    n = len(cells.label_n)
    parts = (cells.counts_e.astype(np.float32), cells.genes_e.astype(np.int32), cells.indptr)
    label = pd.Categorical.from_codes(cells.label_n, [f"label{label:02d}" for label in range(N_LABELS)])
    return anndata.AnnData(
        sparse.csr_matrix(parts, shape=(n, N_GENES)),
        obs=pd.DataFrame({"label": label}, index=[f"cell{row:09d}" for row in range(n)]),
        var=pd.DataFrame(index=[f"gene{gene:05d}" for gene in range(N_GENES)]),
    )


def _zarr(adata: anndata.AnnData, path: Path) -> None:
    with anndata.settings.override(zarr_write_format=3):
        adata.write_zarr(path)


def _soma(adata: anndata.AnnData, path: Path) -> None:
    import tiledbsoma.io

    tiledbsoma.io.from_anndata(str(path), adata, measurement_name="RNA")
