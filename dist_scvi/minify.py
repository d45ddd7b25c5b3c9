"""From counts and a model to a minified atlas: each cell's posterior and total count, with the model, and no counts.

Shape letters in this file
    n   cells
    k   latent dimensions
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from dist_scvi.loaders import CellData
from dist_scvi.loaders.columns import Categorical, Numeric
from dist_scvi.loaders.layout import finish_table, new_array, new_categorical, new_root, new_strings
from dist_scvi.loaders.stream import row_stream

from .atlas import ATLAS_FORMAT, CELLS, LIBRARY, MANIFEST, MODEL, QZM, QZV, SOURCE_ROW, describing_files
from .folder import put_in_place
from .spec import ModelSpec, fit_to_spec, save_model
from .vae import VAE
from .world import World

_CHUNK_CELLS = 4096
_SHARD_CELLS = 1 << 18


@dataclass(frozen=True, slots=True)
class _Column:
    """An obs column that is carried over."""

    source: Categorical | Numeric

    def values(self, start: int, stop: int) -> Any:
        if isinstance(self.source, Categorical):
            return self.source.codes(start, stop)
        return self.source.stored[start:stop]


def minify(
    module: VAE,
    spec: ModelSpec,
    data: CellData,
    path: Path,
    *,
    obs_columns: Sequence[str] = (),
    world: World | None = None,
    lineage: dict[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode every cell of `data` once and write the minified atlas `path`.

    Every worker calls it with the same arguments, but for its place in `world`; each encodes a part. Memory does not
    grow with the number of cells. The atlas appears when it is complete, or not at all.

    Parameters
    ----------
    obs_columns
        obs columns to carry over, beside the covariates of the model and its label.
    lineage
        Plain values that say where the model comes from; kept in the manifest.
    overwrite
        Replace an atlas that is already there.
    on_progress
        Called on rank 0 with the cells this worker has done and its share of them.

    Raises
    ------
    ValueError
        If `data` does not fit the model, a column is missing, or `path` exists.

    Notes
    -----
    ``obsm/scvi_latent_qzm``, ``obsm/scvi_latent_qzv`` and ``obs/observed_lib_size`` are the names of scvi-tools 1.4.2,
    model/_scvi.py. Rows are those of the source, in its order; ``obs/source_row`` numbers them.
    """
    world = world or World()
    data = fit_to_spec(data, spec)
    columns = _columns(data, obs_columns)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another path, or allow it to be replaced with --overwrite")
    if path.exists() and not (path / MANIFEST).is_file():
        raise ValueError(f"{path} is no minified atlas and is not replaced: give another path")
    partial = path.with_name(f".partial-{path.name}")
    shard = min(_SHARD_CELLS, -(-data.n_cells // (16 * _CHUNK_CELLS)) * _CHUNK_CELLS)
    if world.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        _create(partial / CELLS, spec, data, columns, shard)
    world.wait()
    root = zarr.open_group(partial / CELLS, mode="r+")
    _encode(module, spec, data, columns, root, shard, world, on_progress)
    world.wait()
    if world.rank == 0:
        save_model(partial / MODEL, module, spec)
        manifest = {
            "format": ATLAS_FORMAT,
            "n_cells": data.n_cells,
            "n_genes": data.n_genes,
            "source": {"uri": data.store.uri, "layer": data.store.layer, "n_entries": data.store.n_entries},
            "lineage": lineage or {},
            "described": describing_files(partial),
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        put_in_place(partial, path)
    world.wait()


def _columns(data: CellData, obs_columns: Sequence[str]) -> dict[str, _Column]:
    """Choose the columns to carry over: what decoding needs, the label, and what was asked for."""
    needed = [data.batch, data.label, *data.categorical_covariates, *data.continuous_covariates]
    columns = {column.key: _Column(column) for column in needed if column is not None}
    for key in obs_columns:
        if key in columns:
            continue
        if key in (LIBRARY, SOURCE_ROW):
            raise ValueError(f"obs column '{key}' cannot be carried over: the atlas has one of that name, rename it")
        try:
            columns[key] = _Column(data.store.numeric(key))
        except ValueError:  # not numbers; a missing column is refused by the next line
            columns[key] = _Column(data.store.categorical(key))
    return columns


def _create(path: Path, spec: ModelSpec, data: CellData, columns: dict[str, _Column], shard: int) -> None:
    """Create the arrays, empty."""
    n, k = data.n_cells, spec.model.n_latent
    path.parent.mkdir(parents=True)
    root = new_root(path, spec.var_names)
    new_rows = partial(new_array, chunk_rows=_CHUNK_CELLS, shard_rows=shard)
    new_rows(root, f"obsm/{QZM}", (n, k), np.float32)
    new_rows(root, f"obsm/{QZV}", (n, k), np.float32)
    obs = root.create_group("obs")
    new_strings(obs, "_index", n, chunk_rows=shard)
    new_rows(obs, SOURCE_ROW, (n,), np.int64)
    new_rows(obs, LIBRARY, (n,), np.float32)
    for key, column in columns.items():
        if isinstance(column.source, Categorical):
            vocabulary = column.source.vocabulary
            new_categorical(obs, key, vocabulary, n, chunk_rows=_CHUNK_CELLS, shard_rows=shard)
        else:
            new_rows(obs, key, (n,), column.values(0, 1).dtype)
    finish_table(obs, [*columns, LIBRARY, SOURCE_ROW])


@torch.no_grad()
def _encode(
    module: VAE,
    spec: ModelSpec,
    data: CellData,
    columns: dict[str, _Column],
    root: zarr.Group,
    shard: int,
    world: World,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Fill this worker's shards, each in one write: a shard written in parts would be read back and packed again."""
    module.eval()
    mine = [
        (start, min(start + shard, data.n_cells))
        for start in range(world.rank * shard, data.n_cells, world.size * shard)
    ]
    share = sum(stop - start for start, stop in mine)
    done = 0
    held: list[tuple[NDArray[Any], ...]] = []  # of a shard, without its counts
    for minibatch in row_stream(data, _pieces(mine)):
        qzm_nk, qzv_nk = module.encode(minibatch.to(module.px_r.device).counts_ng)
        held.append((qzm_nk.cpu().numpy(), qzv_nk.cpu().numpy(), minibatch.library_n.astype(np.float32)))
        done += minibatch.n_cells
        stop = int(minibatch.row_n[-1]) + 1
        if stop % shard and stop < data.n_cells:
            continue
        start = (stop - 1) // shard * shard
        latent = [np.concatenate(parts) for parts in zip(*held, strict=True)]
        written = dict(zip((f"obsm/{QZM}", f"obsm/{QZV}", f"obs/{LIBRARY}"), latent, strict=True)) | {
            f"obs/{SOURCE_ROW}": np.arange(start, stop),
            "obs/_index": data.store.obs_names(start, stop),
        }
        for key, column in columns.items():
            name = f"obs/{key}/codes" if isinstance(column.source, Categorical) else f"obs/{key}"
            written[name] = column.values(start, stop)
        # Without this a chunk in which all is the fill value, such as 4,096 cells without a label, would be left out,
        # and an absent chunk counts as lost.
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name, values in written.items():
                array: Any = root[name]
                array[start:stop] = values
        held = []
        if on_progress is not None and world.rank == 0:
            on_progress(done, share)


def _pieces(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut row ranges into minibatches."""
    for start, stop in ranges:
        for at in range(start, stop, _CHUNK_CELLS):
            yield at, min(at + _CHUNK_CELLS, stop)
